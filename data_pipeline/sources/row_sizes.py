"""How large the rows of a table would be in memory, told from lengths and offsets alone."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Sizes = npt.NDArray[np.int64]
_ITEM = 8  # bytes of a pointer: what an item of a list takes at least
_VIEWS = (pa.types.is_string_view, pa.types.is_binary_view)
_LENGTHS = (
    pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary,
    pa.types.is_fixed_size_binary,
)  # fmt: skip
_RANGES = (pa.types.is_list_view, pa.types.is_large_list_view)
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_map)


def row_sizes(batch: pa.RecordBatch) -> Sizes:
    """Bytes of the texts and binary values of each row and 8 for every item of its lists, shape [rows].

    Raises pyarrow's ArrowInvalid for an index that leads outside its dictionary.
    """
    return sum((_sizes(column) for column in batch.columns), np.zeros(batch.num_rows, dtype=np.int64))


def _sizes(array: Any) -> Sizes:
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return _sizes(array.storage)
    if pa.types.is_nested(kind):
        return _of_items(array)
    if pa.types.is_dictionary(kind):
        return _of_dictionary(array)
    if any(test(kind) for test in _LENGTHS):
        return _numbers(pc.binary_length(array))
    if any(test(kind) for test in _VIEWS):
        # a view is 16 bytes long and begins with the length of its text
        views = np.frombuffer(array.buffers()[1], dtype="<i4").reshape(-1, 4)
        return np.where(_valid(array), views[array.offset : array.offset + len(array), 0], 0).astype(np.int64)
    return np.zeros(len(array), dtype=np.int64)


def _of_items(array: Any) -> Sizes:
    kind = array.type
    if pa.types.is_struct(kind):
        return sum((_sizes(child) for child in array.flatten()), np.zeros(len(array), dtype=np.int64))
    if pa.types.is_fixed_size_list(kind):
        items = array.values.slice(array.offset * kind.list_size, len(array) * kind.list_size)
        return _sizes(items).reshape(len(array), kind.list_size).sum(axis=1) + _ITEM * kind.list_size
    if any(test(kind) for test in _LISTS):
        borders = array.offsets.to_numpy().astype(np.int64)
        return _of_ranges(array, borders[:-1], borders[1:])
    if any(test(kind) for test in _RANGES):
        begins = array.offsets.to_numpy().astype(np.int64)
        return _of_ranges(array, begins, begins + array.sizes.to_numpy())
    return np.zeros(len(array), dtype=np.int64)


def _numbers(array: Any) -> Sizes:
    return pc.fill_null(array, 0).to_numpy(zero_copy_only=False).astype(np.int64)


def _valid(array: Any) -> npt.NDArray[np.bool_]:
    return pc.is_valid(array).to_numpy(zero_copy_only=False)


def _of_dictionary(array: Any) -> Sizes:
    places, sizes = _numbers(array.indices), np.append(_sizes(array.dictionary), 0)
    if len(places) and not 0 <= places.min() <= places.max() < max(len(sizes) - 1, 1):
        raise pa.ArrowInvalid("an index leads outside its dictionary")
    return sizes[places]


def _of_ranges(array: Any, begins: Sizes, ends: Sizes) -> Sizes:
    items = array.values
    total = np.append(0, np.cumsum(_sizes(items) + _ITEM))
    return np.where(_valid(array), total[ends] - total[begins], 0)
