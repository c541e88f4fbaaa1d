"""Shapes from sizes: the published ones exactly, all others near the size asked for and fit to be cut."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.recipe import load_recipe
from pretrain.scaling import families
from pretrain.scaling.families import shape_of_size
from runtime.errors import UserError

RECIPES = {("llada", "1B"): "llada-1b", ("llada", "8B"): "llada-8b", ("ar", "1B"): "ar-1b", ("ar", "7B"): "ar-7b"}


@pytest.mark.parametrize(("family", "name"), RECIPES)
def test_published_shapes_by_name_by_size_and_by_rule(family: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load_recipe(RECIPES[family, name], []).model
    size = expected.parameters().non_embedding_matrices
    assert shape_of_size(family, name) == shape_of_size(family, name.lower()) == expected
    assert shape_of_size(family, size * 1.005) == expected  # the paper's rounded figure means that shape
    monkeypatch.setattr(families, "_NEAR", -1.0)
    assert shape_of_size(family, size) == expected  # and the rule alone gives it too


@settings(deadline=None)
@given(st.floats(3e4, 2e11), st.sampled_from(["llada", "ar"]))
def test_any_size_is_met(size: float, family: str) -> None:
    shape = shape_of_size(family, size, vocabulary=50_000)
    found = shape.parameters().non_embedding_matrices
    grain = 6 * shape.layers * shape.width  # weights of two features in every layer
    assert abs(found - size) <= max(0.0101 * size, grain)
    assert shape.vocabulary == 50_000
    assert 0.8 < shape.ffn / shape.width < 6.5
    assert shape.head_width in (16, 32, 64, 128)
    if shape.heads >= 24:
        assert shape.heads % 8 == 0


def test_depth_and_width_grow_with_the_size() -> None:
    sizes = [10 ** (exponent / 4) for exponent in range(18, 46)]
    shapes = [shape_of_size("llada", size) for size in sizes]
    for small, large in pairwise(shapes):
        assert large.layers >= small.layers
        assert large.width >= small.width


def test_both_families_are_alike_up_to_1b() -> None:
    for size in (1e5, 3e6, 1e8, 7e8, "1B"):
        assert shape_of_size("llada", size) == shape_of_size("ar", size)
    assert shape_of_size("llada", 5e9).kv_heads == shape_of_size("llada", 5e9).heads
    assert shape_of_size("ar", 5e9).kv_heads < shape_of_size("ar", 5e9).heads


@pytest.mark.parametrize("size", ["2B", "", "-1e6", float("nan"), float("inf"), 999, "1e999"])
def test_what_is_no_size_is_refused(size: str | float) -> None:
    with pytest.raises(UserError, match=r"size .* is neither one of 1B, 8B nor a number of weights"):
        shape_of_size("llada", size)


def test_unknown_family() -> None:
    with pytest.raises(UserError, match=r"family 'lada' is none of llada, ar \(did you mean 'llada'\?\)"):
        shape_of_size("lada", 1e6)
