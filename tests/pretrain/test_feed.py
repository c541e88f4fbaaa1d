"""The same global batch for every cut into data ranks, context ranks and micro-batches, and what digests notice."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pretrain.batch import MicroBatch
from pretrain.feed import Feed, StepBatch, collate
from pretrain.objectives.base import Sample
from tests.support.feeds import samples_of, whole_feed
from tests.support.tiny import CountedTokens, tiny_config

WORD = 1 << 64
GLOBAL_BATCH, SEQUENCE = 8, 32
CUTS = [(1, 8), (1, 1), (2, 4), (2, 2), (4, 2), (4, 1), (8, 1)]  # data ranks, micro-batch

Row = tuple[int, int, int, float, int]  # sample, position, target, weight, level bin


def rows_of(batch: MicroBatch, first_sample: int, first_position: int) -> list[Row]:
    size = batch.inputs_BS.shape[0]
    columns = (batch.rows_R, batch.targets_R, batch.weights_R, batch.levels_R)
    return [
        (first_sample + row % size, first_position + row // size, target, weight, level)
        for row, target, weight, level in zip(*(column.tolist() for column in columns), strict=True)
    ]


def step_of(
    objective: str, step: int, ranks: int, micro: int, context: int = 1
) -> tuple[list[StepBatch], set[Row], Any]:
    """Every rank's share, the union of counting rows in global terms, and the input ids of the global batch."""
    config = tiny_config(objective)
    shares, rows = [], []
    inputs = np.full((GLOBAL_BATCH, SEQUENCE), -1)
    part = SEQUENCE // context
    for data_rank, context_rank in itertools.product(range(ranks), range(context)):
        place = {"data_rank": data_rank, "data_size": ranks, "context_rank": context_rank, "context_size": context}
        share = whole_feed(config, micro_batch=micro, **place).step(step)
        assert len(share.micro_batches) == GLOBAL_BATCH // (ranks * micro)
        shares.append(share)
        for k, batch in enumerate(share.micro_batches):
            first = data_rank * GLOBAL_BATCH // ranks + k * micro
            assert batch.inputs_BS.shape == (micro, part)
            inputs[first : first + micro, context_rank * part : (context_rank + 1) * part] = batch.inputs_BS
            rows += rows_of(batch, first, context_rank * part)
    assert len(rows) == len(set(rows))
    return shares, set(rows), inputs


def digest_of(shares: list[StepBatch]) -> tuple[int, int]:
    return sum(s.digest[0] for s in shares) % WORD, sum(s.digest[1] for s in shares) % WORD


@pytest.mark.parametrize("objective", ["masked", "autoregressive"])
@pytest.mark.parametrize(("ranks", "micro"), CUTS)
def test_global_batch_does_not_depend_on_the_cut(objective: str, ranks: int, micro: int) -> None:
    for step in (0, 1, 17):
        whole, expected_rows, expected_inputs = step_of(objective, step, 1, GLOBAL_BATCH)
        shares, rows, inputs = step_of(objective, step, ranks, micro)
        assert digest_of(shares) == whole[0].digest
        assert sum(share.tokens for share in shares) == whole[0].tokens
        assert rows == expected_rows
        assert np.array_equal(inputs, expected_inputs)


def test_what_comes_next_is_told_before_it_is_read() -> None:
    """Of the data rank's own samples: this step, and the next 64 samples."""
    told: list[int] = []
    feed = whole_feed(tiny_config(), micro_batch=2, data_rank=1, data_size=2, prefetch=told.extend)
    share = feed.step(3)
    assert told == [step * GLOBAL_BATCH + j for step in range(3, 3 + 1 + 16) for j in range(4, 8)]
    assert share.digest == replace(feed, prefetch=None).step(3).digest


@pytest.mark.parametrize("context", [2, 4])
def test_context_ranks_have_parts_of_the_same_samples(context: int) -> None:
    _, expected_rows, expected_inputs = step_of("masked", 3, 1, GLOBAL_BATCH)
    shares, rows, inputs = step_of("masked", 3, 2, 2, context)
    assert rows == expected_rows
    assert np.array_equal(inputs, expected_inputs)
    for data_rank in range(2):  # context ranks of a data rank agree on digest, tokens and lengths
        peers = shares[data_rank * context : (data_rank + 1) * context]
        assert len({(peer.digest, peer.tokens) for peer in peers}) == 1
        for batches in zip(*(peer.micro_batches for peer in peers), strict=True):
            lengths = [None if b.lengths_B is None else b.lengths_B.tolist() for b in batches]
            assert all(found == lengths[0] for found in lengths)


def test_steps_can_be_asked_in_any_order_and_again() -> None:
    config = tiny_config()
    forward = [whole_feed(config).step(step).digest for step in range(6)]
    feed = whole_feed(config)
    assert [feed.step(step).digest for step in reversed(range(6))] == forward[::-1]
    assert whole_feed(config).step(4).digest == forward[4]  # as a continued run does
    assert len(set(forward)) == 6


def test_samples_follow_the_global_index() -> None:
    config = tiny_config(objective="autoregressive")
    batch = whole_feed(config, data_rank=1, data_size=2).step(5).micro_batches[0]
    for b in range(2):
        tokens = CountedTokens(SEQUENCE).tokens(5 * GLOBAL_BATCH + 4 + b)
        assert batch.inputs_BS[b, 1:].tolist() == tokens[:-1].tolist()


def sample(index: int = 0) -> Sample:
    config = tiny_config()
    return samples_of(config).prepare(CountedTokens(SEQUENCE).tokens(index), index)


def changed_samples(s: Sample) -> list[Sample]:
    """Every single-element change of a sample."""
    changes: list[Sample] = []
    for name in ("inputs", "positions", "targets", "weights"):
        array = getattr(s, name)
        for i in range(len(array)):
            other = array.copy()
            other[i] += 1
            change: dict[str, Any] = {name: other}
            changes.append(replace(s, **change))
    shorter: dict[str, Any] = {"positions": s.positions[:-1], "targets": s.targets[:-1], "weights": s.weights[:-1]}
    changes.append(replace(s, **shorter))  # one mask less
    changes.append(replace(s, level=float(np.nextafter(s.level, 1.0))))
    changes.append(replace(s, length=s.length - 1))
    return changes


def test_digest_notices_every_change_of_a_sample() -> None:
    original = sample()
    digests = [original.digest(0), *(other.digest(0) for other in changed_samples(original))]
    assert len(set(digests)) == len(digests)
    assert replace(original, inputs=original.inputs.copy()).digest(0) == original.digest(0)
    assert all(0 <= word < WORD for word in original.digest(0))


def test_digest_notices_that_two_samples_changed_places() -> None:
    one, other = sample(0), sample(1)

    def batch(first: Sample, second: Sample) -> list[int]:
        return [(a + b) % WORD for a, b in zip(first.digest(0), second.digest(1), strict=True)]

    assert batch(one, other) != batch(other, one)
    assert one.digest(0) != one.digest(1)


def hand_made(positions: list[int], length: int, level: float) -> Sample:
    where = np.array(positions, dtype=np.int64)
    return Sample(np.arange(4), where, where + 10, np.full(len(where), 2.0, dtype=np.float32), level, length)


def test_collate_lays_rows_out_by_position_then_sample() -> None:
    batch = collate([hand_made([0, 3], 4, 0.05), hand_made([2], 4, 0.95), hand_made([], 4, 0.5)])
    assert batch.inputs_BS.tolist() == [[0, 1, 2, 3]] * 3
    assert batch.rows_R.tolist() == [0 * 3 + 0, 3 * 3 + 0, 2 * 3 + 1]
    assert batch.targets_R.tolist() == [10, 13, 12]
    assert batch.levels_R.tolist() == [0, 0, 9]
    assert batch.lengths_B is None
    dtypes = (batch.inputs_BS.dtype, batch.rows_R.dtype, batch.targets_R.dtype, batch.weights_R.dtype)
    assert dtypes == (torch.int64, torch.int64, torch.int64, torch.float32)


def test_collate_gives_lengths_only_where_one_is_short() -> None:
    batch = collate([hand_made([0], 2, 0.1), hand_made([3], 4, 0.1)])
    assert batch.lengths_B is not None
    assert batch.lengths_B.tolist() == [2, 4]


def test_collate_of_a_context_rank() -> None:
    samples = [hand_made([0, 3], 4, 0.05), hand_made([2], 4, 0.95)]
    first, second = collate(samples, 0, 2), collate(samples, 1, 2)
    assert first.inputs_BS.tolist() == [[0, 1]] * 2
    assert second.inputs_BS.tolist() == [[2, 3]] * 2
    assert (first.rows_R.tolist(), first.targets_R.tolist()) == ([0], [10])
    assert (second.rows_R.tolist(), second.targets_R.tolist()) == ([1 * 2 + 0, 0 * 2 + 1], [13, 12])


def test_a_batch_without_any_row_is_well_formed() -> None:
    batch = collate([hand_made([], 4, 0.0)] * 2)
    assert batch.rows_R.shape == batch.targets_R.shape == batch.weights_R.shape == batch.levels_R.shape == (0,)
    assert batch.rows_R.dtype == torch.int64


def test_moving_a_batch_keeps_it() -> None:
    batch = collate([hand_made([1], 2, 0.3)])
    assert batch.to(torch.device("cpu")) is batch
    moved = batch.to(torch.device("meta"))
    assert {value.device.type for value in vars(moved).values() if value is not None} == {"meta"}


@pytest.mark.parametrize(("level", "expected"), [(0.0, 0), (0.0999, 0), (0.1, 1), (0.9999, 9), (1.0, 9)])
def test_level_bins(level: float, expected: int) -> None:
    assert hand_made([0], 4, level).level_bin == expected


def test_feed_is_immutable() -> None:
    feed = whole_feed(tiny_config())
    assert isinstance(feed, Feed)
    with pytest.raises(AttributeError):
        feed.data_rank = 1  # type: ignore[misc]
