"""Every combination of the axes: what is refused, with which key, and that the mends in the message mend it."""

import functools
import itertools
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.layout import ParallelConfig, check_divides, chunk_rows, padded_vocabulary
from runtime.errors import UserError

AXES: dict[str, tuple[Any, ...]] = {
    "engine": ("megatron", "deepspeed"),
    "tensor": (1, 2),
    "pipeline": (1, 2),
    "virtual_pipeline": (1, 2),
    "context": (1, 2),
    "context_exchange": ("gather", "ring"),
    "sequence": (False, True),
    "zero": (0, 1, 2, 3),
    "overlap": (False, True),
    "offload": ("none", "optimizer", "parameters"),
}
COMBINATIONS = [dict(zip(AXES, values, strict=True)) for values in itertools.product(*AXES.values())]


def complaint(values: dict[str, Any]) -> str:
    """Why `values` are refused, or an empty string."""
    return _complaint(tuple(values.items()))


@functools.cache
def _complaint(values: tuple[tuple[str, Any], ...]) -> str:
    try:
        ParallelConfig.parse(dict(values), "here")
    except UserError as error:
        return str(error)
    return ""


def refused_keys(v: dict[str, Any]) -> set[str]:
    """Keys that take part in something the engines cannot do, from the table of engines."""
    keys = set()
    if v["sequence"] and (v["tensor"] == 1 or v["engine"] == "deepspeed"):
        keys.add("sequence")
    if v["context_exchange"] == "ring" and v["context"] == 1:
        keys.add("context_exchange")
    if v["virtual_pipeline"] > 1 and v["pipeline"] == 1:
        keys.add("virtual_pipeline")
    if v["engine"] == "megatron":
        keys |= {"zero"} if v["zero"] > 1 else set()
        keys |= {"offload"} if v["offload"] != "none" else set()
        keys |= {"overlap"} if v["overlap"] and v["zero"] == 0 else set()
    else:
        keys |= {axis for axis in ("pipeline", "context") if v[axis] > 1}
        keys |= {"zero"} if v["zero"] == 0 else set()
        keys |= {"overlap"} if v["overlap"] else set()
        keys |= {"offload"} if v["offload"] == "parameters" and v["zero"] != 3 else set()
    return keys


def test_exactly_the_impossible_is_refused_and_its_key_named() -> None:
    for values in COMBINATIONS:
        message, keys = complaint(values), refused_keys(values)
        assert bool(message) == bool(keys), values
        if message:
            assert message.startswith("here: ")
            assert "\n" not in message
            named = re.match(r"here: parallel\.(\w+)", message)
            assert named, message
            assert named[1] in keys, (values, message)


def mends(message: str) -> list[dict[str, Any]]:
    """The alternatives that a message offers, each a change of keys."""
    offered = message.rsplit(": ", maxsplit=1)[-1]
    assert offered.startswith("set "), message
    found: list[dict[str, Any]] = []
    for alternative in offered.removeprefix("set ").split(" or "):
        text = dict(re.findall(r"parallel\.(\w+)=(\w+)", alternative))
        assert " ".join(f"parallel.{key}={value}" for key, value in text.items()) == alternative
        change = {key: next(v for v in AXES[key] if str(v).lower() == value) for key, value in text.items()}
        assert change, message
        found.append(change)
    return found


def test_every_offered_mend_is_a_smallest_one_and_works_at_once() -> None:
    """No chain of mends: what is offered is accepted; and no change of fewer keys would be."""
    valid = [values for values in COMBINATIONS if not complaint(values)]
    for values in COMBINATIONS:
        if not (message := complaint(values)):
            continue
        offered = mends(message)
        assert 1 <= len(offered) <= 2
        for change in offered:
            assert not complaint(values | change), (values, change)
            assert all(values[key] != value for key, value in change.items()), (values, change)
        adds = ("tensor", "pipeline", "context", "virtual_pipeline", "sequence", "overlap", "context_exchange")
        modest = (v for v in valid if all(AXES[k].index(v[k]) <= AXES[k].index(values[k]) for k in adds))
        nearest = min(sum(v[key] != values[key] for key in AXES) for v in modest)
        assert {len(change) for change in offered} == {nearest}, (values, offered)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"tensor": 0}, "tensor"),
        ({"pipeline": -1}, "pipeline"),
        ({"context": 1.5}, "context"),
        ({"virtual_pipeline": "two"}, "virtual_pipeline"),
        ({"zero": 4}, "zero"),
        ({"zero": -1}, "zero"),
        ({"engine": "fsdp"}, "engine"),
        ({"recompute": "some"}, "recompute"),
        ({"context_exchange": "star"}, "context_exchange"),
        ({"offload": "disk"}, "offload"),
        ({"sequence": "perhaps"}, "sequence"),
        ({"tensors": 2}, "unknown key 'tensors' .did you mean 'tensor'"),
    ],
)
def test_wrong_values_name_the_key(change: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=f"^parallel: .*{key}"):
        ParallelConfig.parse(change, "parallel")


axis_sizes = st.fixed_dictionaries(
    {axis: st.sampled_from([1, 2, 3, 4, 6]) for axis in ("tensor", "pipeline", "context")}
)


@settings(deadline=None)
@given(axis_sizes, st.integers(1, 96))
def test_data_size_is_what_remains_of_the_world(sizes: dict[str, int], world: int) -> None:
    layout = ParallelConfig(**sizes)
    product = sizes["tensor"] * sizes["pipeline"] * sizes["context"]
    assert layout.model_size == product
    if world % product == 0:
        assert layout.data_size(world) * product == world
        return
    with pytest.raises(UserError, match=f"does not divide the world of {world} processes") as caught:
        layout.data_size(world)
    message = str(caught.value)
    for axis, size in sizes.items():
        assert (f"parallel.{axis}={size}" in message.split(":", maxsplit=1)[0]) == (size > 1)
    assert f"start a multiple of {product} processes" in message


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(1, 64))
def test_check_divides_offers_the_largest_divisor(value: int, by: int) -> None:
    if value % by == 0:
        check_divides("model.heads", value, "parallel.tensor", by)
        return
    with pytest.raises(UserError) as caught:
        check_divides("model.heads", value, "parallel.tensor", by)
    message = str(caught.value)
    assert f"parallel.tensor={by} does not divide model.heads={value}" in message
    offered = int(message.rsplit("=", 1)[1])
    assert value % offered == 0
    assert offered == max(n for n in range(1, by) if value % n == 0)


def test_padded_vocabulary_is_the_next_multiple() -> None:
    assert [padded_vocabulary(131, n) for n in (1, 2, 4, 8, 131, 200)] == [131, 132, 132, 136, 131, 200]


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_chunks_of_all_rows_are_as_few_as_can_be_and_waste_less_than_a_row_each(most: int, positions: int) -> None:
    rows = chunk_rows(most, positions)
    chunks = -(-positions // rows)
    assert 1 <= rows <= most
    assert chunks == -(-positions // most)
    assert 0 <= chunks * rows - positions < chunks


@pytest.mark.parametrize(
    ("values", "world", "name"),
    [
        ({}, 1, "megatron single zero1"),
        ({}, 4, "megatron dp4 zero1"),
        ({"tensor": 2, "zero": 0}, 8, "megatron tp2 dp4 zero0"),
        ({"tensor": 2, "sequence": True}, 2, "megatron tp2 sp zero1"),
        (
            {"tensor": 2, "pipeline": 2, "virtual_pipeline": 3, "context": 2, "sequence": True},
            16,
            "megatron tp2 pp2 v3 cp2 dp2 sp zero1",
        ),
        ({"context": 2, "context_exchange": "ring"}, 2, "megatron cp2 ring zero1"),
        ({"engine": "deepspeed", "zero": 3}, 2, "deepspeed dp2 zero3"),
    ],
)
def test_describe(values: dict[str, Any], world: int, name: str) -> None:
    assert ParallelConfig.parse(values, "parallel").describe(world) == name


def test_different_layouts_have_different_names() -> None:
    valid = [
        ParallelConfig(**v) for v in COMBINATIONS if not complaint(v) and not v["overlap"] and v["offload"] == "none"
    ]
    names = {layout.describe(48) for layout in valid}
    assert len(names) == len(valid) > 20


def test_chunks_count_pieces_of_depth() -> None:
    assert ParallelConfig(pipeline=4, virtual_pipeline=3).chunks == 12
    assert ParallelConfig().chunks == 1
