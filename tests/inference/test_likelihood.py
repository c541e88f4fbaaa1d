"""The estimators of likelihood against enumerations and closed forms."""

import math

import numpy as np
import pytest
import torch
from enumerable import LENGTH, MASK, TEXTS, MixingPredictor, arbitrary_table, exact_bound

from inference.likelihood import autoregressive_nll, draw_mask, masked_bound, stratified_level
from inference.randomness import SequenceKey
from runtime.errors import UserError

TABLE = arbitrary_table(seed=1)
TOKENS_BL = torch.tensor(TEXTS[::9])


def test_estimate_agrees_with_the_enumerated_bound_within_its_error() -> None:
    bound = masked_bound(TABLE, TOKENS_BL, MASK, draws=512, seed=5, batch_rows=512)
    assert bound.variance is not None
    exact = torch.tensor([exact_bound(TABLE, text) for text in TEXTS[::9]], dtype=torch.float64)
    deviation = (bound.nats - exact) / bound.variance.sqrt()
    assert deviation.abs().max() < 3.5
    assert (deviation.mean() * math.sqrt(len(exact))).abs() < 3.5


@pytest.mark.parametrize("draws", [1, 2, 3, 7])
def test_few_draws_are_unbiased_too(draws: int) -> None:
    """Many independent sequence indices of one text, each with few stratified draws."""
    copies = 4000
    tokens_BL = torch.tensor([TEXTS[50]]).expand(copies, LENGTH)
    nats = masked_bound(TABLE, tokens_BL, MASK, draws=draws, seed=8, batch_rows=copies).nats
    error = nats.std() / math.sqrt(copies)
    assert abs(nats.mean() - exact_bound(TABLE, TEXTS[50])) < 3.5 * error
    assert error < 0.05


def test_stated_variance_is_the_variance_over_seeds_or_more() -> None:
    tokens_BL = torch.tensor([TEXTS[50]]).expand(2000, LENGTH)
    bound = masked_bound(TABLE, tokens_BL, MASK, draws=8, seed=8, batch_rows=4000)
    assert bound.variance is not None
    assert bound.nats.var() < bound.variance.mean()
    assert bound.variance.mean() < 5 * bound.nats.var()


def test_one_token_is_exact_with_one_draw() -> None:
    predictor = arbitrary_table(seed=2, length=1)
    tokens_BL = torch.tensor([[0], [1], [2]])
    expected = -predictor(torch.full((3, 1), MASK))[torch.arange(3), 0, tokens_BL[:, 0]]
    one = masked_bound(predictor, tokens_BL, MASK, draws=1, seed=0)
    many = masked_bound(predictor, tokens_BL, MASK, draws=5, seed=1)
    assert torch.equal(one.nats, expected)
    assert one.variance is None
    assert torch.allclose(many.nats, expected, atol=1e-14)
    assert torch.equal(many.variance, torch.zeros(3, dtype=torch.float64))


def test_prompt_is_given_and_not_scored() -> None:
    bound = masked_bound(TABLE, TOKENS_BL, MASK, draws=1, seed=0, prompt_length=LENGTH - 1)
    masked_BL = TOKENS_BL.clone()
    masked_BL[:, -1] = MASK
    assert torch.equal(bound.nats, -TABLE(masked_BL)[torch.arange(len(TOKENS_BL)), -1, TOKENS_BL[:, -1]])
    predictor = MixingPredictor(0, vocabulary=6, longest=9)
    masked_bound(predictor, torch.arange(9).remainder(5)[None], 5, draws=64, seed=0, prompt_length=4)
    seen_RL = torch.cat(predictor.seen)
    assert not (seen_RL[:, :4] == 5).any()
    assert (seen_RL[:, 4:] == 5).any(0).all()
    assert (seen_RL == 5).sum(1).unique().tolist() == [1, 2, 3, 4, 5]


def test_draws_do_not_depend_on_how_the_batch_is_cut() -> None:
    whole = masked_bound(TABLE, TOKENS_BL, MASK, draws=5, seed=3, batch_rows=1000)
    tail = masked_bound(TABLE, TOKENS_BL[4:], MASK, draws=5, seed=3, first_index=4, batch_rows=3)
    assert torch.equal(whole.nats[4:], tail.nats)
    other = masked_bound(TABLE, TOKENS_BL[4:], MASK, draws=5, seed=4, first_index=4)
    assert not torch.equal(tail.nats, other.nats)


def test_batch_rows_is_the_most_that_one_forward_sees() -> None:
    predictor = arbitrary_table(seed=1)
    masked_bound(predictor, TOKENS_BL[:5], MASK, draws=3, seed=3, batch_rows=4)
    assert predictor.rows_seen == [4, 4, 4, 3]


def test_uniform_predictor_costs_ln_v_per_token_whatever_is_masked() -> None:
    tokens_BL = torch.randint(0, 10, (6, 12), generator=torch.Generator().manual_seed(0))
    bound = masked_bound(lambda x: torch.zeros(*x.shape, 11), tokens_BL, 10, draws=4, seed=0)
    assert torch.allclose(bound.nats, torch.full((6,), 12 * math.log(11), dtype=torch.float64), atol=1e-12)


def test_every_stratified_level_is_exactly_uniform() -> None:
    for length in range(1, 14):
        for draws in range(1, 14):
            for draw in range(draws):
                levels = {stratified_level(start, draw, draws, length) for start in range(1, length + 1)}
                assert levels == set(range(1, length + 1))


def test_rounding_half_to_even_is_not_uniform() -> None:
    length, draws = 5, 2
    starts = np.arange(1, length + 1)
    shift = np.arange(draws)[:, None] * length / draws
    rounded = (np.round(starts + shift).astype(int) - 1) % length
    floored = (np.floor(starts + shift).astype(int) - 1) % length
    assert np.bincount(rounded.ravel()).tolist() == [3, 1, 2, 3, 1]
    assert np.bincount(floored.ravel()).tolist() == [2, 2, 2, 2, 2]
    ours = [[stratified_level(int(s), d, draws, length) - 1 for s in starts] for d in range(draws)]
    assert np.array_equal(ours, floored)


def test_as_many_draws_as_tokens_visit_every_level_once() -> None:
    sizes = sorted(int(draw_mask(SequenceKey(0, 3), draw, 16, 16).sum()) for draw in range(16))
    assert sizes == list(range(1, 17))


def test_masks_of_one_size_are_uniform_over_subsets() -> None:
    masks = [draw_mask(SequenceKey(11, n), 0, 1, 4) for n in range(12000)]
    codes = np.array([int(mask @ [1, 2, 4, 8]) for mask in masks])
    counts = np.bincount(codes, minlength=16)
    expected = np.array([0 if c == 0 else 3000 / math.comb(4, c.bit_count()) for c in range(16)])
    assert counts[0] == 0
    chi_square = ((counts[1:] - expected[1:]) ** 2 / expected[1:]).sum()
    assert chi_square < 36.1  # 99.9 % of χ² with 14 degrees of freedom


def test_autoregressive_likelihood_is_the_chain_rule() -> None:
    predictor = MixingPredictor(0, vocabulary=7, longest=6, causal=True)
    tokens_BL = torch.randint(0, 6, (5, 6), generator=torch.Generator().manual_seed(0))
    nats = autoregressive_nll(predictor, tokens_BL, bos_id=6, batch_rows=2)
    for row, text in enumerate(tokens_BL.tolist()):
        total = 0.0
        for k, token in enumerate(text):
            logits_V = predictor(torch.tensor([[6, *text[:k]]]))[0, -1]
            total -= float(logits_V[token] - torch.logsumexp(logits_V, 0))
        assert float(nats[row]) == pytest.approx(total, abs=1e-12)


def test_autoregressive_likelihood_sums_to_one_over_all_texts() -> None:
    """Three tokens, two positions; token 0 doubles as BOS."""
    predictor = MixingPredictor(1, vocabulary=3, longest=2, causal=True)
    texts_BL = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    nats = autoregressive_nll(predictor, texts_BL, bos_id=0)
    assert float((-nats).exp().sum()) == pytest.approx(1, abs=1e-12)


def test_tokens_are_left_as_they_were() -> None:
    before = TOKENS_BL.clone()
    masked_bound(TABLE, TOKENS_BL, MASK, draws=2, seed=0)
    autoregressive_nll(TABLE, TOKENS_BL, bos_id=0)
    assert torch.equal(before, TOKENS_BL)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"draws": 0}, "draws"),
        ({"batch_rows": 0}, "batch_rows"),
        ({"prompt_length": LENGTH}, "prompt_length"),
        ({"prompt_length": -1}, "prompt_length"),
        ({"seed": -1}, "seed"),
        ({"mask_id": 1}, "mask id 1"),
    ],
)
def test_bad_requests_name_the_key(change: dict[str, int], words: str) -> None:
    request = {"mask_id": MASK, "draws": 1, "seed": 0} | change
    with pytest.raises(UserError, match=words):
        masked_bound(TABLE, TOKENS_BL, **request)
