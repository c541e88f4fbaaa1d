"""All passes in turn: sources to shards in a directory that is then published, or added to a dataset."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from data_pipeline.config import BuildConfig, TrainTokenizer
from data_pipeline.manifest import DatasetManifest, SourceInfo, SplitInfo
from data_pipeline.passes.cut import count_tokens, cut_shards
from data_pipeline.passes.encode import SPLITS, encode_parts
from data_pipeline.passes.learn import obtain_tokenizer
from data_pipeline.passes.read import part_bytes, read_sources
from data_pipeline.passes.select import Selected, add_up, select
from data_pipeline.passes.workshop import Workshop, fresh_directory
from data_pipeline.rows import Part
from data_pipeline.shards import ShardForm, default_shard_tokens, token_dtype
from data_pipeline.sources.debian import default_cache
from data_pipeline.sources.pieces import Opened, open_source
from data_pipeline.tokenizer import Tokenizer
from runtime.errors import UserError
from runtime.files import fsync_file, write_atomic

_UNPACKED = "unpacked"
_ALONE_BYTES = 1 << 22  # less input than this is done sooner than workers start


@dataclass(frozen=True)
class Means:
    """How a build is carried out; nothing here changes a byte of its result."""

    processes: int | None = None
    """Worker processes; as many as there are cores if not given."""
    cache: Path | None = None
    """Where Debian packages are kept."""
    part_bytes: int | None = None
    """Bytes of input of a unit of work; chosen by the size of the sources if not given."""
    show_progress: bool = True


@dataclass(frozen=True)
class Base:
    """A dataset that sources are added to, and the digests of its documents as a part before all others."""

    manifest: DatasetManifest
    known: Part


class Assembled(NamedTuple):
    """What the passes made; the shards' files and the tokenizer stand in the directory that was given."""

    sources: list[SourceInfo]
    splits: dict[Literal["train", "validation"], SplitInfo]
    tokenizer: Tokenizer
    form: ShardForm


def assemble(
    config: BuildConfig, workshop: Workshop, publish: Path, means: Means, base: Base | None = None
) -> Assembled:
    """Do all passes; with `base`, sources and shards count on from its own. Raises UserError."""
    if not isinstance(config.tokenizer, TrainTokenizer):
        Tokenizer.load(config.tokenizer.path, config.tokenizer.special)  # refused now, not after hours of reading
    opened = _open_sources(config, workshop, means)
    if means.processes is None and sum(file.bytes for source in opened for file in source.files) < _ALONE_BYTES:
        workshop.processes = 1
    first = len(base.manifest.sources) if base else 0
    known = [base.known] if base else []
    parts = read_sources(config, opened, means.part_bytes or part_bytes(opened), workshop, first, known)
    selected = select(config, parts, workshop, known)
    sources = _count_sources(config, opened, selected, first)
    if not base and not sum(one.counts["train_bytes"] for one in selected):
        raise UserError("sources: no text is left to train on: add a source, or lower `validation`")
    tokenizer = obtain_tokenizer(config, selected, workshop)
    write_atomic(publish / tokenizer.file_name, tokenizer.model)
    encoded = encode_parts(config, selected, tokenizer, publish / tokenizer.file_name, workshop)
    dtype = token_dtype(tokenizer.vocabulary)
    form = ShardForm(dtype, config.batch_tokens, config.shard_tokens or default_shard_tokens(dtype), config.compression)
    splits = _put_shards(config, encoded, form, workshop, publish, base)
    tokens = [0] * len(sources)
    for one, place in zip(selected, encoded, strict=True):
        tokens[one.part.source - first] += sum(count_tokens(place, split) for split in SPLITS)
    sources = [info.model_copy(update={"tokens": count}) for info, count in zip(sources, tokens, strict=True)]
    return Assembled(sources, splits, tokenizer, form)


def _open_sources(config: BuildConfig, workshop: Workshop, means: Means) -> list[Opened]:
    """The files of every source; packages are unpacked anew."""
    place = fresh_directory(workshop.directory / _UNPACKED)
    return [open_source(source, place, means.cache or default_cache()) for source in config.sources]


def _count_sources(
    config: BuildConfig, opened: Sequence[Opened], selected: Sequence[Selected], first: int
) -> list[SourceInfo]:
    """What every source gave, tokens apart. Raises UserError naming a source that gives nothing."""
    infos = []
    for number, (source, found) in enumerate(zip(config.sources, opened, strict=True), first):
        counts = add_up([one.counts for one in selected if one.part.source == number])
        values = {key: value for key, value in counts.items() if key in SourceInfo.model_fields}
        info = SourceInfo(
            name=source.name,
            licence=source.licence,
            origin=found.origin,
            skipped=found.skipped,
            **{**values, "files": len(found.files)},
        )
        _refuse_barren(info)
        infos.append(info)
    return infos


def _refuse_barren(info: SourceInfo) -> None:
    if info.skipped is None and not (info.documents or info.duplicates or info.near_duplicates):
        counts = {"filtered": sum(info.filtered.values())}
        counts |= {key: getattr(info, key) for key in ("undecodable", "without_text", "empty", "oversized", "damaged")}
        seen = ", ".join(f"{count} {key.replace('_', ' ')}" for key, count in counts.items() if count) or "nothing read"
        raise UserError(f"source {info.name!r} gives no document ({seen}): check its files, `field` and `max_bytes`")


def _put_shards(
    config: BuildConfig, encoded: Sequence[Path], form: ShardForm, workshop: Workshop, publish: Path, base: Base | None
) -> dict[Literal["train", "validation"], SplitInfo]:
    """Cut the shards of both splits and put their files into `publish`."""
    splits = {}
    together = 2 if config.form == "preferences" else 1
    for split in SPLITS:
        first = len(base.manifest.splits[split].shards) if base else 0
        splits[split], places = cut_shards(encoded, split, form, workshop, first, together)
        for place, shard in zip(places, splits[split].shards, strict=True):
            for file in shard.files:
                put(place / file.name, publish / file.name)
    return splits


def put(source: Path, target: Path) -> None:
    """The same file under another name: linked where the file system can, else copied."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        fsync_file(target)
