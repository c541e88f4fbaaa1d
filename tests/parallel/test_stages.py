"""Cutting layers into stages, against every possible cut."""

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.stages import Stage, split_stages


def costs(cuts: Sequence[int], embedding: float, head: float) -> list[float]:
    runs = [float(b - a) for a, b in itertools.pairwise(cuts)]
    runs[0] += embedding
    runs[-1] += head
    return runs


@settings(deadline=None)
@given(st.integers(1, 9), st.data())
def test_no_cut_is_better(layers: int, data: st.DataObject) -> None:
    chunks = data.draw(st.integers(1, layers))
    embedding, head = data.draw(st.sampled_from([0.0, 0.5, 2.0])), data.draw(st.sampled_from([0.0, 0.3, 1.0, 4.0]))
    stages = split_stages(layers, chunks, embedding, head)
    assert [layer for stage in stages for layer in stage.layers] == list(range(layers))
    assert all(len(stage.layers) >= 1 for stage in stages)
    assert [stage.embeds for stage in stages] == [True] + [False] * (chunks - 1)
    assert [stage.has_head for stage in stages] == [False] * (chunks - 1) + [True]
    found = costs([stages[0].first, *(s.last for s in stages)], embedding, head)
    every = [
        costs((0, *inner, layers), embedding, head) for inner in itertools.combinations(range(1, layers), chunks - 1)
    ]
    assert max(found) == min(max(c) for c in every)


def test_a_head_as_dear_as_two_layers_takes_their_place() -> None:
    assert [len(s.layers) for s in split_stages(10, 4, head_cost=2.0)] == [3, 3, 3, 1]
    assert [len(s.layers) for s in split_stages(8, 4)] == [2, 2, 2, 2]
    assert split_stages(5, 1) == [Stage.whole(5)]


@pytest.mark.parametrize("chunks", [0, 4])
def test_too_many_or_no_chunks_break_an_invariant(chunks: int) -> None:
    with pytest.raises(AssertionError):
        split_stages(3, chunks)
