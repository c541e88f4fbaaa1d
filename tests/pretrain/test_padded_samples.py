"""A document shorter than the window: loss and gradient are those of the document alone."""

from typing import Any

import numpy as np
import pytest
import torch

from pretrain.feed import Feed, collate
from pretrain.objectives.base import Sample
from pretrain.objectives.padded import PaddedSamples
from tests.support.feeds import samples_of
from tests.support.models import local_model
from tests.support.tiny import MASK, PAD, CountedTokens, tiny_config

WINDOW = 32
LENGTHS = [1, 5, 12, 31, 32]
FAMILIES = ["masked", "autoregressive"]


class ShortTokens:
    """Documents of the lengths above, in turn."""

    def tokens(self, index: int) -> np.ndarray:
        return CountedTokens(WINDOW).tokens(index)[: LENGTHS[index % len(LENGTHS)]]


def config_of(family: str, **changes: Any) -> Any:
    exact = {"objective__random_length": 0.0} if family == "masked" else {}
    return tiny_config(family, data__packing="document", **exact, **changes)


def short(sample: Sample, length: int) -> Sample:
    """The sample without its padding."""
    return Sample(sample.inputs[:length], *list(vars(sample).values())[1:])


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_are_padded_and_count_their_own_tokens(family: str) -> None:
    samples, reader = samples_of(config_of(family)), ShortTokens()
    assert isinstance(samples, PaddedSamples)
    for index in range(50):
        tokens = reader.tokens(index)
        sample = samples.prepare(tokens, index)
        assert sample.inputs.shape == (WINDOW,)
        assert (sample.inputs[len(tokens) :] == PAD).all()
        assert sample.length == len(tokens)
        assert (sample.positions < len(tokens)).all()
        assert np.array_equal(sample.targets, tokens[sample.positions])
        if family == "masked":
            masked = np.isin(np.arange(len(tokens)), sample.positions)
            assert np.array_equal(sample.inputs[: len(tokens)], np.where(masked, MASK, tokens))
        else:
            assert sample.weights.tolist() == [1.0] * len(tokens)


def test_a_document_as_long_as_the_window_is_an_ordinary_sample() -> None:
    padded, plain = samples_of(config_of("masked")), samples_of(tiny_config(objective__random_length=0.0))
    for index in range(20):
        tokens = CountedTokens(WINDOW).tokens(index)
        assert padded.prepare(tokens, index).digest(0) == plain.prepare(tokens, index).digest(0)


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradient_are_those_of_the_documents_alone(family: str) -> None:
    """Σ over documents of each one's own sum, computed without padding one by one, over Σ of their lengths."""
    config = config_of(family)
    model, samples = local_model(config).double(), samples_of(config)
    prepared = [samples.prepare(ShortTokens().tokens(index), index) for index in range(10)]
    whole, _ = model(collate(prepared))
    gradients = torch.autograd.grad(whole, list(model.parameters()))
    expected = torch.zeros((), dtype=torch.float64)
    for sample in prepared:
        expected = expected + model(collate([short(sample, sample.length)]))[0]
    alone = torch.autograd.grad(expected, list(model.parameters()))
    assert whole.item() == pytest.approx(expected.item(), rel=1e-6)
    for one, other in zip(gradients, alone, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6 * other.abs().max().item())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_denominator_counts_no_padding(family: str) -> None:
    share = Feed(ShortTokens(), samples_of(config_of(family)), 10, 5, 0, 1).step(0)
    assert share.tokens == 2 * sum(LENGTHS)
    assert all(batch.inputs_BS.shape == (5, WINDOW) and batch.lengths_B is not None for batch in share.micro_batches)


def test_a_random_length_cuts_documents_too() -> None:
    config = tiny_config(data__packing="document", objective__random_length=1.0)
    samples = samples_of(config)
    lengths = [samples.prepare(CountedTokens(WINDOW).tokens(index)[:20], index).length for index in range(200)]
    assert max(lengths) == 20
    assert min(lengths) < 5
