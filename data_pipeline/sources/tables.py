"""Parquet files and Arrow IPC files or streams: records whose fields are columns."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.fates import Fate
from data_pipeline.sources.config import Storage
from data_pipeline.sources.row_sizes import row_sizes
from data_pipeline.sources.storage import File, open_file
from data_pipeline.sources.streams import FREE_BYTES, LARGEST_RATIO, Damaged
from runtime.errors import UserError, one_line

_ROWS = 1024
_SLICE_BYTES = 1 << 24
"""Rows of more are not made into Python objects together."""
_BATCH_BYTES = 1 << 26
"""Rows of a parquet file are decoded together only if each could be the largest without passing this."""


@contextmanager
def _as_damage() -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise Damaged(one_line(error)) from None


def count_parts(file: File, storage: Storage, kind: str) -> int:
    """Row groups of a parquet file, or record batches of an Arrow file (a stream counts as one). Raises Damaged."""
    with _as_damage(), open_file(file, storage) as source:
        if kind == "parquet":
            return int(pq.ParquetFile(source).num_row_groups)
        return int(pa.ipc.open_file(source).num_record_batches) if _is_ipc_file(source) else 1


def _is_ipc_file(source: Any) -> bool:
    magic = source.read(6)
    source.seek(0)
    return bool(magic == b"ARROW1")


def records(
    file: File, storage: Storage, kind: str, begin: int, end: int, columns: list[str], limit: int
) -> Iterator[Any]:
    """The rows of parts [begin, end) with the top-level columns of `columns` (`a` for `a.b`), as dictionaries.

    Instead of a row that is not UTF-8, or whose texts are more than `limit` bytes together, its Fate. Raises Damaged,
    and UserError naming the columns that there are if the first of `columns` is not there.
    """
    with _as_damage(), open_file(file, storage) as source:
        if kind == "parquet":
            table = pq.ParquetFile(source)
            chosen = _choose(file, table.schema_arrow, columns)
            batches = _parquet_batches(table, begin, end, chosen)
        else:
            batches, schema = _arrow_batches(source, begin, end)
            chosen = _choose(file, schema, columns)
        for batch in batches:
            yield from _rows(batch.select(chosen), limit)
            del batch  # before the next one is decoded


def _choose(file: File, schema: Any, columns: list[str]) -> list[str]:
    """The columns to be read, each once."""
    names: list[str] = schema.names
    chosen: dict[str, None] = {}
    for column in columns:
        top = column if column in names else column.partition(".")[0]
        if top in names and _holds(schema.field(names.index(top)).type, column[len(top) + 1 :]):
            chosen[top] = None
        elif column == columns[0]:
            raise UserError(f"{file.path} has no column {column!r}: its columns are {', '.join(names)}, set `field`")
    return list(chosen)


def _holds(kind: Any, path: str) -> bool:
    """Whether a value of this type has the field `path`, as `look_up` finds it."""
    if not path:
        return True
    names = [kind.field(number).name for number in range(kind.num_fields)] if pa.types.is_struct(kind) else []
    if path in names:
        return True
    first, _, rest = path.partition(".")
    return first in names and _holds(kind.field(names.index(first)).type, rest)


def _parquet_batches(table: Any, begin: int, end: int, chosen: list[str]) -> Iterator[Any]:
    """Row groups, few rows at a time where one may be large: a value stored once can stand in every row."""
    for number in range(begin, end):
        group = table.metadata.row_group(number)
        columns = [group.column(n) for n in range(group.num_columns)]
        wanted = [c for c in columns if any(f"{c.path_in_schema}.".startswith(f"{name}.") for name in chosen)]
        size = sum(column.total_uncompressed_size for column in wanted)
        packed = sum(column.total_compressed_size for column in wanted)
        if size > LARGEST_RATIO * packed + FREE_BYTES:
            raise Damaged(f"it unpacks to more than {LARGEST_RATIO} times its size, which text does not")
        rows = min(max(_BATCH_BYTES // max(size, 1), 1), _ROWS)
        yield from _together(table.iter_batches(rows, row_groups=[number], columns=chosen))


def _together(batches: Iterable[Any]) -> Iterator[Any]:
    """Small batches joined: each costs as much as many rows."""
    held: list[Any] = []
    rows = size = 0
    for batch in batches:
        rows, size = rows + batch.num_rows, size + batch.nbytes
        held.append(batch)
        del batch  # the next one is decoded while this name would still hold it
        if rows >= _ROWS or size > _SLICE_BYTES:
            yield _joined(held)
            rows = size = 0
    if held:
        yield _joined(held)


def _joined(held: list[Any]) -> Any:
    """One batch of all, which are then held no longer."""
    joined = pa.concat_batches(held) if len(held) > 1 else held[0]
    held.clear()
    return joined


def _arrow_batches(source: Any, begin: int, end: int) -> tuple[Iterator[Any], Any]:
    if not _is_ipc_file(source):
        stream = pa.ipc.open_stream(source)
        return iter(stream), stream.schema
    reader = pa.ipc.open_file(source)
    return (reader.get_batch(number) for number in range(begin, end)), reader.schema


def _rows(batch: Any, limit: int) -> Iterator[Any]:
    batch.validate()  # a damaged header must not lead outside the file
    sizes = row_sizes(batch)
    total = np.cumsum(sizes)
    large = [*np.flatnonzero(sizes > limit).tolist(), batch.num_rows]
    begin = 0
    for stop in large:
        while begin < stop:
            room = int(np.searchsorted(total, total[begin] - sizes[begin] + _SLICE_BYTES, side="right"))
            end = min(max(room, begin + 1), begin + _ROWS, stop)
            yield from _values(batch.slice(begin, end - begin))
            begin = end
        if stop < batch.num_rows:
            yield Fate.OVERSIZED
            begin += 1


def _values(batch: Any) -> list[Any]:
    try:
        rows: list[Any] = batch.to_pylist()
    except UnicodeDecodeError:
        return [_row(batch, number) for number in range(batch.num_rows)]
    return rows


def _row(batch: Any, number: int) -> Any:
    try:
        return batch.slice(number, 1).to_pylist()[0]
    except UnicodeDecodeError:
        return Fate.UNDECODABLE
