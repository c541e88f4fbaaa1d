"""What counts in a sample, and how much."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from pretrain.feed import collate
from pretrain.objectives.autoregressive import AutoregressiveSamples
from pretrain.objectives.masked import MaskedSamples
from pretrain.objectives.noise import NoiseSource
from tests.support.feeds import samples_of, whole_feed
from tests.support.models import local_model
from tests.support.tiny import BOS, MASK, PAD, VOCABULARY, CountedTokens, tiny_config

SEQUENCE = 32


def masked(**changes: Any) -> MaskedSamples:
    values = {"seed": 3, "sequence_length": SEQUENCE, "global_batch": 8, "epsilon": 1e-3}
    return MaskedSamples(NoiseSource(**values | {"random_length": 0.25, "stratified": True} | changes), MASK, PAD)


def tokens_of(index: int) -> np.ndarray:
    return CountedTokens(SEQUENCE).tokens(index)


def test_masked_rows_are_the_masked_positions_with_weight_one_over_p() -> None:
    samples = masked()
    for index in range(100):
        tokens, noise = tokens_of(index), samples.noise.draw(index)
        sample = samples.prepare(tokens, index)
        assert sample.positions.tolist() == np.flatnonzero(noise.masked).tolist()
        assert np.array_equal(sample.targets, tokens[noise.masked])
        expected = np.where(noise.masked, MASK, tokens)
        assert np.array_equal(sample.inputs[: noise.length], expected[: noise.length])
        assert (sample.inputs[noise.length :] == PAD).all()
        assert sample.weights.dtype == np.float32
        assert (sample.weights == np.float32(1.0 / noise.probability)).all()
        assert (sample.level, sample.length) == (noise.level, noise.length)
        assert np.array_equal(tokens, tokens_of(index))  # the reader's array is not written to


def test_tokens_beyond_the_length_change_nothing() -> None:
    samples = masked(random_length=1.0)
    for index in range(50):
        tokens = tokens_of(index)
        sample = samples.prepare(tokens, index)
        other = tokens.copy()
        other[sample.length :] = 1 + (other[sample.length :] % 100)
        again = samples.prepare(other, index)
        assert again.digest(0) == sample.digest(0)
        assert (sample.positions < sample.length).all()


@pytest.mark.parametrize("epsilon", [1e-3, 0.1, 0.5])
def test_expected_weight_of_a_token_is_one_for_every_epsilon(epsilon: float) -> None:
    """E[1[masked] / p] = 1: Σ weights has the logical length as its mean, whatever epsilon."""
    samples = masked(epsilon=epsilon)
    ratios = []
    for step in range(800):
        prepared = [samples.prepare(tokens_of(0), step * 8 + j) for j in range(8)]
        weight = sum(float(sample.weights.sum(dtype=np.float64)) for sample in prepared)
        ratios.append(weight - sum(sample.length for sample in prepared))
    error = np.std(ratios) / math.sqrt(len(ratios))
    assert abs(np.mean(ratios)) < 4 * error
    assert error < 0.02 * 8 * SEQUENCE


def test_autoregressive_scores_every_token_from_bos() -> None:
    tokens = tokens_of(4)
    sample = AutoregressiveSamples(BOS).prepare(tokens, 4)
    assert sample.inputs.tolist() == [BOS, *tokens[:-1].tolist()]
    assert np.array_equal(sample.targets, tokens)
    assert sample.positions.tolist() == list(range(SEQUENCE))
    assert sample.weights.tolist() == [1.0] * SEQUENCE
    assert sample.weights.dtype == np.float32
    assert (sample.length, sample.level_bin) == (SEQUENCE, 0)
    assert AutoregressiveSamples(BOS).prepare(tokens, 99).digest(0) == sample.digest(0)  # there is no noise


def test_uniform_predictor_costs_the_logarithm_of_the_vocabulary_a_row() -> None:
    """A head of zeros gives every token the same probability: ln V a counting row, whatever the mask."""
    for objective in ("masked", "autoregressive"):
        config = tiny_config(objective)
        model = local_model(config)
        torch.nn.init.zeros_(model.head.weight)
        for batch in whole_feed(config).step(0).micro_batches:
            loss_sum, stats = model(batch)
            rows = len(batch.rows_R)
            assert stats[1:11].sum().item() / rows == pytest.approx(math.log(VOCABULARY), rel=1e-7)
            assert stats[11:].sum().item() == rows
            expected = math.log(VOCABULARY) * batch.weights_R.double().sum().item()
            assert loss_sum.item() == pytest.approx(expected, rel=1e-6)


def test_training_loss_of_a_uniform_predictor() -> None:
    """Exactly ln V a token for the baseline; ln V in expectation over masks for the masked objective."""
    baseline = whole_feed(tiny_config("autoregressive")).step(0)
    assert sum(float(b.weights_R.sum()) for b in baseline.micro_batches) == baseline.tokens
    feed = whole_feed(tiny_config())
    losses = []
    for step in range(600):
        share = feed.step(step)
        weight = sum(float(b.weights_R.double().sum()) for b in share.micro_batches)
        losses.append(math.log(VOCABULARY) * weight / share.tokens)
    error = np.std(losses) / math.sqrt(len(losses))
    assert abs(np.mean(losses) - math.log(VOCABULARY)) < 4 * error
    assert error < 0.05


@pytest.mark.parametrize("objective", ["masked", "autoregressive"])
def test_denominator_counts_logical_tokens(objective: str) -> None:
    config = tiny_config(objective, **({"objective__random_length": 1.0} if objective == "masked" else {}))
    share = whole_feed(config).step(0)
    lengths = [samples_of(config).prepare(tokens_of(j), j).length for j in range(8)]
    assert share.tokens == sum(lengths)
    assert (share.tokens < 8 * SEQUENCE) == (objective == "masked")


def test_inputs_beyond_the_length_reach_no_loss_and_no_gradient() -> None:
    """In the model too: whatever ids stand there, loss and gradients are the same to the bit."""
    config = tiny_config(objective__random_length=1.0)
    model = local_model(config)
    samples = [samples_of(config).prepare(tokens_of(j), j) for j in range(4)]
    results = []
    for filling in (PAD, 5, MASK):
        for sample in samples:
            sample.inputs[sample.length :] = filling
        loss_sum, _ = model(collate(samples))
        gradients = torch.autograd.grad(loss_sum, list(model.parameters()))
        results.append((loss_sum, gradients))
    for loss_sum, gradients in results[1:]:
        assert torch.equal(loss_sum, results[0][0])
        for one, other in zip(gradients, results[0][1], strict=True):
            assert torch.equal(one, other)
    (embedding,) = [
        g for p, g in zip(model.parameters(), results[0][1], strict=True) if p is model.embedding.table.weight
    ]
    assert not embedding[PAD].any()
