"""The left-to-right sampler."""

import numpy as np
import pytest
import torch
from enumerable import MixingPredictor
from scipy.stats import chisquare

from inference.autoregressive_sampler import sample_autoregressive
from inference.likelihood import autoregressive_nll
from runtime.errors import UserError

VOCABULARY, BOS = 9, 8
PROMPT_BP = torch.tensor([[1, 2], [3, 4]])


def model() -> MixingPredictor:
    return MixingPredictor(3, VOCABULARY, longest=32, causal=True)


def test_greedy_takes_the_most_probable_next_token_after_bos() -> None:
    predictor = model()
    result = sample_autoregressive(predictor, PROMPT_BP, length=5, bos_id=BOS, seed=0)
    assert result.forwards == len(predictor.seen) == 5
    assert all((seen_BL[:, 0] == BOS).all() for seen_BL in predictor.seen)
    assert torch.equal(result.revealed_at, torch.arange(5).expand(2, 5))
    for row in range(2):
        tokens = PROMPT_BP[row].tolist()
        for _ in range(5):
            tokens.append(int(model()(torch.tensor([[BOS, *tokens]]))[0, -1, :BOS].argmax()))
        assert result.tokens[row].tolist() == tokens


def test_confidence_is_the_probability_of_each_token() -> None:
    """Without a prompt the product of confidences is the likelihood, apart from what BOS would take."""
    result = sample_autoregressive(
        lambda x: model()(x).index_fill(2, torch.tensor([BOS]), -torch.inf),
        torch.empty(4, 0, dtype=torch.int64),
        length=6,
        bos_id=BOS,
        seed=0,
        temperature=1.0,
    )
    nats = autoregressive_nll(
        lambda x: model()(x).index_fill(2, torch.tensor([BOS]), -torch.inf), result.tokens, bos_id=BOS
    )
    assert torch.allclose(-result.confidence.log().sum(1), nats, atol=1e-12)
    assert len(result.tokens.unique(dim=0)) > 1


def test_tokens_of_one_sequence_draw_independently() -> None:
    empty_BP = torch.empty(1, 0, dtype=torch.int64)
    result = sample_autoregressive(
        lambda x: torch.zeros(*x.shape, 5), empty_BP, length=400, bos_id=4, seed=0, temperature=1.0
    )
    assert chisquare(np.bincount(result.tokens[0].numpy(), minlength=4)).pvalue > 1e-3


def test_random_numbers_belong_to_the_sequence_not_to_the_batch() -> None:
    whole = sample_autoregressive(model(), PROMPT_BP, 6, BOS, seed=1, temperature=1.0)
    last = sample_autoregressive(model(), PROMPT_BP[1:], 6, BOS, seed=1, temperature=1.0, first_index=1)
    assert torch.equal(whole.tokens[1:], last.tokens)


def test_bad_requests_name_the_key() -> None:
    with pytest.raises(UserError, match="length: 0"):
        sample_autoregressive(model(), PROMPT_BP, 0, BOS, seed=0)
    with pytest.raises(UserError, match="temperature: -1"):
        sample_autoregressive(model(), PROMPT_BP, 2, BOS, seed=0, temperature=-1.0)
