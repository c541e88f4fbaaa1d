"""HFU counts the pairs of positions that attention computes, those that a mask hides too."""

from typing import Any

import pytest
import torch

from parallel.ring import Sight
from pretrain.config import RunConfig
from pretrain.flops import hardware_flops_per_token, training_flops_per_token
from pretrain.hardware_flops import computed_positions, hardware_flops
from pretrain.model import attention_mask
from pretrain.planning.cost import flops
from tests.support.tiny import tiny_config

LENGTH = 32


@pytest.mark.parametrize("context", [1, 2, 4])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("kind", ["masked", "autoregressive"])
def test_every_pair_counts_where_there_is_a_mask(kind: str, documents: bool, context: int) -> None:
    config = tiny_config(kind, data__document_mask=documents, parallel__context=context, parallel__zero=0)
    part, causal = LENGTH // context, config.objective.causal
    numbers_BS = torch.zeros(1, LENGTH, dtype=torch.int64) if documents else None
    computed = []
    for rank in range(context):
        mask = attention_mask(torch.arange(part) + rank * part, context, causal, None, numbers_BS)
        triangle = causal and mask is None
        computed.append(part * (LENGTH + 1) / 2 if triangle else part * LENGTH)
        assert mask is None or mask.shape[-1] == LENGTH
    assert computed_positions(config) * LENGTH == sum(computed)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("kind", ["masked", "autoregressive"])
def test_a_ring_computes_the_parts_that_it_does_not_skip(kind: str, ranks: int) -> None:
    config = tiny_config(kind, parallel__context=ranks, parallel__context_exchange="ring", parallel__zero=0)
    sights = [Sight(rank, config.objective.causal) for rank in range(ranks)]
    parts = sum(not sight.skips(part) for sight in sights for part in range(ranks))
    assert computed_positions(config) * LENGTH == parts * (LENGTH // ranks) ** 2


def _attention(config: RunConfig) -> float:
    return hardware_flops(config).attention


def test_figures_of_the_baseline() -> None:
    def baseline(**keys: Any) -> RunConfig:
        return tiny_config("autoregressive", parallel__zero=0, **keys)

    plain, masked = baseline(), baseline(data__document_mask=True)
    work = (plain.model, LENGTH, True, 1.0)
    assert hardware_flops(plain) == hardware_flops_per_token(*work)
    assert _attention(masked) / _attention(plain) == pytest.approx(2 * LENGTH / (LENGTH + 1), rel=1e-12)
    assert hardware_flops(masked).recompute == _attention(masked) / 6
    assert hardware_flops(masked).projections == training_flops_per_token(*work).projections
    ring = {"parallel__context": 2, "parallel__context_exchange": "ring"}
    assert hardware_flops(baseline(**ring, parallel__recompute="selective")) == hardware_flops(baseline(**ring))
    assert flops(masked)["per_token_hardware"] == hardware_flops(masked).total
    assert flops(masked)["per_token_computed"] == flops(plain)["per_token_computed"]
