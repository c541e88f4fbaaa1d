"""The manifest of a checkpoint: what every file holds and must hash to. Readers trust nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from runtime.errors import UserError
from runtime.files import digest_bytes, digest_file, read_json, write_atomic
from runtime.settings import Settings

MANIFEST = "MANIFEST.json"
FORMAT_VERSION = 2
FLOAT_BYTES = 4


def _plain_name(name: str) -> str:
    if name in ("", ".", "..") or any(character in name for character in "/\\\0"):
        raise ValueError(f"{name!r} is not the name of a file beside the manifest: get the checkpoint from its origin")
    return name


FileName = Annotated[str, AfterValidator(_plain_name)]


class StoredBlock(Settings):
    """A box of a logical tensor as one entry of a safetensors file.

    Its values begin at byte `start` of the file; `chunks` are the xxh3-128 of each `rows_per_chunk` rows of it.
    """

    file: FileName
    key: str
    offset: tuple[Annotated[int, Field(ge=0)], ...]
    size: tuple[Annotated[int, Field(ge=0)], ...]
    start: int = Field(ge=0)
    chunks: list[str]


class StoredFile(Settings):
    """A file of the checkpoint: length in bytes and xxh3-128, of the whole and of the header at its beginning."""

    bytes: int = Field(ge=0)
    digest: str
    header_bytes: int = Field(ge=0)
    header_digest: str


class CheckpointManifest(Settings):
    """Everything a reader needs. `shapes` maps logical name → global shape; `blocks` kind → name → boxes.

    Values are float32. A block is verified in chunks of whole rows, of `chunk_bytes` at most if a row is not longer.

    `step` steps were taken on `samples` samples (`tokens` tokens), `updates` of them changed the weights (the others
    were refused). `loop` is the training loop's own state. `identity` describes the model and its data, and
    `provenance` where the state came from (layout, configuration, data and tokenizer digests); neither says
    anything about how it must be loaded.
    """

    version: int = FORMAT_VERSION
    chunk_bytes: int = Field(gt=0)
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
        """Write the manifest into `directory`, atomically, with a digest of its own content; a line for each field."""
        values = self.model_dump(mode="json")
        values["digest"] = content_digest(values)
        # without indentation json is encoded by C: a big run's manifest has some hundred thousand entries
        lines = (f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in values.items())
        write_atomic(directory / MANIFEST, "{\n" + ",\n".join(lines) + "\n}\n")

    @classmethod
    def read(cls, directory: Path) -> CheckpointManifest:
        """Read and validate. Raises UserError naming the file."""
        path = directory / MANIFEST
        values = read_json(path)
        # the digest is made alike in every format, so that a damaged version is not taken for another one
        if not isinstance(values, dict) or values.pop("digest", None) != content_digest(values):
            raise damaged(path, "does not match its own digest")
        if values.get("version") != FORMAT_VERSION:
            raise OtherFormat(_other_version(path, values.get("version")))
        manifest = cls.parse(values, str(path))
        if fault := manifest.inconsistency():
            raise UserError(f"{path} contradicts itself ({fault}): get the checkpoint from its origin")
        return manifest

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
            raise UserError(
                f"{directory / MANIFEST} holds step {self.step}: rename {directory} to step-{self.step:08d}"
            )

    def missing_elements(self) -> str | None:
        """Name a logical tensor that the blocks do not cover exactly once, or None."""
        for kind, names in self.blocks.items():
            for name, shape in self.shapes.items():
                stored = sum(math.prod(block.size) for block in names.get(name, []))
                if stored != math.prod(shape):
                    return f"{kind} of {name}: {stored} of {math.prod(shape)} elements"
        return None

    def inconsistency(self) -> str | None:
        """Name a block that cannot be where the manifest says, or a tensor with holes, or None."""
        for kind, names in self.blocks.items():
            for name, blocks in names.items():
                for block in blocks:
                    if fault := self._misplaced(block, self.shapes.get(name)):
                        return f"{kind} of {name}: {fault}"
        return self.missing_elements()

    def _misplaced(self, block: StoredBlock, shape: tuple[int, ...] | None) -> str | None:
        if shape is None or not len(shape) == len(block.size) == len(block.offset) > 0:
            return "a block of another rank"
        if any(o + n > whole for o, n, whole in zip(block.offset, block.size, shape, strict=True)):
            return f"a block beyond {shape}"
        file = self.files.get(block.file)
        stop = block.start + math.prod(block.size) * FLOAT_BYTES
        if file is None or not file.header_bytes <= block.start <= stop <= file.bytes:
            return f"a block beyond {block.file}"
        if len(block.chunks) != -(-block.size[0] // rows_per_chunk(block.size, FLOAT_BYTES, self.chunk_bytes)):
            return f"{len(block.chunks)} chunks"
        return None

    def verify_file(self, directory: Path, name: str, advance: Callable[[int], None] | None = None) -> None:
        """Compare every byte of a file with the manifest; `advance` is told the bytes. Raises UserError naming it."""
        path = directory / name
        self._verify_size(path)
        try:
            if digest_file(path, advance) != self.files[name].digest:
                raise damaged(path, "does not match its digest")
        except OSError as error:
            raise unreadable(path, error) from None

    def verify_header(self, directory: Path, name: str) -> None:
        """Compare a file's length and header with the manifest. Raises UserError naming it."""
        path, expected = directory / name, self.files[name]
        self._verify_size(path)
        try:
            with open(path, "rb") as source:
                if digest_bytes(source.read(expected.header_bytes)) != expected.header_digest:
                    raise damaged(path, "does not match its digest in the header")
        except OSError as error:
            raise unreadable(path, error) from None

    def verify_headers(self, directory: Path) -> None:
        """Compare length and header of every file with the manifest. Raises UserError naming it."""
        for name in sorted(self.files):
            self.verify_header(directory, name)

    def verify_sizes(self, directory: Path) -> None:
        """Compare the length of every file with the manifest; reads none. Raises UserError naming it."""
        for name in sorted(self.files):
            self._verify_size(directory / name)

    def _verify_size(self, path: Path) -> None:
        expected = self.files[path.name].bytes
        try:
            size = path.stat().st_size
        except OSError as error:
            raise unreadable(path, error) from None
        if size != expected:
            raise damaged(path, f"has {size} bytes, not {expected}")


class OtherFormat(UserError):
    """A checkpoint that is not damaged, but of a format version that this code does not read."""


def rows_per_chunk(size: tuple[int, ...], item_bytes: int, chunk_bytes: int) -> int:
    """How many whole rows of a tensor of shape `size` make a chunk: what fits into `chunk_bytes`, at least one."""
    return max(1, chunk_bytes // max(1, math.prod(size[1:]) * item_bytes))


def damaged(path: Path, fault: str) -> UserError:
    """The error of a file of which `fault` was found."""
    return UserError(f"{path} {fault}: the checkpoint is damaged, use an earlier one")


def unreadable(path: Path, error: OSError) -> UserError:
    """The error of a file that the system does not give."""
    return damaged(path, f"cannot be read ({error.strerror})")


def _other_version(path: Path, version: Any) -> str:
    if version == 1:
        mend = "rewrite it with `python -m parallel.checkpoint.migrate OLD NEW`"
    else:
        mend = "use the code version that wrote it"
    return f"{path} has format version {version!r}, this code reads {FORMAT_VERSION}: {mend}"


def content_digest(values: dict[str, Any]) -> str:
    """The xxh3-128 of the JSON values, however the file spells them."""
    return digest_bytes(json.dumps(values, sort_keys=True).encode())
