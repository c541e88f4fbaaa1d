"""Parameter counts of the LLaDA paper's models, and what a shape refuses."""

from typing import Any

import pytest

from pretrain.shape import ModelShape
from runtime.errors import UserError

COMMON = {"heads": 32, "vocabulary": 126_464}
SHAPES = {
    "1B": ModelShape(layers=22, width=2048, kv_heads=4, ffn=5634, **COMMON),
    "AR 7B": ModelShape(layers=28, width=4096, kv_heads=8, ffn=13440, **COMMON),
    "LLaDA 8B": ModelShape(layers=32, width=4096, kv_heads=32, ffn=12288, **COMMON),
}


@pytest.mark.parametrize(
    ("name", "non_embedding", "with_embeddings"),
    [
        ("1B", 969_154_560, 1_487_151_104),
        ("AR 7B", 5_798_625_280, 6_834_618_368),
        ("LLaDA 8B", 6_979_321_856, 8_015_314_944),
    ],
)
def test_matrices_of_the_paper(name: str, non_embedding: int, with_embeddings: int) -> None:
    count = SHAPES[name].parameters()
    assert count.non_embedding_matrices == non_embedding
    assert count.non_embedding_matrices + count.embedding == with_embeddings


def test_norms_are_counted_in_total_and_non_embedding() -> None:
    count = SHAPES["LLaDA 8B"].parameters()
    assert count.norms == 65 * 4096
    assert count.total == 8_015_581_184
    assert count.non_embedding == 6_979_588_096
    assert count.total == count.non_embedding + count.embedding


def test_defaults_and_head_width() -> None:
    shape = SHAPES["1B"]
    assert (shape.head_width, shape.rope_theta, shape.norm_epsilon, shape.init_std) == (64, 5e5, 1e-5, 0.02)


GOOD = {"layers": 2, "width": 96, "heads": 6, "kv_heads": 3, "ffn": 128, "vocabulary": 100}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, "heads: 5 do not divide width 96 .*: use 4"),
        ({"heads": 32, "kv_heads": 32}, "heads: 32 do not divide width 96 in heads of even width: use 24"),
        ({"width": 97}, "width: 97 is odd .*: use 98"),
        ({"kv_heads": 4}, "kv_heads: 4 do not divide 6 heads: use 3"),
        ({"kv_heads": 12}, "kv_heads: 12 do not divide 6 heads: use 6"),
        ({"layers": 0}, "layers"),
        ({"vocabulary": -1}, "vocabulary"),
        ({"ffn": "wide"}, "ffn"),
        ({"width": 96.5}, "width"),
        ({"init_std": 0}, "init_std"),
        ({"rope_theta": float("inf")}, "rope_theta"),
        ({"head": 6}, "unknown key 'head' .did you mean 'heads'"),
    ],
)
def test_bad_shapes_name_the_key_and_the_mend(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ModelShape.parse(GOOD | change, "model")


def test_missing_key_is_named() -> None:
    with pytest.raises(UserError, match="ffn"):
        ModelShape.parse({key: value for key, value in GOOD.items() if key != "ffn"}, "model")
