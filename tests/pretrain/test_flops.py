"""FLOPs against the LLaDA paper's figures; `test_flops_counted` has the counter."""

import pytest

from pretrain.flop_conventions import CONVENTIONS, Training
from pretrain.flops import (
    FlopCount,
    attended_in_documents,
    autoregressive_sampling_flops,
    block_diffusion_flops_per_token,
    diffusion_sampling_flops,
    expected_mask_ratio,
    forward_flops_per_token,
    six_nd,
    training_flops_per_token,
)
from pretrain.shape import ModelShape
from runtime.errors import UserError

COMMON = {"heads": 32, "vocabulary": 126_464}
SHAPE_1B = ModelShape(layers=22, width=2048, kv_heads=4, ffn=5634, **COMMON)
SHAPE_7B = ModelShape(layers=28, width=4096, kv_heads=8, ffn=13440, **COMMON)
SHAPE_8B = ModelShape(layers=32, width=4096, kv_heads=32, ffn=12288, **COMMON)


@pytest.mark.parametrize(
    ("shape", "causal", "expected"),
    [
        (SHAPE_8B, False, (41.88, 6.44, 3.11, 51.4)),
        (SHAPE_1B, False, (5.81, 2.21, 1.55, 9.58)),
        (SHAPE_1B, True, (5.81, 1.11, 1.55, 8.48)),
        (SHAPE_7B, True, (34.8, 2.8, 3.1, 40.7)),
    ],
)
def test_gigaflops_per_token_at_length_4096(
    shape: ModelShape, causal: bool, expected: tuple[float, float, float, float]
) -> None:
    count = training_flops_per_token(shape, 4096, causal)
    found = (count.projections, count.attention, count.head, count.total)
    for value, giga in zip(found, expected, strict=True):
        digits = len(str(giga).split(".")[1])
        assert value / 1e9 == pytest.approx(giga, abs=0.75 * 10**-digits)  # sums of rounded numbers


def test_exact_count_of_the_8b_run_and_what_the_rule_leaves_out() -> None:
    exact = training_flops_per_token(SHAPE_8B, 4096, causal=False).times(2.3e12).total
    rule = six_nd(SHAPE_8B.parameters().non_embedding_matrices, 2.3e12)
    assert f"{exact:.2e}" == "1.18e+23"
    assert f"{rule:.2e}" == "9.63e+22"
    assert rule / exact == pytest.approx(0.81, abs=0.005)


def test_masked_1b_does_13_percent_more_than_causal_at_equal_6nd() -> None:
    masked = training_flops_per_token(SHAPE_1B, 4096, causal=False)
    causal = training_flops_per_token(SHAPE_1B, 4096, causal=True)
    assert masked.total / causal.total == pytest.approx(1.13, abs=0.005)


def test_formulas_to_the_last_flop() -> None:
    count = training_flops_per_token(SHAPE_1B, 1000, causal=True)
    assert count == FlopCount(6 * 969_154_560, 6 * 22 * 1001 * 2048, 6 * 126_464 * 2048)
    assert training_flops_per_token(SHAPE_1B, 1000, causal=False).attention == 12 * 22 * 1000 * 2048
    assert forward_flops_per_token(SHAPE_1B, 1000, causal=True).times(3) == count


def test_head_on_masked_rows_only() -> None:
    full = training_flops_per_token(SHAPE_8B, 4096, causal=False)
    part = training_flops_per_token(SHAPE_8B, 4096, causal=False, head_rows=expected_mask_ratio(1e-3))
    assert part.head == pytest.approx(0.5005 * full.head, rel=1e-12)
    assert (part.projections, part.attention) == (full.projections, full.attention)


PUBLISHED = {  # tokens in 10^9 -> FLOPs, as plotted in the paper's scaling study
    "LLaDA 1B": "37.75 2.20e20 88.08 5.13e20 138.41 8.06e20 239.08 1.39e21 352.32 2.05e21 461.37 2.69e21",
    "LLaDA 8B": "62.91 2.63e21 125.83 5.27e21 251.66 1.05e22 503.32 2.11e22 1107.30 4.64e22 1233.13 5.16e22 "
    "1358.95 5.69e22 1547.70 6.48e22 1975.52 8.27e22",
    "AR 1B": "37.75 2.20e20 88.08 5.13e20 138.41 8.06e20",
    "AR 7B": "17.30 6.02e20 173.02 6.02e21 519.09 1.81e22 1038.09 3.61e22 2076.18 7.23e22 2214.59 7.71e22",
}
PUBLISHED_SHAPES = {"LLaDA 1B": SHAPE_1B, "LLaDA 8B": SHAPE_8B, "AR 1B": SHAPE_1B, "AR 7B": SHAPE_7B}


@pytest.mark.parametrize("name", PUBLISHED)
def test_6nd_gives_every_published_point(name: str) -> None:
    """To three digits with N as the paper prints it (0.97, 5.80, 6.98 billion), to 0.4 % with the exact N.

    No exact count, with or without norms, gives every digit: 1B at 88.08 billion tokens needs N ≥ 0.9698.
    """
    numbers = [float(text) for text in PUBLISHED[name].split()]
    exact = PUBLISHED_SHAPES[name].parameters().non_embedding_matrices
    printed = round(exact, -7)
    for billions, flops in zip(numbers[::2], numbers[1::2], strict=True):
        assert f"{six_nd(printed, billions * 1e9):.2e}" == f"{flops:.2e}"
        assert six_nd(exact, billions * 1e9) == pytest.approx(flops, rel=0.004)


@pytest.mark.parametrize(
    ("length", "rows", "key"),
    [
        (0, 1.0, "sequence_length"),
        (8, 1.5, "head_rows"),
        (8, -0.1, "head_rows"),
        (8, float("nan"), "head_rows"),
    ],
)
def test_numbers_out_of_range_name_the_key(length: int, rows: float, key: str) -> None:
    with pytest.raises(UserError, match=key):
        training_flops_per_token(SHAPE_1B, length, causal=False, head_rows=rows)


def test_every_convention_says_what_it_counts_for_the_8b_model() -> None:
    run = Training(SHAPE_8B, 4096, causal=False, head_rows=expected_mask_ratio(1e-3))
    found = {name: rule.per_token(run) / 1e9 for name, rule in CONVENTIONS.items()}
    assert all(rule.name == name and rule.counts for name, rule in CONVENTIONS.items())
    assert found["exact"] == pytest.approx(51.43, abs=0.01)
    assert found["computed"] == pytest.approx(51.43 - 0.4995 * 3.108, abs=0.01)
    assert found["6nd"] == pytest.approx(6 * 6.979321856, rel=1e-12)
    assert found["6nd_printed"] == pytest.approx(6 * 6.98, rel=1e-12)
    assert found["6nd_total"] == pytest.approx(6 * 8.015581184, rel=1e-12)
    assert found["eth"] == pytest.approx(found["6nd"] + 12 * 32 * 4096 * 4096 / 1e9, rel=1e-12)
    assert found["palm"] == pytest.approx(found["6nd_total"] + 12 * 32 * 4096 * 4096 / 1e9, rel=1e-12)


def test_documents_attend_to_the_mean_square_over_the_mean() -> None:
    assert attended_in_documents([4096], causal=False) == 4096
    assert attended_in_documents([1] * 50, causal=False) == attended_in_documents([1] * 50, causal=True) == 1
    assert attended_in_documents([1, 3], causal=False) == (1 + 9) / 4
    assert attended_in_documents([1, 3], causal=True) == (1 + 6) / 4
    for lengths in ([], [3, 0]):
        with pytest.raises(UserError, match="lengths"):
            attended_in_documents(lengths, causal=False)


def test_block_diffusion_of_one_block_is_two_halves_of_which_one_is_idle() -> None:
    whole = block_diffusion_flops_per_token(SHAPE_1B, 64, 64, head_rows=0.5)
    plain = training_flops_per_token(SHAPE_1B, 64, causal=False, head_rows=0.5)
    assert (whole.projections, whole.attention, whole.head) == (2 * plain.projections, 2 * plain.attention, plain.head)
    with pytest.raises(UserError, match="block: 6 does not divide a sequence of 64"):
        block_diffusion_flops_per_token(SHAPE_1B, 64, 6)


def test_sampling_with_a_cache_costs_one_causal_pass_with_logits_for_new_tokens() -> None:
    cached = autoregressive_sampling_flops(SHAPE_1B, prompt=100, length=28, cached=True)
    window = 127  # the last sampled token is never read
    once = forward_flops_per_token(SHAPE_1B, window, causal=True, head_rows=28 / window).times(window)
    assert cached.total == pytest.approx(once.total, rel=1e-12)
    diffusion = diffusion_sampling_flops(SHAPE_1B, prompt=100, length=28, steps=28)
    assert diffusion.projections / cached.projections == pytest.approx(28 * 128 / 127, rel=1e-12)
