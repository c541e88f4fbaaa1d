"""Cuts that know what embedding and head cost, and step times that follow from them."""

import math
from dataclasses import replace
from typing import Any

import pytest

from launch.recipe import load_recipe
from pretrain.config import RunConfig
from pretrain.planning.estimate import DEVICES, step_seconds
from pretrain.planning.plan import rank_layouts
from pretrain.stage_cut import chunks_by_rank, end_costs, imbalance, stages_of
from tests.support.tiny import tiny_config

IDEAL = replace(DEVICES["h200"], node_bandwidth=math.inf, network_bandwidth=math.inf)


def _wide_head(pipeline: int, **changes: Any) -> RunConfig:
    """Ten layers and, with long sequences, a head of about two layers and an embedding of hardly any."""
    sizes: dict[str, Any] = {"model__layers": 10, "model__width": 1024, "model__ffn": 3072, "model__vocabulary": 45_700}
    train = {"train__sequence_length": 8192, "train__micro_batch": 8, "train__global_batch": 192}
    return tiny_config("autoregressive", **sizes | train | {"parallel__pipeline": pipeline} | changes)


def _lengths(config: RunConfig) -> list[int]:
    return [len(stage.layers) for stage in stages_of(config, config.parallel)]


def test_what_the_ends_of_the_8b_model_cost() -> None:
    """By hand: 4096 tokens a micro-batch, half of them masked, 12 bytes a weight for its gradient, 100 FLOPs a byte."""
    config = load_recipe("llada-8b", [])
    weights, vocabulary = 4 * 4096**2 + 3 * 4096 * 12288, 126_464 * 4096
    attention = 3.5 * 4 * 4096 * 4096  # a fused kernel computes half a forward pass again
    layer = (6 * weights + attention) * 4096 + 1200 * weights
    costs = end_costs(config, config.parallel)
    assert costs.embedding == pytest.approx(1200 * vocabulary / layer, rel=1e-12)
    assert costs.head == pytest.approx((6 * vocabulary * config.objective.head_rows * 4096 + 1200 * vocabulary) / layer)
    assert 0.05 < costs.embedding < 0.1
    assert 0.9 < costs.head < 1.2


def test_context_ranks_divide_tokens_but_not_gradients_and_recomputing_makes_layers_dearer() -> None:
    plain, cut, again = (
        load_recipe("llada-8b", keys)
        for keys in ([], ["parallel.context=8"], ["parallel.recompute=full"])
    )  # fmt: skip
    costs, of_part, of_dear = (end_costs(config, config.parallel) for config in (plain, cut, again))
    assert of_part.embedding > 5 * costs.embedding
    assert of_dear.embedding < costs.embedding
    assert of_dear.head < costs.head
    assert end_costs(load_recipe("llada-8b", ["parallel.tensor=1", "parallel.sequence=false"]), plain.parallel) == costs


@pytest.mark.parametrize("pipeline", [2, 3, 4, 6, 8, 12])
def test_a_layer_too_many_is_never_on_the_embeddings_stage(pipeline: int) -> None:
    config = load_recipe("llada-8b", [f"parallel.pipeline={pipeline}"])
    lengths = _lengths(config)
    assert sum(lengths) == 32
    assert lengths[0] <= min(lengths[1:-1], default=max(lengths))


def test_a_dear_embedding_takes_the_place_of_layers() -> None:
    """Micro-batches of few tokens: the embedding's gradient is most of the work of the first stage."""
    config = load_recipe("llada-8b", ["parallel.pipeline=4", "train.sequence_length=128"])
    assert end_costs(config, config.parallel).embedding > 1
    assert _lengths(config)[0] < 8


def test_a_cut_that_follows_the_head_is_not_called_slow() -> None:
    config = _wide_head(4)
    costs = end_costs(config, config.parallel)
    assert _lengths(config) == [3, 3, 3, 1]
    assert costs.head == pytest.approx(2, abs=0.1)
    by_hand = max(3 + costs.embedding, 3, 1 + costs.head) * 4 / (10 + costs.embedding + costs.head)
    assert imbalance(config, config.parallel) == by_hand < 1.03
    assert imbalance(_wide_head(1), _wide_head(1).parallel) == 1
    assert imbalance(_wide_head(8), _wide_head(8).parallel) > 1.3  # twelve layers' work, eight stages


@pytest.mark.parametrize(("pipeline", "virtual"), [(1, 1), (2, 1), (4, 1), (2, 2), (3, 2)])
def test_compute_is_the_busiest_ranks_and_the_bubble(pipeline: int, virtual: int) -> None:
    """Against a machine without traffic: p ranks that share the work evenly would take 1/p of one rank's time."""
    config = _wide_head(pipeline, parallel__virtual_pipeline=virtual)
    layout, alone = config.parallel, _wide_head(1)
    costs = end_costs(config, layout)
    busiest = max(
        sum(len(c.layers) + costs.embedding * c.embeds + costs.head * c.has_head for c in chunks)
        for chunks in chunks_by_rank(config, layout)
    )
    share = busiest / (10 + costs.embedding + costs.head)
    bubble = (pipeline - 1) / (config.micro_batches(pipeline) * virtual)
    expected = step_seconds(alone, alone.parallel, 1, IDEAL) * share * (1 + bubble)
    assert step_seconds(config, layout, pipeline, IDEAL) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("name", "world"), [("llada-8b", 64), ("ar-1b", 8), ("demo", 4)])
def test_layouts_are_ranked_by_the_time_of_their_own_cut(name: str, world: int) -> None:
    """Those that fit by seconds, then the others by bytes; every row reads back and says of itself what is so."""
    config, device = load_recipe(name, []), DEVICES["h100"]
    rows = rank_layouts(config, world, device)
    assert len({row["layout"] for row in rows}) == len(rows) > 5
    keys = [(not row["fits"], row["step_seconds"] if row["fits"] else row["memory_bytes"]) for row in rows]
    assert keys == sorted(keys)
    for row in rows:
        again = RunConfig.parse({**config.model_dump(), "parallel": row["parallel"]}, name)
        assert again.parallel.describe(world) == row["layout"].partition(" recompute")[0]
        assert row["step_seconds"] == step_seconds(again, again.parallel, world, device)
        assert row["stages"] == [f"{s.first}-{s.last - 1}" for s in stages_of(again, again.parallel)]
