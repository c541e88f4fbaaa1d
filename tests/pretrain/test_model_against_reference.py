"""The model against the plain float64 reference: logits, losses and every gradient."""

from typing import Any

import pytest
import torch

from pretrain.config import RunConfig
from pretrain.model import Transformer
from tests.support import reference_model
from tests.support.feeds import whole_feed
from tests.support.models import assert_float32_gradients, fill_model, gradients_of, local_model
from tests.support.tiny import VOCABULARY, tiny_config

CASES: dict[str, dict[str, Any]] = {
    "multi-head": {},
    "grouped": {"model__kv_heads": 2},
    "one key head": {"model__kv_heads": 1},
    "one head": {"model__heads": 1, "model__kv_heads": 1},
    "odd sizes": {"model__width": 60, "model__heads": 6, "model__kv_heads": 3, "model__ffn": 37, "model__layers": 3},
    "small theta": {"model__rope_theta": 10.0},
    "large epsilon": {"model__norm_epsilon": 0.1},
}


def configured(objective: str, changes: dict[str, Any]) -> RunConfig:
    return tiny_config(objective, model__init_std=0.15, **changes)


def lively(config: RunConfig) -> tuple[Transformer, reference_model.Weights]:
    """A model and its weights in float64; norms that differ from one, so that their place matters."""
    model = local_model(config)
    weights = reference_model.starting_weights(config)
    generator = torch.Generator().manual_seed(2)
    for name, weight in weights.items():
        if weight.dim() == 1:
            weights[name] = (0.5 + torch.rand(weight.shape, generator=generator)).double()
    fill_model(model, weights)
    return model, weights


@pytest.mark.parametrize("objective", ["masked", "autoregressive"])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients(case: str, objective: str) -> None:
    config = configured(objective, CASES[case])
    model, weights = lively(config)
    batches = [batch for step in range(2) for batch in whole_feed(config, micro_batch=4).step(step).micro_batches]
    if objective == "masked":
        assert any(batch.lengths_B is not None for batch in batches)
    for batch in batches:
        expected = reference_model.batch_loss(weights, config.model, batch, config.objective.causal).item()
        loss_sum, gradients = gradients_of(model, batch)
        assert loss_sum.item() == pytest.approx(expected, rel=1e-6)
        assert model(batch)[1][0].item() == pytest.approx(expected, rel=1e-6)
        assert_float32_gradients(gradients, weights, config, batch)


@pytest.mark.parametrize("objective", ["masked", "autoregressive"])
@pytest.mark.parametrize("case", CASES)
def test_logits(case: str, objective: str) -> None:
    config = configured(objective, CASES[case])
    model, weights = lively(config)
    ids_BS = torch.randint(VOCABULARY, (3, 29), generator=torch.Generator().manual_seed(1))
    expected = reference_model.logits(weights, config.model, ids_BS, config.objective.causal)
    with torch.no_grad():
        found = model.logits(ids_BS)
    assert found.dtype == torch.float32
    assert found.shape == (3, 29, VOCABULARY)
    assert (found.double() - expected).abs().max() < 2e-6 * expected.abs().max()


def test_statistics_by_level() -> None:
    """Σ CE and rows per bin, unweighted, against the reference row by row."""
    config = configured("masked", {})
    model, weights = lively(config)
    (batch,) = whole_feed(config, micro_batch=8).step(0).micro_batches
    _, stats = model(batch)
    logits_BSV = reference_model.logits(weights, config.model, batch.inputs_BS, False, batch.lengths_B)
    size = batch.inputs_BS.shape[0]
    log_p = torch.log_softmax(logits_BSV, -1)
    losses = -log_p[batch.rows_R % size, batch.rows_R // size, batch.targets_R]
    for level in range(10):
        here = batch.levels_R == level
        assert stats[1 + level].item() == pytest.approx(losses[here].sum().item(), rel=2e-6)
        assert stats[11 + level].item() == here.sum().item()
    assert stats.dtype == torch.float64


def test_training_by_hand_follows_the_reference_loop() -> None:
    """torch's own AdamW and clipping on the model give the losses and norms of the written-out loop."""
    config = configured("masked", {"optimizer__lr": 0.003})
    feed = whole_feed(config)
    run = reference_model.reference_losses(config, feed, 5)
    model = local_model(config)
    groups = [
        {"params": [p for p in model.parameters() if p.dim() == 2], "weight_decay": config.optimizer.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=config.optimizer.betas, eps=config.optimizer.epsilon)
    losses, norms = [], []
    for step in range(5):
        share = feed.step(step)
        tokens = (step + 1) * config.train.tokens_per_step
        for group in optimizer.param_groups:
            group["lr"] = 0.003 * config.optimizer.schedule.factor(tokens, config.train.total_tokens)
        optimizer.zero_grad()
        loss = sum(model(batch)[0] for batch in share.micro_batches) / share.tokens
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip)))
        losses.append(loss.item())
        optimizer.step()
    assert losses == pytest.approx(run.losses, rel=2e-6)
    assert norms == pytest.approx(run.grad_norms, rel=1e-5)
    assert len({round(loss, 3) for loss in losses}) == 5  # it moves
