"""The files of a layout hold exactly what its ranks would write, told without memory."""

import warnings
from typing import Any

import pytest

from parallel.checkpoint.reshard import Piece
from parallel.engines.base import Fragment
from pretrain.build import build_engine
from pretrain.config import RunConfig
from pretrain.divide import rank_division
from runtime.errors import UserError
from tests.support.simulated import needs_cpu, simulated_rank
from tests.support.tiny import tiny_config

pytestmark = [needs_cpu, pytest.mark.filterwarnings("ignore")]  # the engines give many

LAYOUTS: list[tuple[int, dict[str, Any]]] = [
    (1, {}),
    (2, {"zero": 0}),
    (3, {"zero": 1}),
    (4, {"tensor": 2, "sequence": True, "pipeline": 2}),
    (4, {"pipeline": 2, "virtual_pipeline": 2}),
    (4, {"context": 2, "tensor": 2}),
    (3, {"engine": "deepspeed", "zero": 1}),
    (4, {"engine": "deepspeed", "zero": 2, "tensor": 2}),
    (3, {"engine": "deepspeed", "zero": 3}),
]


def config_of(layout: dict[str, Any], precision: str = "fp32") -> RunConfig:
    return tiny_config(
        model__layers=4, parallel=layout, train__global_batch=24, train__micro_batch=1, train__precision=precision
    )


def written_by_real_ranks(config: RunConfig, world: int) -> list[list[Piece]]:
    def pieces(fragment: Fragment) -> list[Piece]:
        return [Piece(fragment.kind, name, box) for name, _, box, _ in fragment.pieces() if box.numel]

    division = []
    for rank in range(world):
        with simulated_rank(config, rank, world) as mesh:
            held = build_engine(config, mesh).fragments()
            division.append([piece for fragment in held if fragment.writes for piece in pieces(fragment)])
    return division


@pytest.mark.parametrize(("world", "layout"), LAYOUTS)
def test_each_file_is_what_the_rank_itself_would_write(world: int, layout: dict[str, Any]) -> None:
    told: list[int] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        division = rank_division(config_of(layout), world, told.append)
        assert division == written_by_real_ranks(config_of(layout), world)
        # a run in bf16 keeps its state in float32, cut alike
        assert division == written_by_real_ranks(config_of(layout, "bf16"), world)
    assert told == [1] * world


def test_a_layout_that_does_not_fit_the_run_is_refused() -> None:
    with pytest.raises(UserError, match="does not divide the world of 3"):
        rank_division(config_of({"tensor": 2}), 3, lambda _: None)
    with pytest.raises(UserError, match="global_batch=24 is not a multiple of 5"):
        rank_division(config_of({}), 5, lambda _: None)
