"""Rotary positions: relative, norm-preserving, and exact where half precision would not be."""

import math

import pytest
import torch

from pretrain.model import rotary_table, rotate

HEAD, THETA = 16, 10_000.0


def heads(seed: int, rows: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(rows, 1, 1, HEAD, generator=torch.Generator().manual_seed(seed)).to(dtype)


def turned(x_SBNH: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return rotate(x_SBNH, rotary_table(positions, HEAD, THETA))


def test_scores_depend_on_the_distance_only() -> None:
    query, key = heads(1).expand(24, 1, 1, HEAD), heads(2).expand(24, 1, 1, HEAD)
    by_distance: dict[int, list[float]] = {}
    for shift in (0, 5, 300):
        positions = torch.arange(24) + shift
        scores = turned(query, positions)[:, 0, 0] @ turned(key, positions)[:, 0, 0].T
        for i in range(24):
            for j in range(24):
                by_distance.setdefault(i - j, []).append(float(scores[i, j]))
    for values in by_distance.values():
        assert max(values) - min(values) < 1e-4
    assert len({round(values[0], 3) for values in by_distance.values()}) > 40  # and it does matter


def test_rotation_keeps_norms_and_starts_at_the_identity() -> None:
    x = heads(3, rows=50)
    y = turned(x, torch.arange(50))
    assert torch.allclose(y.norm(dim=-1), x.norm(dim=-1), rtol=1e-6)
    assert torch.equal(y[0], x[0])
    assert not torch.equal(y[1], x[1])


def test_pairs_are_half_a_head_apart_and_turn_by_powers_of_theta() -> None:
    """The layout of the LLaMA code: number j turns with number j + H/2, by position · theta^(-2j/H)."""
    for pair in range(HEAD // 2):
        unit = torch.zeros(8, 1, 1, HEAD)
        unit[..., pair] = 1.0
        y = turned(unit, torch.arange(8))[:, 0, 0].double()
        for position in range(8):
            angle = position * THETA ** (-2 * pair / HEAD)
            expected = torch.zeros(HEAD, dtype=torch.float64)
            expected[pair], expected[pair + HEAD // 2] = math.cos(angle), math.sin(angle)
            assert torch.allclose(y[position], expected, atol=1e-6)


@pytest.mark.parametrize("theta", [1e3, 5e5])
def test_angles_are_float32_up_to_long_contexts(theta: float) -> None:
    """At position 4095 half precision could not even tell neighbours apart; float32 is off by 2^-24 of the angle."""
    positions = torch.arange(4096)
    cos, sin = rotary_table(positions, HEAD, theta)
    assert cos.dtype == sin.dtype == torch.float32
    assert cos.shape == sin.shape == (4096, 1, 1, HEAD)
    rates = torch.tensor([theta ** (-2 * j / HEAD) for j in range(HEAD // 2)] * 2, dtype=torch.float64)
    angles = positions.double()[:, None] * rates
    assert (cos[:, 0, 0].double() - angles.cos()).abs().max() < 5e-4
    assert (sin[:, 0, 0].double() - angles.sin()).abs().max() < 5e-4


def test_tables_of_parts_of_a_sequence_are_parts_of_its_table() -> None:
    whole = rotary_table(torch.arange(32), HEAD, THETA)
    for first in (0, 8, 24):
        part = rotary_table(torch.arange(first, first + 8), HEAD, THETA)
        assert all(torch.equal(p, w[first : first + 8]) for p, w in zip(part, whole, strict=True))


def test_half_precision_inputs_stay_half_and_near() -> None:
    x = heads(4, rows=64)
    found = turned(x.bfloat16(), torch.arange(64))
    assert found.dtype == torch.bfloat16
    assert (found.float() - turned(x.bfloat16().float(), torch.arange(64))).abs().max() < 0.05
