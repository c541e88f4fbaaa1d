"""Bits per byte and its standard error."""

import math

import numpy as np
import pytest
import torch

from inference.bits_per_byte import bits_per_byte
from runtime.errors import UserError


def test_uniform_bytes_cost_eight_bits_with_no_error() -> None:
    sizes = torch.tensor([10.0, 20.0, 5.0], dtype=torch.float64)
    result = bits_per_byte(sizes * math.log(256), sizes)
    assert result.value == pytest.approx(8, abs=1e-12)
    assert result.standard_error == pytest.approx(0, abs=1e-12)


def test_equal_sizes_give_the_standard_error_of_a_mean() -> None:
    nats = np.array([3.0, 5.0, 4.0, 9.0])
    value, error = bits_per_byte(nats.tolist(), [7] * 4)
    per_byte = nats / 7 / math.log(2)
    assert value == pytest.approx(per_byte.mean(), abs=1e-12)
    assert error == pytest.approx(per_byte.std(ddof=1) / 2, abs=1e-12)


def test_standard_error_is_the_spread_over_repeated_samples() -> None:
    random = np.random.default_rng(0)
    sizes = random.integers(20, 60, size=(2000, 100))
    nats = sizes * random.gamma(4, 0.3, size=sizes.shape)
    results = [bits_per_byte(n.tolist(), s.tolist()) for n, s in zip(nats, sizes, strict=True)]
    spread = np.std([r.value for r in results])
    assert np.mean([r.standard_error for r in results]) == pytest.approx(spread, rel=0.05)


def test_one_window_has_a_value_and_no_error() -> None:
    result = bits_per_byte([math.log(2)], [1])
    assert result.value == pytest.approx(1)
    assert math.isnan(result.standard_error)


@pytest.mark.parametrize(("nats", "sizes"), [([1.0], [1, 2]), ([], []), ([1.0], [0]), ([1.0, 1.0], [-1, 3])])
def test_bad_sizes_are_refused(nats: list[float], sizes: list[int]) -> None:
    with pytest.raises(UserError, match="bits per byte"):
        bits_per_byte(nats, sizes)
