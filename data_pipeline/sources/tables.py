"""Parquet files and Arrow IPC files or streams: records whose fields are columns."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.fates import Fate
from data_pipeline.sources.config import Storage
from data_pipeline.sources.storage import File, open_file
from data_pipeline.sources.streams import Damaged
from runtime.errors import UserError, one_line

_ROWS = 1024


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
    """The rows of parts [begin, end) as dictionaries of `columns`, or the Fate of one that is not UTF-8.

    Raises Damaged, and UserError naming the columns that there are if the first of `columns` is not there.
    """
    with _as_damage(), open_file(file, storage) as source:
        if kind == "parquet":
            table = pq.ParquetFile(source)
            chosen = _choose(file, table.schema_arrow.names, columns)
            batches = table.iter_batches(_ROWS, row_groups=list(range(begin, end)), columns=chosen)
        else:
            batches, names = _arrow_batches(source, begin, end)
            chosen = _choose(file, names, columns)
        for batch in batches:
            yield from _rows(batch.select(chosen), limit)


def _choose(file: File, names: list[str], columns: list[str]) -> list[str]:
    if columns[0] not in names:
        raise UserError(f"{file.path} has no column {columns[0]!r}: its columns are {', '.join(names)}, set `field`")
    return [column for column in columns if column in names]


def _arrow_batches(source: Any, begin: int, end: int) -> tuple[Iterator[Any], list[str]]:
    if not _is_ipc_file(source):
        stream = pa.ipc.open_stream(source)
        return iter(stream), stream.schema.names
    reader = pa.ipc.open_file(source)
    return (reader.get_batch(number) for number in range(begin, end)), reader.schema.names


def _rows(batch: Any, limit: int) -> Iterator[Any]:
    for begin in range(0, batch.num_rows, _ROWS):
        part = batch.slice(begin, _ROWS)
        part.validate()  # a damaged header must not lead outside the file
        try:
            rows = part.to_pylist()
        except UnicodeDecodeError:
            rows = [_row(part, number) for number in range(part.num_rows)]
        first = batch.schema.names[0]
        for row in rows:
            large = isinstance(row, dict) and isinstance(row[first], str) and len(row[first]) > limit
            yield Fate.OVERSIZED if large else row


def _row(batch: Any, number: int) -> Any:
    try:
        return batch.slice(number, 1).to_pylist()[0]
    except UnicodeDecodeError:
        return Fate.UNDECODABLE
