"""Noise, initial weights and batches are what they were; see tests/golden/regenerate.py."""

import pytest

from tests.golden.regenerate import GOLDEN, read_golden


@pytest.mark.parametrize("name", GOLDEN)
def test_values_are_the_golden_ones(name: str) -> None:
    assert GOLDEN[name]() == read_golden(name)
