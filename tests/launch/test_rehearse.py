"""`lacuna train --rehearse`: big layouts built without GPUs, and what is said of those that cannot be."""

import json
from collections.abc import Callable
from subprocess import CompletedProcess
from typing import Any

import pytest

from launch.recipe import load_recipe
from parallel.logical import Block, Rectangle
from pretrain.planning.estimate import DEVICES
from pretrain.planning.memory import memory
from pretrain.planning.nearest_layout import keys_of, nearest_layout
from runtime.errors import LacunaError
from tests.support.command_line import refusal, succeeded

Here = Callable[..., "CompletedProcess[str]"]
UNEVEN = ["model.layers=7", "parallel.tensor=2", "parallel.pipeline=3", "parallel.virtual_pipeline=2"]


def _rehearsed(here: Here, recipe: str, *arguments: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(succeeded(here("train", recipe, "--rehearse", "--json", *arguments)))
    return result


def test_llada_8b_on_32_nodes_as_shipped(here: Here) -> None:
    result = here("train", "llada-8b", "--rehearse", "--nodes", "32", "--json")
    said = json.loads(succeeded(result))
    assert result.stderr == ""
    assert (said["name"], said["layout"], said["world"]) == ("llada-8b", "megatron tp8 dp32 sp zero1", 256)
    assert (said["micro_batches"], said["coordinates"], said["tensors"]) == (40, 8, 291)
    assert said["elements"] == 8_015_581_184
    assert said["fits"]
    (stage,) = said["stages"]
    assert stage["layers"] == ["0-31"]
    matrices, norms = 6_979_321_856 + 2 * 126_464 * 4096, 65 * 4096
    held = matrices // 8 + norms
    assert stage["parameters"] == held
    assert stage["memory"]["weights"] == 2 * held
    assert stage["memory"]["gradients"] == 4 * held
    assert stage["memory"]["optimizer"] == 12 * held // 32
    assert stage["memory"]["total"] == sum(v for key, v in stage["memory"].items() if key != "total")


def test_an_uneven_interleaved_pipeline_with_tensor_ranks_for_people(here: Here) -> None:
    result = here("train", "demo", "--rehearse", "--nodes", "3", "--gpus-per-node", "4", *UNEVEN, "train.micro_batch=1",
                  "train.global_batch=12")  # fmt: skip
    lines = succeeded(result).splitlines()
    assert lines[0] == "demo on 12 ranks as megatron tp2 pp3 v2 dp2 zero1, 6 micro-batches a step."
    text = " ".join(" ".join(lines).split())
    assert "fake process group on the meta device" in text
    assert "Bytes are arithmetic" in text
    assert "all 6 distinct (pipeline, tensor) ranks" in text
    assert "are held exactly once, and a micro-batch went forward and backward" in text
    assert "rehearse: 6/6" in result.stderr
    # the head weighs 0.57 layers, so the chunk with two of them is not the last
    stages = [["0", "0-0", "3-3"], ["1", "1-1", "4-5"], ["2", "2-2", "6-6"]]
    assert [line.split()[:3] for line in lines[-4:-1]] == stages


@pytest.mark.parametrize(("zero", "offload"), [(1, "none"), (3, "optimizer")])
def test_deepspeed_divides_what_it_shards(here: Here, zero: int, offload: str) -> None:
    said = _rehearsed(
        here, "llada-1b", "--nodes", "1", "parallel.engine=deepspeed", f"parallel.zero={zero}", "model.layers=2",
        f"parallel.offload={offload}", "train.micro_batch=2", "parallel.recompute=full",
    )  # fmt: skip
    (stage,) = said["stages"]
    held = load_recipe("llada-1b", ["model.layers=2"]).model.parameters().total
    assert stage["parameters"] == held
    assert stage["memory"]["weights"] == (2 * held // 8 if zero == 3 else 2 * held)
    assert stage["memory"]["buffers"] == (
        2 * held + 2 * 500_000_000 if zero == 3 else 0
    )  # gathered weights, and a bucket
    assert stage["memory"]["optimizer"] == (0 if offload == "optimizer" else 12 * held // 8)


def test_a_sequence_cut_twice_is_built(here: Here) -> None:
    keys = [
        "parallel.context=2",
        "parallel.context_exchange=ring",
        "parallel.tensor=2",
        "parallel.sequence=true",
        "objective.kind=autoregressive",
    ]
    said = _rehearsed(here, "demo", "--nodes", "1", "--gpus-per-node", "4", *keys, "parallel.recompute=full")
    assert said["elements"] == load_recipe("demo", []).model.parameters().total


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["demo", "--rehearse"], "--rehearse needs the size of the cluster: give --nodes N"),
        (["demo", "--nodes", "2"], "--nodes is for --rehearse: add that"),
        (["demo", "--rehearse", "--nodes", "0"], "Invalid value for '--nodes': "),
        (["demo", "--rehearse", "--nodes", "many"], "Invalid value for '--nodes': "),
        (["demo", "--rehearse", "--nodes", "1", "--gpus-per-node", "-1"], "Invalid value for '--gpus-per-node'"),
        (["demo", "--rehearse", "--nodes", "1", "--device", "h20"], "--device 'h20' is none of h200, h100, a100"),
        (["dmeo", "--rehearse", "--nodes", "1"], "(did you mean 'demo'?)"),
        (["llada-8b", "--rehearse", "--nodes", "4", "parallel.tensor=3"], "set parallel.tensor=2"),
        (["llada-8b", "--rehearse", "--nodes", "4", "--set", "parallel.pipeline=33"], "needs as many layers"),
        (
            ["llada-8b", "--rehearse", "--nodes", "5", "--gpus-per-node", "4", "parallel.tensor=8"],
            "parallel.tensor=8 does not divide the world of 20 processes: set parallel.tensor=4",
        ),
        (
            ["llada-8b", "--rehearse", "--nodes", "3"],
            "train.global_batch=1280 is not a multiple of 3 data-parallel ranks × train.micro_batch=1: "
            "set parallel.pipeline=3, or set train.global_batch=1281",
        ),
        (
            ["llada-8b", "--rehearse", "--nodes", "1", "--gpus-per-node", "7", "parallel.tensor=7", "model.ffn=12289"],
            "parallel.tensor=7 does not divide model.heads=32",
        ),
        (
            ["demo", "--rehearse", "--nodes", "1", "--gpus-per-node", "13"],
            "no layout works there, take another number of ranks or another train.global_batch",
        ),
    ],
)
def test_refusals_are_one_line(here: Here, arguments: list[str], line: str) -> None:
    assert line in refusal(here("train", *arguments))


def test_too_much_memory_is_shown_and_refused_with_a_layout_that_fits(here: Here) -> None:
    alone = ["parallel.tensor=1", "parallel.sequence=false", "train.micro_batch=8"]
    result = here("train", "llada-8b", "--rehearse", "--nodes", "1", "--device", "a100", "--json", *alone)
    assert not json.loads(result.stdout)["fits"]
    line = refusal(result)
    assert line.startswith("llada-8b: megatron dp8 zero1 needs ")
    assert " GB on pipeline rank 0, an a100 has 80 GB and a tenth of it is kept free: set parallel." in line
    mended = load_recipe("llada-8b", [*alone, *line.rpartition(": set ")[2].split()])
    assert DEVICES["a100"].holds(memory(mended, mended.parallel, 8))


@pytest.mark.parametrize(
    ("given", "world", "nearest"),
    [
        (["parallel.tensor=8", "parallel.sequence=true"], 20, "parallel.tensor=4"),
        (["parallel.tensor=8", "parallel.sequence=true", "parallel.pipeline=2"], 24, "parallel.pipeline=3"),
        (["parallel.tensor=8", "parallel.sequence=true", "parallel.pipeline=2", "parallel.virtual_pipeline=2"], 1,
         "parallel.tensor=1 parallel.pipeline=1 parallel.virtual_pipeline=1 parallel.sequence=false"),
        ([], 32, ""),
    ],
)  # fmt: skip
def test_the_nearest_layout(given: list[str], world: int, nearest: str) -> None:
    config = load_recipe("llada-8b", given)
    layout = nearest_layout(config, world)
    assert layout is not None
    assert keys_of(layout, config.parallel) == nearest


def test_what_is_held_twice_not_at_all_or_beyond_the_edge_is_found() -> None:
    from pretrain.planning.meta_rank import _require_cover

    def rows(first: int, count: int) -> Block:
        return Block("w", (6, 4), (first, 0), Rectangle((0, 0), (count, 4)))

    assert _require_cover("w", [rows(0, 3), rows(3, 3)]) == 24
    for blocks in ([rows(0, 3), rows(2, 4)], [rows(0, 3), rows(4, 2)], [rows(0, 4), rows(4, 4)], [rows(0, 6)] * 2):
        with pytest.raises(AssertionError, match="w"):
            _require_cover("w", blocks)


def test_a_process_that_fails_is_told(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretrain.planning.rehearse._MODULE", "pretrain.no_such_module")
    result = here("train", "demo", "--rehearse", "--nodes", "1", "--gpus-per-node", "2")
    assert result.returncode == LacunaError.exit_code
    assert result.stderr.splitlines()[-1] == "lacuna: the rehearsal's process ended with code 1"
