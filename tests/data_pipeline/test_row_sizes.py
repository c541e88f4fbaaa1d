"""Sizes told from lengths and offsets are those of the values themselves."""

from random import Random
from typing import Any

import pyarrow as pa
import pytest

from data_pipeline.sources.row_sizes import row_sizes

TEXTS = ["", "a", "é" * 7, None, "long " * 9, "b"]
LISTS = [["a", "éé"], [], None, [None, "c" * 20], ["d"], [""]]


def size_of(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value.encode() if isinstance(value, str) else value)
    if isinstance(value, dict):
        return sum(map(size_of, value.values()))
    return sum(size_of(item) + 8 for item in value) if isinstance(value, list) else 0


RECORDS = [None if one is None else {"x": text, "y": one, "n": 7} for text, one in zip(TEXTS, LISTS, strict=True)]
RECORD = pa.struct([("x", pa.string()), ("y", pa.list_(pa.string())), ("n", pa.int64())])
COLUMNS: dict[str, Any] = {
    "string": pa.array(TEXTS),
    "large": pa.array(TEXTS, pa.large_string()),
    "view": pa.array(TEXTS, pa.string_view()),
    "binary": pa.array([b"a", b"", None, b"xyz", b"0" * 30, b"\xff"]),
    "binary view": pa.array([b"a", b"", None, b"xyz", b"0" * 30, b"\xff"], pa.binary_view()),
    "fixed": pa.array([b"abc", None] * 3, pa.binary(3)),
    "dictionary": pa.array(TEXTS).dictionary_encode(),
    "list": pa.array(LISTS),
    "large list": pa.array(LISTS, pa.large_list(pa.string())),
    "list view": pa.array(LISTS, pa.list_view(pa.string())),
    "pairs": pa.array([["a", "bb"]] * 6, pa.list_(pa.string(), 2)),
    "struct": pa.array(RECORDS, RECORD),
    "structs": pa.array([RECORDS, [], None, RECORDS[:2], [None], RECORDS[4:]], pa.list_(RECORD)),
    "numbers": pa.array(range(6)),
    "nothing": pa.nulls(6),
    "nothings": pa.array([[None] * 5] * 6, pa.list_(pa.null())),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_sizes_are_those_of_the_values(name: str) -> None:
    batch = pa.record_batch({name: COLUMNS[name], "more": pa.array(Random(0).choices(TEXTS, k=6))})
    for begin in range(6):
        for end in range(begin, 7):
            part = batch.slice(begin, end - begin)
            assert row_sizes(part).tolist() == [size_of(row) for row in part.to_pylist()]


def test_maps() -> None:
    column = pa.array([[("a", "bb"), ("c", None)], None, []], pa.map_(pa.string(), pa.string()))
    for begin in range(3):
        assert row_sizes(pa.record_batch({"m": column}).slice(begin)).tolist() == [20, 0, 0][begin:]


def test_an_index_outside_its_dictionary() -> None:
    for index in (3, -1):
        column = pa.DictionaryArray.from_arrays(pa.array([0, index], pa.int32()), pa.array(["a", "b"]), safe=False)
        with pytest.raises(pa.ArrowInvalid, match="outside its dictionary"):
            row_sizes(pa.record_batch({"text": column}))
