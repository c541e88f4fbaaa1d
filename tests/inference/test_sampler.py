"""Samplers: schedules, order of commitment, blocks, temperature."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from enumerable import MixingPredictor
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from inference.choice import choose_tokens
from inference.randomness import SequenceKey, gumbels
from inference.sampler import SamplerConfig, SampleResult, commit_counts, sample
from runtime.errors import UserError

VOCABULARY, MASK = 11, 10
PROMPT_BP = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
EMPTY_BP = torch.empty(3, 0, dtype=torch.int64)


def model(seed: int = 0) -> MixingPredictor:
    return MixingPredictor(seed, VOCABULARY, longest=64)


def run(predictor: MixingPredictor, seed: int = 0, **config: Any) -> SampleResult:
    return sample(predictor, PROMPT_BP, SamplerConfig.parse(config, "sampler"), MASK, seed)


def most_confident_first(predictor: MixingPredictor, prompt_P: torch.Tensor, length: int) -> list[int]:
    """Reference: commit the single most confident masked argmax until none is left."""
    tokens = [*prompt_P.tolist(), *[MASK] * length]
    while MASK in tokens:
        logits_LV = predictor(torch.tensor([tokens]))[0]
        logits_LV[:, MASK] = -torch.inf
        best = logits_LV.softmax(-1).max(-1)
        masked = [i for i, token in enumerate(tokens) if token == MASK]
        place = max(masked, key=lambda i: float(best.values[i]))
        tokens[place] = int(best.indices[place])
    return tokens


def test_one_token_a_step_commits_the_most_confident_first() -> None:
    predictor = model()
    result = run(predictor, length=8)
    assert result.forwards == len(predictor.seen) == 8
    assert torch.equal(result.revealed_at.sort(1).values, torch.arange(8).expand(3, 8))
    expected = [most_confident_first(model(), prompt_P, 8) for prompt_P in PROMPT_BP]
    assert result.tokens.tolist() == expected
    assert not torch.equal(result.revealed_at[0], torch.arange(8))  # left to right would prove nothing


@given(masked=st.integers(0, 300), steps=st.integers(1, 60))
def test_commit_counts_are_complete_even_and_non_increasing(masked: int, steps: int) -> None:
    counts = commit_counts(masked, steps)
    assert sum(counts) == masked
    assert len(counts) == steps
    assert max(counts) - min(counts) <= 1
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("remasking", ["low_confidence", "random"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("block_length", "steps"), [(12, 12), (12, 5), (4, 6), (3, 4), (1, 12)])
def test_blocks_are_finished_from_left_to_right_and_nothing_is_revisited(
    remasking: str, temperature: float, block_length: int, steps: int
) -> None:
    predictor = model()
    result = run(
        predictor,
        length=12,
        block_length=block_length,
        steps=steps,
        temperature=temperature,
        remasking=remasking,
    )
    states = [*predictor.seen, result.tokens]
    assert len(predictor.seen) == result.forwards == steps
    assert not (result.tokens == MASK).any()
    per_block = steps // (12 // block_length)
    for step, (before, after) in enumerate(pairwise(states)):
        block = step // per_block
        start, end = 3 + block * block_length, 3 + (block + 1) * block_length
        assert torch.equal(before[:, :3], PROMPT_BP)
        assert not (before[:, 3:start] == MASK).any()
        assert (before[:, end:] == MASK).all()
        committed = before != MASK
        assert torch.equal(before[committed], after[committed])
        changed = (before != after)[:, 3:]
        assert torch.equal(changed, result.revealed_at == step)
        if remasking == "low_confidence":
            count = commit_counts(block_length, per_block)[step % per_block]
            assert changed.sum(1).tolist() == [count] * 3


def test_one_block_is_pure_diffusion() -> None:
    pure = run(model(), length=8, steps=4)
    block = run(model(), length=8, block_length=8, steps=4)
    assert torch.equal(pure.tokens, block.tokens)
    assert torch.equal(pure.revealed_at, block.revealed_at)


def test_growing_one_token_at_a_time_is_greedy_over_one_appended_mask() -> None:
    """Variable-length blocks of one token, made by sampling one token after an ever longer prompt."""
    grown_BP = PROMPT_BP
    expected_BP = PROMPT_BP
    for _ in range(6):
        grown_BP = sample(model(), grown_BP, SamplerConfig(length=1), MASK, seed=0).tokens
        masked_BP = torch.cat([expected_BP, torch.full((3, 1), MASK)], dim=1)
        next_B = model()(masked_BP)[:, -1, :MASK].argmax(-1)
        expected_BP = torch.cat([expected_BP, next_B[:, None]], dim=1)
    assert torch.equal(grown_BP, expected_BP)


@pytest.mark.parametrize("steps", [4, 6])
def test_random_remasking_leaves_the_fraction_s_masked(steps: int) -> None:
    batch, length = 300, 30
    predictor = model()
    config = SamplerConfig(length=length, steps=steps, remasking="random")
    sample(predictor, torch.empty(batch, 0, dtype=torch.int64), config, MASK, seed=1)
    for step, seen_BL in enumerate(predictor.seen):
        s = 1 - step / steps
        error = (s * (1 - s) / (batch * length)) ** 0.5
        assert abs(float((seen_BL == MASK).double().mean()) - s) <= 3.5 * error
    counts = (predictor.seen[1] == MASK).sum(1)
    assert counts.unique().numel() > 1  # by chance, not by count


def test_random_remasking_may_take_more_steps_than_tokens() -> None:
    result = run(model(), length=4, steps=16, remasking="random")
    assert not (result.tokens == MASK).any()
    assert result.forwards == 16


LOGITS_V = torch.tensor([0.3, -1.0, 1.2, 0.0, 2.0, 5.0], dtype=torch.float32)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_frequencies_at_a_temperature_are_the_tempered_softmax(temperature: float) -> None:
    draws = 6000
    ids_N, confidence_N = choose_tokens(
        LOGITS_V.expand(draws, 6), temperature, [5], lambda row: gumbels(6, SequenceKey(2, row), 0, 0)
    )
    observed = np.bincount(ids_N.numpy(), minlength=6)
    assert observed[5] == 0
    right = (LOGITS_V[:5].double() / temperature).softmax(0).numpy()
    wrong = (LOGITS_V[:5].double() / (temperature + 0.25)).softmax(0).numpy()
    assert chisquare(observed[:5], draws * right).pvalue > 1e-3
    assert chisquare(observed[:5], draws * wrong).pvalue < 1e-3
    assert torch.allclose(confidence_N, LOGITS_V[:5].double().softmax(0)[ids_N], atol=1e-14)


def test_sampled_first_tokens_follow_the_softmax() -> None:
    batch = 4000
    prompt_BP = PROMPT_BP[:1].expand(batch, 3)
    result = sample(model(), prompt_BP, SamplerConfig(length=1, temperature=1.0), MASK, seed=4)
    logits_V = model()(torch.tensor([[1, 2, 3, MASK]]))[0, -1, :MASK]
    expected = batch * logits_V.softmax(0).numpy()
    assert chisquare(np.bincount(result.tokens[:, -1].numpy(), minlength=MASK), expected).pvalue > 1e-3


def test_places_of_one_sequence_draw_independently() -> None:
    config = SamplerConfig(length=1000, steps=2, temperature=1.0)
    tokens_L = sample(lambda x: torch.zeros(*x.shape, 5), EMPTY_BP[:1], config, mask_id=4, seed=0).tokens[0]
    assert chisquare(np.bincount(tokens_L.numpy(), minlength=4)).pvalue > 1e-3
    pairs = np.bincount((4 * tokens_L[:-1] + tokens_L[1:]).numpy(), minlength=16)
    assert chisquare(pairs).pvalue > 1e-3


def test_random_numbers_belong_to_the_sequence_not_to_the_batch() -> None:
    config = SamplerConfig(length=6, steps=3, temperature=1.0, remasking="random")
    whole = sample(model(), PROMPT_BP, config, MASK, seed=9, first_index=5)
    last = sample(model(), PROMPT_BP[2:], config, MASK, seed=9, first_index=7)
    assert torch.equal(whole.tokens[2:], last.tokens)
    assert torch.equal(whole.revealed_at[2:], last.revealed_at)
    other = sample(model(), PROMPT_BP[2:], config, MASK, seed=10, first_index=7)
    assert not torch.equal(other.tokens, last.tokens)


@pytest.mark.parametrize("temperature", [0.0, 3.0])
def test_mask_and_forbidden_ids_are_never_chosen(temperature: float) -> None:
    def fond_of_masks(tokens_BL: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*tokens_BL.shape, VOCABULARY).index_fill(2, torch.tensor([MASK, 7]), 50.0)

    config = SamplerConfig(length=20, steps=5, temperature=temperature)
    result = sample(fond_of_masks, EMPTY_BP, config, MASK, seed=0, forbidden_ids=[7])
    assert not torch.isin(result.tokens, torch.tensor([MASK, 7])).any()
    assert torch.allclose(result.confidence, torch.tensor(1 / 9, dtype=torch.float64), atol=1e-15)


def test_equal_confidence_commits_from_the_left() -> None:
    result = sample(
        lambda x: torch.zeros(*x.shape, VOCABULARY), EMPTY_BP, SamplerConfig(length=6, steps=3), MASK, seed=0
    )
    assert result.revealed_at.tolist() == [[0, 0, 1, 1, 2, 2]] * 3


def test_prompt_is_left_as_it_was() -> None:
    prompt_BP = PROMPT_BP.clone()
    sample(model(), prompt_BP, SamplerConfig(length=4), MASK, seed=0)
    assert torch.equal(prompt_BP, PROMPT_BP)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"length": 8, "block_length": 3}, "block_length: 3 does not divide length 8: use 2"),
        ({"length": 8, "block_length": 99}, "block_length: 99 does not divide length 8: use 8"),
        ({"length": 8, "block_length": 4, "steps": 5}, "steps: 5 cannot be shared evenly by 2 blocks: use 4"),
        ({"length": 8, "block_length": 2, "steps": 1}, "steps: 1 cannot be shared evenly by 4 blocks: use 4"),
        ({"length": 8, "steps": 9}, "steps: 9 steps have only 8 tokens to commit: use 8"),
        ({"length": 0}, "length"),
        ({"length": "many"}, "length"),
        ({"length": 8, "steps": 0}, "steps"),
        ({"length": 8, "temperature": -1}, "temperature"),
        ({"length": 8, "temperature": float("nan")}, "temperature"),
        ({"length": 8, "remasking": "low"}, "remasking"),
        ({"length": 8, "blocks_length": 4}, "blocks_length.*did you mean 'block_length'"),
    ],
)
def test_bad_settings_name_the_key_and_the_mend(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SamplerConfig.parse(values, "sampler")


def test_bad_requests_are_one_line() -> None:
    config = SamplerConfig(length=4)
    with pytest.raises(UserError, match="prompt: it holds the mask id 9"):
        sample(model(), PROMPT_BP, config, 9, seed=0)
    with pytest.raises(UserError, match="forbidden_ids: 11 is no id"):
        sample(model(), PROMPT_BP, config, MASK, seed=0, forbidden_ids=[11])
    with pytest.raises(UserError, match="all 11 ids"):
        sample(model(), PROMPT_BP, config, MASK, seed=0, forbidden_ids=range(11))
    with pytest.raises(UserError, match="seed: -3"):
        sample(model(), PROMPT_BP, SamplerConfig(length=4, temperature=1.0), MASK, seed=-3)
