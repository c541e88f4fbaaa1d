"""Names and shapes of the logical tensors, and that the ranks of a layout cover each exactly once."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.layers import VocabularyHead, annotate_vocabulary
from parallel.layout import ParallelConfig, padded_vocabulary
from parallel.logical import Rectangle, logical_parameters, logical_shapes, rows_block, whole_block
from parallel.mesh import Mesh
from pretrain.build import build_engine
from pretrain.initialise import initial_values, initialise
from pretrain.model import Transformer
from tests.support import reference_model
from tests.support.simulated import needs_cpu, rank_models, simulated_rank
from tests.support.tiny import VOCABULARY, tiny_config

GROUPED = {"heads": 8, "kv_heads": 4, "width": 64, "ffn": 96, "layers": 4, "vocabulary": VOCABULARY}


def hand_mesh(tensor: int, rank: int) -> Mesh:
    return Mesh(ParallelConfig(tensor=tensor), rank, tensor, torch.device("cpu"), tensor_rank=rank)


def test_one_rank_holds_every_logical_tensor_whole() -> None:
    shape = tiny_config(model=GROUPED).model
    model = Transformer(shape, Mesh.local(torch.device("cpu")), None, False, 8)
    expected = reference_model.logical_shapes(shape)
    assert logical_shapes(model) == expected
    assert list(logical_shapes(model)) == list(expected)  # in order of depth
    for parameter, blocks in logical_parameters(model):
        assert sum(block.box.numel for block in blocks) == parameter.numel()
        for block in blocks:
            assert block.offset == (0,) * len(block.shape)
            assert block.box.size == block.shape


def test_names_and_shapes_are_those_of_the_table() -> None:
    """Spelled out once, since checkpoints and exports rely on them."""
    shape = tiny_config(model=GROUPED | {"layers": 1}).model
    model = Transformer(shape, Mesh.local(torch.device("cpu")), None, True, 8)
    assert logical_shapes(model) == {
        "embedding": (131, 64),
        "blocks.0.attention_norm": (64,),
        "blocks.0.attention.query": (64, 64),
        "blocks.0.attention.key": (32, 64),
        "blocks.0.attention.value": (32, 64),
        "blocks.0.attention.output": (64, 64),
        "blocks.0.feed_forward_norm": (64,),
        "blocks.0.feed_forward.gate": (96, 64),
        "blocks.0.feed_forward.up": (96, 64),
        "blocks.0.feed_forward.down": (64, 96),
        "norm": (64,),
        "head": (131, 64),
    }


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_vocabulary_rows_are_held_once_and_padding_by_none(ranks: int) -> None:
    held = torch.zeros(VOCABULARY, dtype=torch.int64)
    real = 0
    for rank in range(ranks):
        head = VocabularyHead(hand_mesh(ranks, rank), "head", VOCABULARY, 6, 8)
        assert head.weight.shape == (padded_vocabulary(VOCABULARY, ranks) // ranks, 6)
        ((_, (block,)),) = logical_parameters(head)
        assert (block.name, block.shape) == ("head", (VOCABULARY, 6))
        assert block.box.start == (0, 0)  # the padding stands behind the real rows
        held[block.offset[0] : block.offset[0] + block.box.size[0]] += 1
        real += block.box.size[0]
        assert head.weight.numel() >= block.box.numel
    assert held.tolist() == [1] * VOCABULARY
    assert real == VOCABULARY


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 16))
def test_any_vocabulary_over_any_ranks(vocabulary: int, ranks: int) -> None:
    padded = padded_vocabulary(vocabulary, ranks)
    assert padded % ranks == 0
    assert vocabulary <= padded < vocabulary + ranks
    rows: list[int] = []
    for rank in range(ranks):
        holder = torch.nn.Linear(2, padded // ranks, bias=False)
        weight = holder.weight = torch.nn.Parameter(torch.empty(padded // ranks, 2))
        count = annotate_vocabulary(weight, hand_mesh(ranks, rank), "v", vocabulary, 2)
        ((_, (block,)),) = logical_parameters(holder)
        assert block.box.size == (count, 2)
        rows += range(block.offset[0], block.offset[0] + count)
        assert getattr(weight, "tensor_model_parallel", False) == (ranks > 1)
    assert rows == list(range(vocabulary))


def test_row_and_whole_blocks() -> None:
    block = rows_block("m", 12, 5, first=4, count=3, local_first=7)
    assert (block.name, block.shape, block.offset) == ("m", (12, 5), (4, 0))
    assert block.box == Rectangle((7, 0), (3, 5))
    assert whole_block("v", (9,)).box == Rectangle((0,), (9,))


LAYOUTS: list[tuple[int, dict[str, Any]]] = [
    (2, {"tensor": 2}),
    (4, {"tensor": 4, "sequence": True}),
    (2, {"pipeline": 2}),
    (8, {"tensor": 4, "pipeline": 2}),
    (3, {"pipeline": 3}),
    (4, {"pipeline": 2, "virtual_pipeline": 2, "tensor": 2}),
    (4, {"tensor": 2, "context": 2}),
]


@needs_cpu
@pytest.mark.parametrize(("world", "layout"), LAYOUTS, ids=str)
def test_model_ranks_cover_every_logical_element_once(world: int, layout: dict[str, Any]) -> None:
    """Of replicated vectors each tensor and context rank has a copy; nothing of the padding is anybody's."""
    config = tiny_config(model=GROUPED, parallel=layout)
    tensor, context = config.parallel.tensor, config.parallel.context
    counts = {name: torch.zeros(size) for name, size in reference_model.logical_shapes(config.model).items()}
    for rank in range(world):
        with simulated_rank(config, rank, world) as mesh:
            for model in rank_models(config, mesh):
                for parameter, blocks in logical_parameters(model):
                    local = torch.zeros(parameter.shape)
                    for block in blocks:
                        counts[block.name][Rectangle(block.offset, block.box.size).slices] += 1
                        local[block.box.slices] += 1
                    assert local.max() <= 1  # blocks of a parameter do not overlap
    for name, count in counts.items():
        copies = context * (tensor if count.dim() == 1 else 1)
        assert (count == copies).all(), name


@needs_cpu
@pytest.mark.parametrize(("world", "layout"), LAYOUTS, ids=str)
def test_initial_weights_of_a_rank_are_its_part_of_the_logical_ones(world: int, layout: dict[str, Any]) -> None:
    config = tiny_config(model=GROUPED, parallel=layout)
    whole = reference_model.starting_weights(config, torch.float32)
    for rank in range(world):
        with simulated_rank(config, rank, world) as mesh:
            for model in rank_models(config, mesh):
                initialise(model, config.model, config.train.seed)
                for parameter, blocks in logical_parameters(model):
                    rest = parameter.detach().clone()
                    for block in blocks:
                        here = Rectangle(block.offset, block.box.size).slices
                        assert torch.equal(parameter[block.box.slices], whole[block.name][here]), block.name
                        rest[block.box.slices] = 0
                    assert not rest.any()  # padding


MEGATRON: list[tuple[int, dict[str, Any]]] = [
    *LAYOUTS,
    (4, {"tensor": 1, "zero": 0}),
    (4, {"tensor": 1, "zero": 1}),
    (4, {"tensor": 2, "zero": 0}),
    (4, {"tensor": 2, "zero": 1}),
    (4, {"tensor": 2, "zero": 1, "sequence": True, "overlap": True}),
    (4, {"context": 2, "zero": 0}),
    (4, {"context": 2, "zero": 1}),
    (4, {"pipeline": 2, "zero": 0}),
    (8, {"tensor": 2, "pipeline": 2, "sequence": True}),
    (8, {"tensor": 2, "context": 2, "zero": 0}),
]
DEEPSPEED: list[tuple[int, dict[str, Any]]] = [
    (world, {"engine": "deepspeed", "zero": zero, "tensor": tensor})
    for zero in (1, 2, 3)
    for world, tensor in ((3, 1), (4, 2))
]


@needs_cpu
@pytest.mark.filterwarnings("ignore")  # the engines give many
@pytest.mark.parametrize(("world", "layout"), [*MEGATRON, *DEEPSPEED], ids=str)
def test_engines_write_every_element_of_every_kind_once(world: int, layout: dict[str, Any]) -> None:
    """Weights and both moments: exactly one rank writes each element, and starts from the logical values."""
    config = tiny_config(model=GROUPED, parallel=layout, train__global_batch=24, train__micro_batch=1)
    shapes = reference_model.logical_shapes(config.model)
    written = {(kind, name): torch.zeros(size) for kind in ("weight", "exp_avg", "exp_avg_sq")
               for name, size in shapes.items()}  # fmt: skip
    for rank in range(world):
        with simulated_rank(config, rank, world) as mesh:
            engine = build_engine(config, mesh)
            assert engine.logical_shapes().items() <= shapes.items()
            for fragment in engine.fragments():
                for name, size, where, view in fragment.pieces():
                    assert size == shapes[name]
                    if fragment.kind == "weight":
                        assert torch.equal(view, initial_values(name, size, where, config.model, config.train.seed))
                    else:
                        assert not view.any()
                    if fragment.writes:
                        written[fragment.kind, name][where.slices] += 1
    for key, count in written.items():
        assert (count == 1).all(), key
