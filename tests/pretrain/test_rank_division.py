"""The files of a layout hold exactly what its ranks would write, told without memory."""

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from parallel.checkpoint.diff import EQUAL, CheckpointDifference
from parallel.checkpoint.reshard import Piece
from parallel.engines.base import Fragment
from pretrain.build import build_engine
from pretrain.config import RunConfig
from pretrain.divide import rank_division
from runtime.errors import UserError
from tests.support.checkpoints import publish_run
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


_MEASURED = """
import json, resource, sys, warnings
from pathlib import Path
from parallel.checkpoint.manifest import CheckpointManifest
from parallel.checkpoint.reshard import reshard
from parallel.layout import ParallelConfig
from pretrain.divide import checkpoint_config, rank_division

def resident():
    whole, of_files = map(int, Path("/proc/self/statm").read_text().split()[1:3])
    return (whole - of_files) * resource.getpagesize()

warnings.simplefilter("ignore")
source, out = map(Path, sys.argv[1:3])
manifest = CheckpointManifest.read(source)
seen = []
for number, (world, layout) in enumerate(json.loads(sys.argv[3])):
    division = rank_division(checkpoint_config(manifest, ParallelConfig(**layout), "test"), world, lambda _: None)
    before, told = resident(), []
    reshard(source, manifest, division, out / str(number) / source.name, lambda _: told.append(resident()))
    seen.append((max(told) - before, sum(map(len, division))))
print(json.dumps(seen))
"""


def test_memory_of_a_rewrite_for_a_layout_stays_below_two_of_the_largest_tensor(tmp_path: Path) -> None:
    """A checkpoint of 60 MB whose largest tensor has 8 MB, cut along rows, columns and flat ranges."""
    shape = {"layers": 4, "width": 256, "heads": 4, "kv_heads": 4, "ffn": 512, "vocabulary": 8192}
    config = tiny_config(**{f"model__{key}": value for key, value in shape.items()}, train__global_batch=12)
    source, state = publish_run(tmp_path, config)
    largest = max(tensor.nbytes for tensor in state["weight"].values())
    layouts = [(4, {"tensor": 2, "sequence": True, "pipeline": 2}), (3, {"engine": "deepspeed", "zero": 3})]
    command = [sys.executable, "-c", _MEASURED, str(source), str(tmp_path / "out"), json.dumps(layouts)]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=200).stdout
    measured = json.loads(said.splitlines()[-1])
    assert len(measured) == len(layouts)
    for number, (grown, pieces) in enumerate(measured):
        assert 0 < grown < 2 * largest
        assert pieces > 3 * len(state["weight"])  # tensors are cut
        written = tmp_path / "out" / str(number) / source.name
        assert {tensor.state for tensor in CheckpointDifference(source, written).tensors()} == {EQUAL}
