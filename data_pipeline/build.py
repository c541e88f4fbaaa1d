"""Sources to a published dataset: read, find duplicates, learn the vocabulary, encode, cut, rename."""

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.config import BuildConfig, TrainTokenizer
from data_pipeline.manifest import DatasetManifest, SourceInfo, SplitInfo
from data_pipeline.passes.cut import count_tokens, cut_shards
from data_pipeline.passes.encode import SPLITS, encode_parts
from data_pipeline.passes.learn import obtain_tokenizer
from data_pipeline.passes.read import part_bytes, read_sources
from data_pipeline.passes.select import Selected, add_up, select
from data_pipeline.passes.workshop import Workshop
from data_pipeline.shards import ShardForm, default_shard_tokens, describe_file, token_dtype
from data_pipeline.sources.debian import default_cache
from data_pipeline.sources.pieces import Opened, open_source
from data_pipeline.tokenizer import Tokenizer
from runtime.errors import UserError, one_line
from runtime.files import fsync_file, publish_directory, remove_tree, write_atomic

_UNPACKED, _PUBLISH = "unpacked", "publish"
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


def build_dataset(
    config: BuildConfig, out: Path, cache: Path | None = None, show_progress: bool = True, means: Means | None = None
) -> DatasetManifest:
    """Build a dataset and publish it as directory `out`, which appears whole or not at all.

    The same input gives the same bytes, however many processes work on it. What a killed build finished is taken
    up by the next. Raises UserError if `out` exists, a source has no text, or the vocabulary does not fit the text.
    """
    means = means or Means(cache=cache, show_progress=show_progress)
    if os.path.lexists(out):
        raise UserError(f"{out} exists already: move it away or choose another --out")
    try:
        with work_beside(out, means) as workshop:
            publish = fresh_directory(workshop.directory / _PUBLISH)
            manifest = _build(config, workshop, publish, means)
            publish_directory(publish, out)
    except OSError as error:
        reason = f"{out} could not be built ({one_line(error)})"
        raise UserError(
            f"{reason}: nothing was published, what is finished is kept; mend that and build again"
        ) from None
    return manifest


@contextmanager
def work_beside(out: Path, means: Means) -> Iterator[Workshop]:
    """A workshop in a directory beside `out` that only this process uses.

    The directory is removed when all went well, or nothing was finished; else the next build goes on from it.
    """
    place = out.with_name(f".{out.name}.building")
    place.mkdir(parents=True, exist_ok=True)
    lock = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out} is being built by another process: wait for it") from None
        processes = means.processes or len(os.sched_getaffinity(0))
        try:
            with Workshop(place, processes, means.show_progress) as workshop:
                yield workshop
        except BaseException:
            if not any(place.glob("*-*")):
                remove_tree(place)
            raise
        remove_tree(place)
    finally:
        os.close(lock)


def fresh_directory(path: Path) -> Path:
    """An empty directory, whatever stood there before."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    return path


def _build(config: BuildConfig, workshop: Workshop, publish: Path, means: Means) -> DatasetManifest:
    if not isinstance(config.tokenizer, TrainTokenizer):
        Tokenizer.load(config.tokenizer.path, config.tokenizer.special)  # refused now, not after hours of reading
    opened = open_sources(config, workshop, means)
    if means.processes is None and sum(file.bytes for source in opened for file in source.files) < _ALONE_BYTES:
        workshop.processes = 1
    parts = read_sources(config, opened, means.part_bytes or part_bytes(opened), workshop)
    selected = select(config, parts, workshop)
    sources = count_sources(config, opened, selected)
    if not sum(one.counts["train_bytes"] for one in selected):
        raise UserError("sources: no text is left to train on: add a source, or lower `validation`")
    tokenizer = obtain_tokenizer(config, selected, workshop)
    write_atomic(publish / tokenizer.file_name, tokenizer.model)
    encoded = encode_parts(config, selected, tokenizer, publish / tokenizer.file_name, workshop)
    dtype = token_dtype(tokenizer.vocabulary)
    form = ShardForm(dtype, config.batch_tokens, config.shard_tokens or default_shard_tokens(dtype), config.compression)
    splits = publish_splits(encoded, form, workshop, publish)
    tokens = tokens_by_source(encoded, selected, len(sources))
    manifest = DatasetManifest(
        dtype=form.dtype,
        batch_tokens=form.batch_tokens,
        tokenizer=tokenizer.info(describe_file(publish / tokenizer.file_name)),
        sources=[info.model_copy(update={"tokens": n}) for info, n in zip(sources, tokens, strict=True)],
        splits=splits,
        build=config,
    )
    manifest.save(publish)
    return manifest


def open_sources(config: BuildConfig, workshop: Workshop, means: Means) -> list[Opened]:
    """The files of every source; packages are unpacked anew."""
    place = fresh_directory(workshop.directory / _UNPACKED)
    return [open_source(source, place, means.cache or default_cache()) for source in config.sources]


def count_sources(config: BuildConfig, opened: Sequence[Opened], selected: Sequence[Selected]) -> list[SourceInfo]:
    """What every source gave, tokens apart. Raises UserError naming a source that gives nothing."""
    infos = []
    for number, (source, found) in enumerate(zip(config.sources, opened, strict=True)):
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


def publish_splits(encoded: Sequence[Path], form: ShardForm, workshop: Workshop, publish: Path) -> dict[str, SplitInfo]:
    """Cut the shards of both splits and put their files into `publish`."""
    splits = {}
    for split in SPLITS:
        splits[split], places = cut_shards(encoded, split, form, workshop)
        for place, shard in zip(places, splits[split].shards, strict=True):
            for file in (shard.file, shard.offsets):
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


def tokens_by_source(encoded: Sequence[Path], selected: Sequence[Selected], sources: int) -> list[int]:
    """Tokens that each source gave, both splits together."""
    tokens = [0] * sources
    for one, place in zip(selected, encoded, strict=True):
        tokens[one.part.source] += sum(count_tokens(place, split) for split in SPLITS)
    return tokens
