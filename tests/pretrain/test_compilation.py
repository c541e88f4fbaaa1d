"""Compiled blocks compute what eager ones do, and are few."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from pretrain.batch import MicroBatch
from pretrain.build import build_engine
from pretrain.compilation import compile_blocks
from pretrain.config import RunConfig
from runtime.errors import UserError
from tests.support.feeds import whole_feed
from tests.support.models import gradients_of, largest_error, local_model
from tests.support.simulated import needs_cpu, single_process
from tests.support.tiny import tiny_config

pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),  # dynamo looks at it
    pytest.mark.filterwarnings("ignore:`torch.jit.*deprecated:DeprecationWarning"),  # inductor imports it
]

LAYERS = 10  # more than dynamo compiles of one function before it gives up


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def batches(config: RunConfig) -> list[MicroBatch]:
    """Micro-batches of a few steps, some with padding and some without if the objective has any."""
    found = [batch for step in range(3) for batch in whole_feed(config).step(step).micro_batches]
    if config.objective.kind == "masked":
        assert {batch.lengths_B is None for batch in found} == {True, False}
    return found


# the grid has the others on five layers
_SLOW = [(objective, mode) for objective in ("autoregressive", "masked") for mode in ("none", "selective", "full")][:-1]


@pytest.mark.parametrize(
    ("objective", "recompute"),
    [("masked", "full"), *(pytest.param(*case, marks=pytest.mark.slow) for case in _SLOW)],
)
def test_gradients_are_the_eager_ones_and_layers_share_a_graph(objective: str, recompute: str) -> None:
    graphs = 2 if objective == "masked" else 1
    config = tiny_config(objective, model__layers=LAYERS, model__kv_heads=2, model__init_std=0.1)
    eager, compiled = local_model(config, recompute=recompute), local_model(config, recompute=recompute)
    names = [name for name, _ in compiled.named_parameters()]
    compile_blocks(compiled, "aot_eager")
    assert [name for name, _ in compiled.named_parameters()] == names
    for batch in batches(config):
        expected_sum, expected = gradients_of(eager, batch)
        found_sum, found = gradients_of(compiled, batch)
        assert found_sum.item() == pytest.approx(expected_sum.item(), rel=1e-6)
        assert largest_error(found, {name: g.double() for name, g in expected.items()}) < 1e-6
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor_computes_the_same() -> None:
    config = tiny_config("autoregressive", model__init_std=0.1)
    eager, compiled = local_model(config), local_model(config)
    compile_blocks(compiled)
    for batch in batches(config)[:2]:
        expected_sum, expected = gradients_of(eager, batch)
        found_sum, found = gradients_of(compiled, batch)
        assert found_sum.item() == pytest.approx(expected_sum.item(), rel=1e-6)
        assert largest_error(found, {name: g.double() for name, g in expected.items()}) < 2e-6
    assert counters["stats"]["unique_graphs"] == 1


@needs_cpu
@pytest.mark.parametrize("engine", ["megatron", "deepspeed"])
def test_engines_train_on_compiled_blocks_and_compile_nothing_else(engine: str) -> None:
    """Also behind the CPU's patches, where all that megatron decorates stays as it is."""

    def losses(compiled: bool) -> list[tuple[float, float]]:
        config = tiny_config(parallel__engine=engine, model__init_std=0.1, train__compile=compiled)
        with single_process(config) as mesh:
            trained, feed, found = build_engine(config, mesh, compile_backend="aot_eager"), whole_feed(config), []
            for step in range(3):
                batch = feed.step(step)
                taken = trained.train_step(batch.micro_batches, float(batch.tokens), 0.003, lambda _l, _n: True)
                found.append((taken.loss_sum, taken.grad_norm))
        return found

    expected = losses(False)
    assert not counters["stats"]["unique_graphs"]
    for found, wanted in zip(losses(True), expected, strict=True):
        assert found == pytest.approx(wanted, rel=1e-6)
    assert counters["stats"]["unique_graphs"] == 2


def test_a_missing_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", ("/nowhere/c++",))
    with pytest.raises(UserError, match=r"^train\.compile=true needs a C\+\+ compiler .* set train\.compile=false$"):
        compile_blocks(local_model(tiny_config()))


@pytest.mark.parametrize(
    ("layout", "complaint", "mend"),
    [
        ({"tensor": 2}, "parallel.tensor=2", "parallel.tensor=1"),
        ({"context": 2}, "parallel.context=2", "parallel.context=1"),
        ({"overlap": True}, "parallel.overlap=true", "parallel.overlap=false"),
        ({"engine": "deepspeed", "zero": 3}, "parallel.zero=3", "parallel.zero=2"),
    ],
)
def test_what_would_break_a_block_up_is_refused(layout: dict[str, Any], complaint: str, mend: str) -> None:
    keys = {f"parallel__{key}": value for key, value in layout.items()}
    tiny_config(**keys)
    with pytest.raises(UserError) as caught:
        tiny_config(**keys, train__compile=True)
    assert f"train.compile=true is not offered with {complaint}: set {mend} or train.compile=false" in str(caught.value)
