"""Changes of weights and sources that run dry: every rank once, exact counts, and a past that stays."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.mixture import BLOCK, Mixture
from data_pipeline.plan import SamplePlan, Segment

NAMES = ["a", "b", "c", "d"]
weights = st.dictionaries(st.integers(0, 3), st.sampled_from([1.0, 2.0, 0.3, 0.01, 7.5]), min_size=1)
lengths = st.one_of(st.sampled_from([1, BLOCK - 1, BLOCK, 2 * BLOCK]), st.integers(1, 5000))
caps = st.lists(st.one_of(st.none(), st.integers(1, 4000)), min_size=4, max_size=4)


@st.composite
def segments(draw: st.DrawFn) -> list[Segment]:
    found, start = [], 0
    for _ in range(draw(st.integers(1, 4))):
        found.append(Segment(start, draw(weights)))
        start += draw(lengths)
    return found


@given(segments=segments(), caps=caps, seed=st.integers(0, 2**32), cuts=st.lists(st.integers(0, 9000), max_size=4))
@settings(max_examples=60, deadline=None)
def test_every_rank_once_and_counts_in_closed_form(
    segments: list[Segment], caps: list[int | None], seed: int, cuts: list[int]
) -> None:
    plan = SamplePlan(segments, caps, seed)
    samples = 9000 if plan.end is None else min(plan.end, 9000)
    sources, ranks = plan.draw(0, 9000)
    assert len(sources) == len(ranks) == samples
    for source, cap in enumerate(caps):
        given_ranks = np.sort(ranks[sources == source])
        assert len(np.unique(given_ranks)) == len(given_ranks)
        assert cap is None or len(given_ranks) == 0 or given_ranks[-1] < cap
    for cut in {0, samples, *(c for c in cuts if c <= samples)}:
        assert plan.given(cut) == np.bincount(sources[:cut], minlength=4).tolist()
        before, after = plan.draw(0, cut), plan.draw(cut, samples)
        assert np.array_equal(np.concatenate([before[0], after[0]]), sources)
        assert np.array_equal(np.concatenate([before[1], after[1]]), ranks)
    if plan.end is not None and plan.end <= 9000:
        last = [segment for segment in segments if segment.start <= plan.end][-1]
        assert all(plan.given(samples)[source] == caps[source] for source in last.weights)


def test_one_segment_is_the_plain_mixture() -> None:
    plan, mixture = SamplePlan([Segment(0, {0: 0.7, 1: 0.2, 2: 0.1})], [None] * 3, 5), Mixture([0.7, 0.2, 0.1], 5)
    sources, ranks = plan.draw(0, 3 * BLOCK)
    whole = [np.concatenate(parts) for parts in zip(*(mixture.block(b) for b in range(3)), strict=True)]
    assert np.array_equal(sources, whole[0])
    assert np.array_equal(ranks, whole[1])


def test_counts_are_within_one_of_the_weights_in_every_block_of_every_segment() -> None:
    starts = [0, 5000, 5000 + 7 * BLOCK]
    shares = [{0: 3.0, 1: 1.0}, {0: 1.0, 1: 1.0, 2: 5.0}, {2: 1.0, 3: 0.37}]
    plan = SamplePlan([Segment(s, w) for s, w in zip(starts, shares, strict=True)], [None] * 4, 1)
    for start, share, stop in zip(starts, shares, [5000, starts[2], starts[2] + 20 * BLOCK], strict=True):
        base = plan.given(start)
        total = sum(map(Fraction, share.values()))
        for samples in range(0, stop - start + 1, BLOCK):
            found = plan.given(start + samples)
            for source, weight in share.items():
                assert abs(found[source] - base[source] - Fraction(weight) / total * samples) < 1
            assert sum(found) == start + samples


def test_a_source_that_runs_dry_leaves_the_others_their_weights() -> None:
    plan = SamplePlan([Segment(0, {0: 2.0, 1: 1.0, 2: 1.0})], [700, None, None], 3)
    sources, _ = plan.draw(0, 40 * BLOCK)
    dry = int(np.flatnonzero(sources == 0)[-1]) + 1
    phase = plan.phases[1]
    assert plan.given(40 * BLOCK)[0] == 700
    assert dry <= phase.start
    assert abs(phase.start - 1400) <= 4  # half of all samples are of source 0
    assert all(
        abs(count - phase.start * share) < 2
        for count, share in zip(plan.given(phase.start), [0.5, 0.25, 0.25], strict=True)
    )
    for blocks in range(1, 30):
        found = plan.given(phase.start + blocks * BLOCK)
        assert all(abs(found[s] - plan.given(phase.start)[s] - blocks * BLOCK / 2) < 1 for s in (1, 2))


def test_a_single_source_with_a_cap_ends_there() -> None:
    plan = SamplePlan([Segment(0, {0: 1.0})], [2500], 0)
    assert plan.end == 2500
    assert plan.draw(0, 9999)[1].tolist() == list(range(2500))
    assert SamplePlan([Segment(0, {0: 1.0})], [2 * BLOCK], 0).end == 2 * BLOCK


@pytest.mark.parametrize("start", [1, 1000, BLOCK, 5 * BLOCK + 17])
def test_a_segment_added_later_leaves_the_past_alone(start: int) -> None:
    caps = [None, 9000, None, None]
    first = Segment(0, {0: 3.0, 1: 1.0, 2: 0.2})
    old, new = SamplePlan([first], caps, 9), SamplePlan([first, Segment(start, {3: 1.0, 0: 1.0})], caps, 9)
    for a, b in zip(old.draw(0, start), new.draw(0, start), strict=True):
        assert np.array_equal(a, b)
    assert old.identity(start, NAMES) == new.identity(start, NAMES)
    assert old.identity(start + 1, NAMES) != new.identity(start + 1, NAMES)
    sources, ranks = new.draw(0, start + 3 * BLOCK)
    taken = np.sort(ranks[sources == 0])
    assert np.array_equal(taken, np.arange(len(taken)))  # nothing that the cut block passed over is lost


def test_a_raised_cap_changes_only_what_comes_after_it_would_have_bitten() -> None:
    first = Segment(0, {0: 1.0, 1: 1.0})
    old, new = SamplePlan([first], [5000, None], 2), SamplePlan([first], [6000, None], 2)
    blocks = 5000 // (BLOCK // 2)
    begin = blocks * BLOCK  # of the block in which it bites
    assert all(np.array_equal(a, b) for a, b in zip(old.draw(0, begin), new.draw(0, begin), strict=True))
    assert old.identity(begin, NAMES) == new.identity(begin, NAMES)
    assert old.identity(begin + 1, NAMES) != new.identity(begin + 1, NAMES)


def test_identity_of_a_plain_run_is_its_sources_and_weights() -> None:
    """As it always was: checkpoints of earlier versions are continued."""
    plan = SamplePlan([Segment(0, {0: 1.0, 1: 2.5})], [None, None], 0)
    assert plan.identity(10**9, NAMES) == plan.identity(0, NAMES) == [["a", 1.0], ["b", 2.5]]


def test_the_plan_of_trillions_is_small() -> None:
    plan = SamplePlan([Segment(0, {0: 1.0, 1: 2.0}), Segment(10**9, {0: 1.0, 2: 1.0})], [10**8 * 5, None, None], 0)
    assert len(plan.phases) == 3
    begin = 5 * 10**12
    sources, ranks = plan.draw(begin, begin + 10)
    assert set(sources.tolist()) == {2}
    assert ranks.min() > 10**12


@given(segments=segments(), caps=caps, seed=st.integers(0, 2**32), windows=st.integers(1, 700))
@settings(max_examples=40, deadline=None)
def test_what_every_epoch_has_given_is_known_exactly(
    segments: list[Segment], caps: list[int | None], seed: int, windows: int
) -> None:
    plan = SamplePlan(segments, caps, seed)
    for cut in (1, 700, BLOCK, 5000):
        sources, ranks = plan.draw(0, cut)
        for source, supply in enumerate(plan.supplies(len(sources))):
            epochs, counts = np.unique(ranks[sources == source] // windows, return_counts=True)
            assert supply.given_by_epoch(windows) == dict(zip(epochs.tolist(), counts.tolist(), strict=True))
