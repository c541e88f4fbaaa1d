"""Bytes sent by theory, against the calls that the engines make in a real step under silent collectives."""

from typing import Any

import pytest

from bench.counted import OWN, CountedTraffic
from parallel.layout import chunk_rows
from pretrain.agreement import agree
from pretrain.build import build_engine
from pretrain.config import RunConfig
from pretrain.feed import Feed
from pretrain.objectives.autoregressive import AutoregressiveSamples
from pretrain.objectives.masked import MaskedSamples
from pretrain.objectives.noise import NoiseSource
from pretrain.planning import traffic as formulas
from pretrain.planning.traffic import traffic, traffic_by_stage
from tests.support.simulated import needs_cpu, simulated_rank
from tests.support.tiny import BOS, MASK, PAD, CountedTokens, tiny_config

pytestmark = needs_cpu
AXES = ("tensor", "pipeline", "context", "data")
SEQUENCE, BATCH = 64, 8
# buckets are padded to 128 elements and megatron's parameters to 64: none of both with these sizes
SIZES = {
    "model__layers": 5, "model__width": 128, "model__ffn": 256, "model__vocabulary": 256,
    "train__sequence_length": SEQUENCE, "train__global_batch": BATCH, "train__micro_batch": 2,
}  # fmt: skip


def _config(objective: str = "autoregressive", precision: str = "fp32", **layout: Any) -> RunConfig:
    keys = {f"parallel__{key}": value for key, value in layout.items()}
    return tiny_config(objective, **SIZES, train__precision=precision, **keys)


def _feed(config: RunConfig, data_rank: int, data_size: int, context_rank: int) -> Feed:
    noise = NoiseSource(3, SEQUENCE, BATCH, 1e-3, 0.0, stratified=True)
    objective = AutoregressiveSamples(BOS) if config.objective.causal else MaskedSamples(noise, MASK, PAD)
    context = config.parallel.context
    return Feed(CountedTokens(SEQUENCE), objective, BATCH, 2, data_rank, data_size, context_rank, context)


def counted(config: RunConfig, world: int, rank: int, steps: int) -> tuple[int, CountedTraffic, int]:
    """Pipeline rank, what rank `rank` sends in the last one of `steps`, and its counting rows."""
    with simulated_rank(config, rank, world) as mesh:
        engine = build_engine(config, mesh)
        feed = _feed(config, mesh.data_rank, mesh.data_size, mesh.context_rank)
        for step in range(steps):
            batch = feed.step(step)
            with CountedTraffic() as sent:
                agreed = agree(mesh, batch, False)
                # sums over silent ranks are not sums: the weights must not follow them
                engine.train_step(batch.micro_batches, float(max(1, agreed.tokens)), 0.0, lambda _loss, _norm: True)
        return mesh.pipeline_rank, sent, sum(len(m.rows_R) for m in batch.micro_batches)


MEGATRON: list[tuple[int, str, dict[str, Any]]] = [
    (2, "fp32", {"tensor": 2}),
    (4, "bf16", {"tensor": 4, "recompute": "selective"}),
    (2, "bf16", {"tensor": 2, "sequence": True}),
    (4, "fp32", {"tensor": 4, "sequence": True, "recompute": "full"}),
    (4, "bf16", {"pipeline": 4}),
    (2, "bf16", {"pipeline": 2, "virtual_pipeline": 2}),
    (2, "bf16", {"context": 2}),
    (4, "fp32", {"context": 4, "recompute": "selective"}),
    (2, "bf16", {"context": 2, "context_exchange": "ring"}),
    (4, "fp32", {"context": 4, "context_exchange": "ring", "recompute": "selective"}),
    (2, "bf16", {"context": 2, "context_exchange": "ring", "recompute": "full"}),
    (2, "bf16", {"zero": 0}),
    (4, "bf16", {"zero": 1}),
    (2, "fp32", {"zero": 1, "overlap": True}),
    (8, "fp32", {"tensor": 2, "pipeline": 2, "context": 2, "sequence": True}),
    (8, "bf16", {"tensor": 2, "pipeline": 2, "virtual_pipeline": 2, "zero": 0}),
]
DEEPSPEED: list[tuple[int, str, dict[str, Any]]] = [
    (2, "fp32", {"zero": 1}),
    (2, "bf16", {"zero": 1, "offload": "optimizer"}),
    (4, "bf16", {"zero": 2, "tensor": 2}),
    (2, "fp32", {"zero": 3, "offload": "parameters"}),
    (4, "bf16", {"zero": 3, "tensor": 2, "recompute": "full"}),
]


def _same(sent: CountedTraffic, theory: formulas.Traffic) -> bool:
    return {axis: sent.bytes[axis] for axis in AXES} == pytest.approx(
        {axis: getattr(theory, axis) for axis in AXES}, rel=1e-12
    )


@pytest.mark.parametrize(("world", "precision", "layout"), MEGATRON, ids=str)
def test_megatron_sends_what_theory_says(world: int, precision: str, layout: dict[str, Any]) -> None:
    """On every axis of the first and the last stage; every row counts, so that the number of rows is known."""
    config = _config(precision=precision, **layout)
    stages = traffic_by_stage(config, config.parallel, world)
    for rank in {0, world - world // len(stages)}:
        stage, sent, rows = counted(config, world, rank, steps=2 if config.parallel.overlap else 1)
        assert rows == BATCH * SEQUENCE // config.parallel.data_size(world) // config.parallel.context
        assert _same(sent, stages[stage])
        assert 0 < sent.bytes[OWN] < 400 + 2 * 2 * 8 * world  # two numbers a rank, summed by all


@pytest.mark.parametrize(("world", "precision", "layout"), DEEPSPEED, ids=str)
def test_deepspeed_sends_what_theory_says(world: int, precision: str, layout: dict[str, Any]) -> None:
    """ZeRO-3 follows two steps before it knows which weights it needs when."""
    config = _config(precision=precision, engine="deepspeed", **layout)
    (theory,) = traffic_by_stage(config, config.parallel, world)
    _, sent, _ = counted(config, world, 0, steps=3 if config.parallel.zero == 3 else 2)
    assert _same(sent, theory)
    assert 0 < sent.bytes[OWN] < 600


def test_the_busiest_rank_of_a_pipeline_stands_in_its_middle() -> None:
    config = _config(pipeline=4)
    stages = traffic_by_stage(config, config.parallel, 4)
    assert [stage.pipeline / stages[0].pipeline for stage in stages] == [1, 2, 2, 1]
    assert traffic(config, config.parallel, 4).total == stages[1].total


def test_a_masked_batch_sends_its_own_rows() -> None:
    """Theory takes the expected number of rows; the difference is that of this batch's rows and chunks."""
    config = _config("masked", tensor=2)
    (theory,) = traffic_by_stage(config, config.parallel, 2)
    _, sent, rows = counted(config, 2, 0, steps=1)
    batch, tokens = BATCH * SEQUENCE, 2 * SEQUENCE
    expected = batch * config.objective.head_rows
    assert rows != expected
    chunk = chunk_rows(config.train.head_chunk, tokens)
    by_rows = (rows - expected) * config.model.width * 4
    # the rows of all chunks are a number of whole chunks
    softmax = (sent.bytes["tensor"] - theory.tensor - by_rows) / 12 + expected + BATCH // 2 * chunk / 2
    assert softmax / chunk == pytest.approx(round(softmax / chunk), abs=1e-6)
    assert rows <= softmax < rows + BATCH // 2 * chunk


@pytest.mark.parametrize(("reuse", "recompute"), [(600_000, "none"), (600_000, "full")])
def test_zero_3_gathers_again_what_is_used_far_from_now(
    reuse: int, recompute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a layer's elements, since DeepSpeed keeps or releases a module at a time."""
    config = _config(engine="deepspeed", zero=3, recompute=recompute)
    with simulated_rank(config, 0, 2):  # the engine's module wants the CPU patches and a quiet place
        from parallel.engines.deepspeed import DeepSpeedEngine
    settings = DeepSpeedEngine._config

    def nearer(self: DeepSpeedEngine, *arguments: Any) -> dict[str, Any]:
        values = settings(self, *arguments)
        values["zero_optimization"] |= {"stage3_max_reuse_distance": reuse, "stage3_prefetch_bucket_size": 0}
        return values

    monkeypatch.setattr(DeepSpeedEngine, "_config", nearer)
    monkeypatch.setattr(formulas, "_ZERO3_REUSE", reuse)
    (theory,) = traffic_by_stage(config, config.parallel, 2)
    _, sent, _ = counted(config, 2, 0, steps=3)
    micro_batches, half, element = BATCH // 2 // 2, 0.5, 4
    layer = (config.model.parameters().non_embedding // config.model.layers) * micro_batches * half * element
    assert sent.bytes["data"] == pytest.approx(theory.data, abs=layer)


def test_what_llada_8b_sends_in_a_step() -> None:
    """By hand, for 32 layers of width 4096 and 40 micro-batches of 4096 tokens in bf16 over 8 tensor ranks."""
    from launch.recipe import load_recipe

    config = load_recipe("llada-8b", [])
    sent = traffic(config, config.parallel, 256)
    hidden = 4096 * 4096 * 2
    # ten gathers and scatters a layer, two at each end; three fp32 numbers for every masked row
    tensor = (
        40 * ((10 * 32 + 4) * hidden * 7 / 8 + 2 * 7 / 8 * 3 * 4 * (4096 * 0.5005 + 128)) + 65 * 4096 * 4 * 2 * 7 / 8
    )
    assert sent.tensor == pytest.approx(tensor, rel=1e-9)
    held = (6_979_321_856 + 2 * 126_464 * 4096) // 8 + 65 * 4096
    assert sent.data == pytest.approx(held * (4 + 2) * 31 / 32, rel=1e-12)
    assert (sent.pipeline, sent.context) == (0, 0)
