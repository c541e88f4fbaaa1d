"""Datasets joined to one, and one dataset parted, by linking shards; only small files are written anew."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from data_pipeline.build import PUBLISH
from data_pipeline.files import FileInfo
from data_pipeline.manifest import DatasetManifest, SourceInfo
from data_pipeline.passes.assemble import put
from data_pipeline.passes.cut import cut_documents, split_info
from data_pipeline.passes.encode import SPLITS
from data_pipeline.passes.workshop import fresh_directory, work_beside
from data_pipeline.places import open_shards
from data_pipeline.shard_table import ShardInfo
from data_pipeline.shards import (
    ShardForm,
    ShardReader,
    default_shard_tokens,
    write_documents,
    write_shard,
)
from runtime.errors import UserError, one_line
from runtime.files import fsync_file, publish_directory
from runtime.progress import ProgressBar


@contextmanager
def _published(out: Path, progress: bool) -> Iterator[Path]:
    """An empty directory beside `out` to be filled and published. Raises UserError if `out` exists."""
    if os.path.lexists(out):
        raise UserError(f"{out} exists already: move it away or choose another --out")
    try:
        with work_beside(out, 1, progress) as workshop:
            yield fresh_directory(workshop.directory / PUBLISH)
    except OSError as error:
        raise UserError(f"{out} could not be made ({one_line(error)}): nothing was published, mend that") from None


def merge_datasets(paths: Sequence[Path], out: Path, progress: bool = True) -> DatasetManifest:
    """One dataset of the shards of all, published as `out`; sources that are the same in several become one.

    Documents that stand in several datasets stay. Raises UserError if the datasets do not fit together.
    """
    manifests = [DatasetManifest.load(path) for path in paths]
    for path, manifest in zip(paths[1:], manifests[1:], strict=True):
        _fit(paths[0], manifests[0], path, manifest)
    sources, places = _join_sources(paths, manifests)
    with _published(out, progress) as publish:
        splits: dict[str, list[ShardInfo]] = {split: [] for split in SPLITS}
        total = sum(len(split.shards) for manifest in manifests for split in manifest.splits.values())
        with ProgressBar("merge", total, progress) as bar:
            for path, manifest, numbers in zip(paths, manifests, places, strict=True):
                for split in SPLITS:
                    for reader in open_shards(path, manifest, split):
                        stem = f"{split}-{len(splits[split]):05d}"
                        splits[split].append(_moved(path, reader, publish, stem, numbers))
                        bar.advance(1)
        tokenizer = manifests[0].tokenizer.file.name
        put(paths[0] / tokenizer, publish / tokenizer)
        changes = {
            "sources": sources,
            "splits": {split: split_info(shards) for split, shards in splits.items()},
            "appended": [*manifests[0].appended, *(b for m in manifests[1:] for b in (m.build, *m.appended))],
        }
        merged = DatasetManifest(**{**dict(manifests[0]), **changes})
        merged.save(publish)
        publish_directory(publish, out)
    return merged


def _fit(first: Path, one: DatasetManifest, path: Path, other: DatasetManifest) -> None:
    for what, a, b in (
        ("tokenizer", one.tokenizer.file.digest, other.tokenizer.file.digest),
        ("batch_tokens", one.batch_tokens, other.batch_tokens),
        ("compression", one.build.compression, other.build.compression),
        ("form", one.form, other.form),
    ):
        if a != b:
            raise UserError(f"{path} has another {what} than {first} ({b}, not {a}): build it with the same")
    if one.tokenizer.contradicts(other.tokenizer.special_ids):
        raise UserError(f"{path} has other special ids than {first}: build it with the same `tokenizer.special`")


def _join_sources(
    paths: Sequence[Path], manifests: Sequence[DatasetManifest]
) -> tuple[list[SourceInfo], list[list[int]]]:
    """All sources, and for each dataset where each of its own stands among them."""
    joined: list[SourceInfo] = []
    places = []
    for path, manifest in zip(paths, manifests, strict=True):
        numbers = []
        for source in manifest.sources:
            number = next((n for n, known in enumerate(joined) if known.name == source.name), len(joined))
            numbers.append(number)
            if number == len(joined):
                joined.append(source)
            elif (joined[number].licence, joined[number].origin) != (source.licence, source.origin):
                raise UserError(f"sources: {path} has another source of the name {source.name!r}: rename one of them")
            else:
                joined[number] = _added(joined[number], source)
        places.append(numbers)
    return joined, places


def _added(one: SourceInfo, other: SourceInfo) -> SourceInfo:
    """The counts of both."""
    sums: dict[str, Any] = {}
    for key, value in dict(one).items():
        more = getattr(other, key)
        if isinstance(value, dict):
            sums[key] = {name: value.get(name, 0) + more.get(name, 0) for name in sorted({*value, *more})}
        elif isinstance(value, int):
            sums[key] = value + more
    return one.model_copy(update=sums)


def _moved(path: Path, reader: ShardReader, publish: Path, stem: str, numbers: Sequence[int] | None) -> ShardInfo:
    """The shard under another name, its documents' sources renumbered."""
    info = reader.info
    put(path / info.file.name, publish / f"{stem}.arrow")
    offsets = publish / f"{stem}.documents.arrow"
    if numbers is None or list(numbers) == list(range(len(numbers))):
        put(path / info.offsets.name, offsets)
        described = FileInfo(name=offsets.name, bytes=info.offsets.bytes, digest=info.offsets.digest)
    else:
        table = pa.Table.from_batches([reader.document_table()])
        renumbered = np.array(numbers, dtype=np.uint16)[table["source"].to_numpy()]
        described = write_documents(offsets, table.set_column(1, table.schema.field(1), pa.array(renumbered)))
        fsync_file(offsets)
    file = FileInfo(name=f"{stem}.arrow", bytes=info.file.bytes, digest=info.file.digest)
    return info.model_copy(update={"file": file, "offsets": described})


def split_by_shards(path: Path, out: Path, parts: int, progress: bool = True) -> list[DatasetManifest]:
    """`parts` datasets below `out`, each of the next shards of every split. Raises UserError if one would be empty."""
    manifest = DatasetManifest.load(path)
    count = len(manifest.splits["train"].shards)
    if parts > count:
        raise UserError(f"--parts: {path} has only {count} shards of training text: give {count} or less")
    made = []
    with _published(out, progress) as publish, ProgressBar("split", parts, progress) as bar:
        for part in range(parts):
            target = publish / f"part-{part:05d}"
            target.mkdir()
            splits = {}
            for split in SPLITS:
                readers = open_shards(path, manifest, split)
                chosen = range(part * len(readers) // parts, (part + 1) * len(readers) // parts)
                splits[split] = [
                    _moved(path, readers[place], target, f"{split}-{number:05d}", None)
                    for number, place in enumerate(chosen)
                ]
            made.append(_part(path, manifest, target, splits))
            bar.advance(1)
        publish_directory(publish, out)
    return made


def split_by_source(path: Path, out: Path, progress: bool = True) -> list[DatasetManifest]:
    """A dataset for each source that gave documents, below `out` under its name; shards are written anew."""
    manifest = DatasetManifest.load(path)
    shard_tokens = manifest.build.shard_tokens or default_shard_tokens(manifest.dtype)
    form = ShardForm(manifest.dtype, manifest.batch_tokens, shard_tokens, manifest.build.compression)
    together = 2 if manifest.form == "preferences" else 1
    made = []
    with _published(out, progress) as publish, ProgressBar("split", len(manifest.sources), progress) as bar:
        for number, source in enumerate(manifest.sources):
            if source.documents:
                target = publish / source.name
                target.mkdir()
                splits = {
                    split: list(_shards_of(path, manifest, split, number, target, form, together)) for split in SPLITS
                }
                made.append(_part(path, manifest, target, splits))
            bar.advance(1, source.name)
        publish_directory(publish, out)
    return made


def _shards_of(
    path: Path,
    manifest: DatasetManifest,
    split: Literal["train", "validation"],
    source: int,
    target: Path,
    form: ShardForm,
    together: int,
) -> Iterator[ShardInfo]:
    """Write the documents of one source as shards of their own."""
    readers = open_shards(path, manifest, split)
    lengths = (np.cumsum(_documents_of(reader, source)[2]) for reader in readers)
    for written, parts in enumerate(cut_documents(lengths, form.shard_tokens, together)):
        pieces: list[Any] = []
        tables: list[pa.Table] = []
        size = 0
        for number, first, last in parts:
            table, begins, sizes = _documents_of(readers[number], source, first, last)
            for run in np.split(np.arange(len(begins)), np.flatnonzero(begins[1:] != (begins + sizes)[:-1]) + 1):
                pieces += readers[number].tokens(int(begins[run[0]]), int(begins[run[-1]] + sizes[run[-1]]))
            tables.append(table.set_column(0, table.schema.field(0), pa.array(np.cumsum(sizes) + size)))
            size += int(sizes.sum())
        yield _written(target, f"{split}-{written:05d}", form, pieces, tables)


def _documents_of(
    reader: ShardReader, source: int, first: int = 0, last: int | None = None
) -> tuple[pa.Table, Any, Any]:
    """What is kept of the documents [first, last) of one source in a shard, where each begins, and its tokens."""
    table = pa.Table.from_batches([reader.document_table()])
    ends = table["end"].to_numpy()
    chosen = np.flatnonzero(table["source"].to_numpy() == source)[first:last]
    sizes = np.diff(ends, prepend=0)[chosen]
    return table.take(pa.array(chosen)), ends[chosen] - sizes, sizes


def _written(target: Path, stem: str, form: ShardForm, pieces: list[Any], tables: list[pa.Table]) -> ShardInfo:
    info = write_shard(target, stem, form, pieces, pa.concat_tables(tables, promote_options="default"))
    for file in info.files:
        fsync_file(target / file.name)
    return info


def _part(
    path: Path,
    manifest: DatasetManifest,
    target: Path,
    splits: Mapping[Literal["train", "validation"], list[ShardInfo]],
) -> DatasetManifest:
    """The manifest of a part; only documents, bytes and tokens of its sources are counted anew, the rest was lost."""
    put(path / manifest.tokenizer.file.name, target / manifest.tokenizer.file.name)
    fsync_file(target / manifest.tokenizer.file.name)
    counts = np.zeros((len(manifest.sources), 3), dtype=np.int64)
    infos = {split: split_info(shards) for split, shards in splits.items()}
    values = {**dict(manifest), "splits": infos}
    part = DatasetManifest(**values)
    for split in SPLITS:
        for reader in open_shards(target, part, split):
            table = reader.document_table()
            ends, sources = reader.documents()
            lengths = np.diff(ends, prepend=0)
            sizes = table.column(2).to_numpy() if table.num_columns > 2 else np.zeros(len(ends), dtype=np.int64)
            np.add.at(counts, sources.astype(np.int64), np.stack([np.ones_like(lengths), sizes, lengths], axis=1))
    fields = ("name", "licence", "origin", "skipped")
    told = [
        SourceInfo(**{key: getattr(source, key) for key in fields}, documents=row[0], bytes=row[1], tokens=row[2])
        for source, row in zip(manifest.sources, counts.tolist(), strict=True)
    ]
    part = DatasetManifest(**{**values, "sources": told})
    part.save(target)
    return part
