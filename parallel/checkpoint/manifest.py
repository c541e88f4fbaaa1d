"""The manifest of a checkpoint: what every file holds and must hash to. Readers trust nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from runtime.errors import UserError
from runtime.files import digest_bytes, digest_file, read_json, write_json
from runtime.settings import Settings

MANIFEST = "MANIFEST.json"
FORMAT_VERSION = 1


def _plain_name(name: str) -> str:
    if name in ("", ".", "..") or any(character in name for character in "/\\\0"):
        raise ValueError(f"{name!r} is not the name of a file beside the manifest: get the checkpoint from its origin")
    return name


FileName = Annotated[str, AfterValidator(_plain_name)]


class StoredBlock(Settings):
    """A box of a logical tensor as one entry of a safetensors file."""

    file: FileName
    key: str
    offset: tuple[int, ...]
    size: tuple[int, ...]


class StoredFile(Settings):
    """A file of the checkpoint: length in bytes and xxh3-128."""

    bytes: int
    digest: str


class CheckpointManifest(Settings):
    """Everything a reader needs. `tensors` maps kind → logical name → global shape; `blocks` kind → name → boxes.

    `step` steps were taken on `samples` samples (`tokens` tokens), `updates` of them changed the weights (the others
    were refused). `loop` is the training loop's own state. `identity` describes the model and its data, and
    `provenance` where the state came from (layout, configuration, data and tokenizer digests); neither says
    anything about how it must be loaded.
    """

    version: int = FORMAT_VERSION
    step: int = Field(ge=0)
    updates: int = Field(ge=0)
    samples: int = Field(ge=0)
    tokens: int = Field(ge=0)
    identity: dict[str, Any]
    provenance: dict[str, Any]
    loop: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    blocks: dict[str, dict[str, list[StoredBlock]]]
    files: dict[FileName, StoredFile]

    def write(self, directory: Path) -> None:
        """Write the manifest into `directory`, atomically, with a digest of its own content."""
        values = self.model_dump(mode="json")
        write_json(directory / MANIFEST, {**values, "digest": _content_digest(values)})

    @classmethod
    def read(cls, directory: Path) -> CheckpointManifest:
        """Read and validate. Raises UserError naming the file."""
        path = directory / MANIFEST
        values = read_json(path)
        if isinstance(values, dict) and values.get("version") != FORMAT_VERSION:
            raise UserError(
                f"{path} has format version {values.get('version')!r}, this code reads {FORMAT_VERSION}: "
                "use the code version that wrote it"
            )
        if not isinstance(values, dict) or values.pop("digest", None) != _content_digest(values):
            raise UserError(f"{path} does not match its own digest: the checkpoint is damaged, use an earlier one")
        return cls.parse(values, str(path))

    def require_identity(self, directory: Path, identity: dict[str, Any]) -> None:
        """Raise UserError naming the first key in which the checkpoint in `directory` is of another run."""
        for key, wanted in identity.items():
            stored = self.identity.get(key)
            if json.loads(json.dumps(wanted)) != stored:
                raise UserError(
                    f"{directory} is a checkpoint of another model or run ({key} is {stored!r}, here {wanted!r}): "
                    "use its own recipe, or another --run"
                )

    def require_name(self, directory: Path) -> None:
        """Raise UserError if `directory` is named after another step than the one it holds."""
        if directory.name.removeprefix("step-").lstrip("0") != str(self.step or ""):
            raise UserError(f"{directory} holds step {self.step}: rename it to step-{self.step:08d}")

    def missing_elements(self) -> str | None:
        """Name a logical tensor that the blocks do not cover exactly once, or None."""
        for kind, names in self.blocks.items():
            for name, shape in self.shapes.items():
                stored = sum(_volume(block.size) for block in names.get(name, []))
                if stored != _volume(shape):
                    return f"{kind} of {name}: {stored} of {_volume(shape)} elements"
        return None

    def verify_file(self, directory: Path, name: str) -> None:
        """Compare one file with the manifest. Raises UserError naming it."""
        expected, path = self.files[name], directory / name
        try:
            size = path.stat().st_size
            if size != expected.bytes:
                raise UserError(
                    f"{path} has {size} bytes, not {expected.bytes}: the checkpoint is damaged, use an earlier one"
                )
            if digest_file(path) != expected.digest:
                raise UserError(f"{path} does not match its digest: the checkpoint is damaged, use an earlier one")
        except OSError as error:
            raise UserError(
                f"{path} cannot be read ({error.strerror}): the checkpoint is damaged, use an earlier one"
            ) from None


def _content_digest(values: dict[str, Any]) -> str:
    """The xxh3-128 of the JSON values, however the file spells them."""
    return digest_bytes(json.dumps(values, sort_keys=True).encode())


def _volume(size: tuple[int, ...]) -> int:
    product = 1
    for n in size:
        product *= n
    return product
