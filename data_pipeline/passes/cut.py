"""Last pass: encoded parts joined to one token stream per split, and cut into shards of whole documents."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_pipeline.manifest import SplitInfo
from data_pipeline.passes.encode import table_file, token_file
from data_pipeline.passes.workshop import Unit, Workshop
from data_pipeline.shard_table import ShardInfo, ShardTable
from data_pipeline.shards import ShardForm, write_shard
from runtime.files import read_json, write_json

INFO = "shard.json"


class Segment(NamedTuple):
    """Documents [first, last) of an encoded part."""

    directory: Path
    first: int
    last: int


@dataclass(frozen=True)
class CutTask:
    """The segments of a shard, one after the other."""

    stem: str
    split: str
    segments: list[Segment]
    form: ShardForm


def plan_shards(encoded: Sequence[Path], split: str, shard_tokens: int, together: int = 1) -> list[list[Segment]]:
    """Segments of each shard, see `cut_documents`."""
    shards = cut_documents((_ends(directory, split) for directory in encoded), shard_tokens, together)
    return [[Segment(encoded[part], first, last) for part, first, last in shard] for shard in shards]


def cut_documents(
    parts: Iterable[npt.NDArray[np.int64]], shard_tokens: int, together: int = 1
) -> list[list[tuple[int, int, int]]]:
    """What each shard holds of parts whose documents end at these tokens: (part, first document, last, exclusive).

    A shard ends with the documents that bring it to `shard_tokens`. Of every `together` documents, none is parted from
    the others.
    """
    shards: list[list[tuple[int, int, int]]] = []
    current: list[tuple[int, int, int]] = []
    size = 0
    for part, ends in enumerate(parts):
        first, base = 0, 0
        while first < len(ends):
            last = int(np.searchsorted(ends, base + shard_tokens - size)) + 1
            last += -last % together
            if last > len(ends):
                current.append((part, first, len(ends)))
                size += int(ends[-1]) - base
                break
            shards.append([*current, (part, first, last)])
            current, size, first, base = [], 0, last, int(ends[last - 1])
    return [*shards, current] if current else shards


def _table(directory: Path, split: str) -> Any:
    return pa.ipc.open_file(pa.memory_map(str(table_file(directory, split)))).read_all()


def _ends(directory: Path, split: str) -> npt.NDArray[np.int64]:
    ends: npt.NDArray[np.int64] = _table(directory, split)["end"].to_numpy()
    return ends


def count_tokens(directory: Path, split: str) -> int:
    """Tokens of a split in an encoded part."""
    ends = _ends(directory, split)
    return int(ends[-1]) if len(ends) else 0


def cut_shards(
    encoded: Sequence[Path],
    split: str,
    form: ShardForm,
    workshop: Workshop,
    first_number: int = 0,
    together: int = 1,
) -> tuple[SplitInfo, list[Path]]:
    """What the split of a manifest says of the shards, and the directories that hold each one's files."""
    units = []
    for number, segments in enumerate(plan_shards(encoded, split, form.shard_tokens, together), first_number):
        task = CutTask(f"{split}-{number:05d}", split, segments, form)
        units.append(Unit([task.stem, segments, form.dtype, form.batch_tokens, form.compression], task))
    places = workshop.run(f"shards-{split}", cut_shard, units)
    infos = [ShardInfo.parse(read_json(place / INFO), str(place / INFO)) for place in places]
    return split_info(infos), places


def split_info(shards: list[ShardInfo]) -> SplitInfo:
    """The shards of a split and their sums."""
    tokens, documents = (sum(getattr(shard, what) for shard in shards) for what in ("tokens", "documents"))
    return SplitInfo(tokens=tokens, documents=documents, shards=ShardTable.of(shards))


def cut_shard(task: CutTask, directory: Path) -> None:
    """Unit: write one shard."""
    tables, base = [], 0
    for segment in task.segments:
        table = _table(segment.directory, task.split)
        before = table["end"][segment.first - 1].as_py() if segment.first else 0
        table = table.slice(segment.first, segment.last - segment.first)
        ends = table["end"].to_numpy() - before + base
        base = int(ends[-1])
        tables.append(table.set_column(0, table.schema.field(0), pa.array(ends)))
    info = write_shard(directory, task.stem, task.form, _tokens(task), pa.concat_tables(tables))
    write_json(directory / INFO, info.model_dump(mode="json"))


def _tokens(task: CutTask) -> Iterator[Any]:
    for segment in task.segments:
        ends = _ends(segment.directory, task.split)
        begin = int(ends[segment.first - 1]) if segment.first else 0
        stream = np.memmap(token_file(segment.directory, task.split), dtype=task.form.dtype, mode="r")
        yield stream[begin : int(ends[segment.last - 1])]
