"""A damaged sample is left out by all ranks alike, and nothing else moves."""

from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pytest
import torch

from data_pipeline.shards import DamagedBatch
from parallel.mesh import Mesh
from pretrain.config import RunConfig
from pretrain.feed import Feed, StepBatch
from pretrain.quarantine import Quarantine
from runtime.errors import UserError
from tests.support.feeds import samples_of
from tests.support.models import gradients_of, local_model
from tests.support.tiny import PAD, CountedTokens, tiny_config

SEQUENCE, BATCH = 32, 8


@dataclass
class DamagedTokens:
    """Counted tokens, of which some samples cannot be read."""

    bad: set[int]
    asked: list[int] = field(default_factory=list)

    def tokens(self, index: int) -> np.ndarray:
        self.asked.append(index)
        if index in self.bad:
            raise DamagedBatch(f"train-00003.arrow: record batch {index // 4} is damaged")
        return CountedTokens(SEQUENCE).tokens(index)


def configured(objective: str = "masked", on_corrupt: str = "quarantine") -> RunConfig:
    return tiny_config(objective, data__on_corrupt=on_corrupt, train__micro_batch=1)


def feed_of(config: RunConfig, bad: set[int], rank: int = 0, ranks: int = 1) -> Feed:
    quarantine = config.data.on_corrupt == "quarantine"
    return Feed(DamagedTokens(bad), samples_of(config), BATCH, 1, rank, ranks, quarantine=quarantine)


def same(a: Any, b: Any) -> bool:
    return all(
        (x is None and y is None) or (x is not None and y is not None and torch.equal(x, y))
        for x, y in zip(vars(a).values(), vars(b).values(), strict=True)
    )


@pytest.mark.parametrize("objective", ["masked", "autoregressive"])
def test_only_the_damaged_sample_is_left_out(objective: str) -> None:
    config = configured(objective)
    whole, found = feed_of(config, set()).step(1), feed_of(config, {11, 99}).step(1)
    assert found.quarantined == ((11, "train-00003.arrow: record batch 2 is damaged"),)
    assert found.digest != whole.digest
    for position, (a, b) in enumerate(zip(whole.micro_batches, found.micro_batches, strict=True)):
        assert same(a, b) == (position != 3)
    empty = found.micro_batches[3]
    assert empty.rows_R.numel() == 0
    assert (empty.inputs_BS[:, 1:] == PAD).all()
    share = feed_of(config, set()).step(1).tokens - found.tokens
    assert share == (
        SEQUENCE
        if objective == "autoregressive"
        else samples_of(config).prepare(CountedTokens(SEQUENCE).tokens(11), 11).length
    )


@pytest.mark.parametrize("objective", ["masked", "autoregressive"])
@pytest.mark.parametrize("document_mask", [False, True])
def test_an_empty_place_has_no_loss_and_no_gradient(objective: str, document_mask: bool) -> None:
    config = tiny_config(
        objective, data__on_corrupt="quarantine", data__document_mask=document_mask, train__micro_batch=8
    )
    model = local_model(config)
    feed = Feed(DamagedTokens({3}), samples_of(config), BATCH, 8, 0, 1, quarantine=True)
    (batch,) = feed.step(0).micro_batches
    total, gradients = gradients_of(model, batch)
    assert all(torch.isfinite(g).all() for g in gradients.values())
    rest = [i for i in range(8) if i != 3]
    others = [Feed(DamagedTokens(set()), samples_of(config), BATCH, 1, 0, 1).step(0).micro_batches[i] for i in rest]
    assert total.item() == pytest.approx(sum(gradients_of(model, b)[0].item() for b in others), rel=1e-5)


def test_without_quarantine_the_damage_is_told() -> None:
    with pytest.raises(DamagedBatch, match=r"train-00003\.arrow: record batch 2 is damaged"):
        feed_of(configured(on_corrupt="stop"), {11}).step(1)


@dataclass
class Ranks:
    """The mesh of rank 0 of two, the other one's share being known."""

    other: StepBatch
    rank: int = 0
    world: int = 2
    speaks_for_data_rank: bool = True
    asked: int = 0

    def sum_all(self, values: torch.Tensor) -> torch.Tensor:
        # a tensor-parallel peer: it shares the samples, so it adds only what it left out
        self.asked += 1
        total = values.clone()
        total[4] += len(self.other.quarantined)
        return total

    def gather(self, value: Any) -> list[Any]:
        return [value, self.other.quarantined]


def test_what_a_peer_cannot_read_all_leave_out() -> None:
    """Two machines with a copy of the shard each, of which one is damaged."""
    config = configured()
    peer, mine = feed_of(config, {11}), feed_of(config, set())
    mesh = Ranks(peer.step(1))
    quarantine = Quarantine(cast(Mesh, mesh), mine)
    batch, agreed = quarantine.settle(1, mine.step(1), False, (0, 0))
    assert agreed.tokens == mesh.other.tokens
    assert batch.digest == mesh.other.digest
    assert quarantine.metrics() == {"data/quarantined_samples": 1, "data/quarantined": "11"}
    assert quarantine.metrics() == {}
    whole = mine.step(2)
    mesh.other, mesh.asked = whole, 0
    batch, _ = quarantine.settle(2, whole, False, (0, 0))
    assert batch is whole
    assert mesh.asked == 1  # nothing is asked a second time where nothing is damaged


def test_a_step_of_which_nothing_is_left() -> None:
    config = configured()
    feed = feed_of(config, set(range(8)))
    quarantine = Quarantine(Mesh.local(torch.device("cpu")), feed)
    with pytest.raises(UserError, match=r"step 1: every sample of it is in damaged batches: restore the files"):
        quarantine.settle(0, feed.step(0), False, (0, 0))


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_all_worlds_leave_out_the_same(ranks: int) -> None:
    config = configured()
    shares = [feed_of(config, {8, 14, 15}, rank, ranks).step(1) for rank in range(ranks)]
    assert [sample for share in shares for sample, _ in share.quarantined] == [8, 14, 15]
    expected = feed_of(config, {8, 14, 15}).step(1)
    digest = tuple(sum(share.digest[word] for share in shares) % (1 << 64) for word in (0, 1))
    assert digest == expected.digest
    assert sum(share.tokens for share in shares) == expected.tokens
    again = feed_of(config, set()).step(1, {8, 14, 15})
    assert again.digest == expected.digest
