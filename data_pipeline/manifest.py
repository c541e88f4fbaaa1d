"""What a dataset is: its shards, their digests, its tokenizer and where the text came from."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import xxhash
from pydantic import Field, PlainSerializer, PlainValidator, model_validator

from data_pipeline.config import SPECIAL_ROLES, BuildConfig, Form
from data_pipeline.files import Count, FileInfo, checked_file
from data_pipeline.shard_table import ShardInfo, ShardTable
from runtime.errors import UserError
from runtime.files import digest_bytes, read_json, write_atomic, write_json
from runtime.settings import Settings

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.model"
VERSION = 2


class SplitInfo(Settings):
    """The shards of a split, in the order of its token stream. In the manifest stands the file of their table."""

    tokens: Count
    documents: Count
    shards: Annotated[
        ShardTable, PlainValidator(ShardTable.of), PlainSerializer(lambda table: table.file.model_dump(mode="json"))
    ]


class _StoredSplit(Settings):
    """A split as it stands in the manifest; the first version held the shards themselves."""

    tokens: Count
    documents: Count
    shards: FileInfo | list[ShardInfo]


class TokenizerInfo(Settings):
    """The tokenizer that made the ids; its file stands in the dataset."""

    file: FileInfo
    vocabulary: Annotated[int, Field(gt=0)]
    pad_id: Count
    bos_id: Count
    eos_id: Count
    mask_id: Count
    header_start_id: Count | None = None
    """Chats: before and after the name of a role, and at a turn's end."""
    header_end_id: Count | None = None
    turn_end_id: Count | None = None

    @property
    def special_ids(self) -> dict[str, str | int]:
        """Role to id, as `Tokenizer.load` takes it."""
        ids = {role: getattr(self, f"{role}_id") for role in SPECIAL_ROLES}
        return {role: number for role, number in ids.items() if number is not None}

    def contradicts(self, ids: Mapping[str, str | int]) -> bool:
        """Whether a role has another id in `ids`; older manifests may not name all roles."""
        return any(ids.get(role, number) != number for role, number in self.special_ids.items())


class SourceInfo(Settings):
    """What one source gave. `bytes`: UTF-8 of the documents kept; `tokens` include one EOS a document."""

    name: str
    licence: str
    origin: str
    skipped: str | None = None
    """Why the source was left out, if it was."""
    files: Count = 0
    documents: Count = 0
    duplicates: Count = 0
    near_duplicates: Count = 0
    undecodable: Count = 0
    without_text: Count = 0
    empty: Count = 0
    oversized: Count = 0
    damaged: Count = 0
    """Places where a file broke off."""
    filtered: dict[str, Count] = {}  # noqa: RUF012 (pydantic copies defaults)
    """Documents that a stage left out, by rule."""
    languages: dict[str, Count] = {}  # noqa: RUF012
    """Kept documents by language, if it was told."""
    normalised: Count = 0
    """Kept documents whose normal form is another text."""
    lines_cut: Count = 0
    """Lines with text that `stages.c4` cut out of kept documents."""
    emails: Count = 0
    """E-mail and IP addresses that were replaced in kept documents."""
    addresses: Count = 0
    bytes: Count = 0
    tokens: Count = 0


class DatasetManifest(Settings):
    """All that is known of a published dataset; `digest` identifies it."""

    version: Literal[2] = 2
    dtype: Literal["uint16", "uint32"]
    batch_tokens: Annotated[int, Field(gt=0)]
    tokenizer: TokenizerInfo
    sources: list[SourceInfo]
    splits: dict[Literal["train", "validation"], SplitInfo]
    form: Form = "text"
    build: BuildConfig
    appended: list[BuildConfig] = []  # noqa: RUF012 (pydantic copies defaults)
    """What was added later, in order."""

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        for name, split in self.splits.items():
            table = split.shards
            if (split.tokens, split.documents) != (sum(table.tokens.tolist()), sum(table.documents.tolist())):
                raise ValueError(f"splits.{name}: the counts of its shards do not add up")
            counts = np.diff(table.first_batch)
            for number in np.flatnonzero(counts != -(-table.tokens // self.batch_tokens))[:1].tolist():
                shard = table[number]
                covered = f"{counts[number]} batch digests do not cover {shard.tokens} tokens"
                raise ValueError(f"{shard.file.name}: {covered}")
        return self

    @property
    def digest(self) -> str:
        """xxh3-128 of the canonical JSON (sorted keys, no spaces)."""
        return _digest(self.model_dump(mode="json"))

    @property
    def stream_digest(self) -> str:
        """Identifies tokenizer and token streams alone: not changed by compression, licences or paths.

        xxh3-128 of `[tokenizer's digest, {split: [[digest of each record batch] of each shard]}]` as canonical JSON.
        """
        state = xxhash.xxh3_128(f'["{self.tokenizer.file.digest}",{{'.encode())
        for number, (name, split) in enumerate(sorted(self.splits.items())):
            state.update(f'{"," if number else ""}"{name}":['.encode())
            for place, digests in enumerate(split.shards.batch_digests()):
                state.update(b"," + digests if place else digests)
            state.update(b"]")
        state.update(b"}]")
        return state.hexdigest()

    @property
    def files(self) -> list[FileInfo]:
        """Every file of the dataset but the manifest itself and its tables of shards."""
        shards = [shard for split in self.splits.values() for shard in split.shards]
        return [self.tokenizer.file, *(file for shard in shards for file in shard.files)]

    @property
    def tables(self) -> list[FileInfo]:
        """The tables of shards."""
        return [split.shards.file for split in self.splits.values()]

    def form_of_shards(self) -> dict[str, Any]:
        """What all shards have in common, for those who read them apart from the manifest."""
        return {
            "dtype": self.dtype,
            "batch_tokens": self.batch_tokens,
            "packed": self.build.compression != "none",
            "vocabulary": self.tokenizer.vocabulary,
            "eos_id": self.tokenizer.eos_id,
            "sources": len(self.sources),
        }

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read the manifest of the dataset directory `path`.

        Raises UserError if it is missing, damaged or of another version.
        """
        directory = Path(path)
        file = directory / MANIFEST
        if not file.is_file():
            state = "is not a dataset (it has no manifest.json)" if directory.is_dir() else "does not exist"
            raise UserError(f"{directory} {state}: give a directory that `lacuna data build` made")
        return cls.from_values(read_json(file), str(file), lambda info: checked_file(directory, info))

    @classmethod
    def from_values(cls, values: Any, where: str, open_file: Callable[[FileInfo], Any]) -> Self:
        """The manifest that a file holds; `open_file` gives the bytes of a file beside it, checked.

        Raises UserError naming `where` it stands if it cannot be used.
        """
        if not isinstance(values, dict):
            raise UserError(f"{where} is not a dataset's manifest: rebuild the dataset or restore the file")
        if values.get("version") not in (1, VERSION):
            raise UserError(
                f"{where}: version {values.get('version')!r} is not {VERSION}: "
                "rebuild the dataset, or use the Lacuna that made it"
            )
        stored = values.pop("digest", None)
        if stored != _digest(values):
            raise UserError(
                f"{where} was edited or damaged (its digest does not fit): restore it or rebuild the dataset"
            )
        splits = values.get("splits")
        if isinstance(splits, dict):
            parsed = {name: _StoredSplit.parse(split, f"{where}: splits.{name}") for name, split in splits.items()}
            values["splits"] = {name: _with_table(split, where, open_file) for name, split in parsed.items()}
        return cls.parse({**values, "version": VERSION}, where)

    def save(self, directory: Path) -> None:
        """Write the tables of shards, then the manifest, with its own digest, into `directory`."""
        for split in self.splits.values():
            write_atomic(directory / split.shards.file.name, split.shards.data.to_pybytes())
        write_json(directory / MANIFEST, {**self.model_dump(mode="json"), "digest": self.digest})


def _with_table(split: _StoredSplit, where: str, open_file: Callable[[FileInfo], Any]) -> SplitInfo:
    stored = split.shards
    if isinstance(stored, FileInfo):
        table = ShardTable(open_file(stored), f"{where}: {stored.name}")
    else:
        table = ShardTable.of(stored)
    return SplitInfo(tokens=split.tokens, documents=split.documents, shards=table)


def _digest(values: Any) -> str:
    return digest_bytes(json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode())
