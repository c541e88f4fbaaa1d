"""The process of a rehearsal: plays every distinct (pipeline, tensor) rank with shapes and no storage.

`python -m pretrain.planning.meta_rank` reads {config, world, progress} from standard input and answers on
standard output. megatron's groups and layers are the real ones; torch's fake process group answers every collective
at once.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
import warnings
from collections import defaultdict
from dataclasses import replace
from itertools import combinations
from typing import Any

import torch
import torch.distributed as dist

from parallel.logical import Block, Rectangle, logical_parameters
from parallel.megatron_config import transformer_config
from parallel.mesh import Mesh, close_process_group
from pretrain.batch import MicroBatch
from pretrain.config import RunConfig
from pretrain.model import Transformer
from pretrain.stage_cut import stages_of
from runtime.environment import RankInfo
from runtime.errors import one_line
from runtime.progress import ProgressBar

_META = torch.device("meta")


def build_ranks(config: RunConfig, world: int, show_progress: bool) -> dict[str, Any]:
    """Build every (pipeline, tensor) rank and check that together they hold each logical element once.

    Returns `stages` (`layers`, `parameters` of the fullest tensor rank), `tensors` and `elements`.
    """
    layout = config.parallel
    held: dict[str, list[Block]] = defaultdict(list)
    stages = []
    with ProgressBar("rehearse", layout.pipeline * layout.tensor, visible=show_progress) as bar:
        for pipeline_rank in range(layout.pipeline):
            fullest = 0
            for tensor_rank in range(layout.tensor):
                # megatron numbers tensor ranks first and pipeline ranks last
                mesh = _join(config, world, pipeline_rank * (world // layout.pipeline) + tensor_rank)
                assert (mesh.pipeline_rank, mesh.tensor_rank) == (pipeline_rank, tensor_rank), "ranks stand elsewhere"
                models = _models(config, mesh)
                fullest = max(fullest, sum(p.numel() for model in models for p in model.parameters()))
                _note_blocks(models, tensor_rank, held)
                if tensor_rank == 0:
                    _forward_backward(config, mesh, models)
                close_process_group()
                bar.advance(1, f"pipeline rank {pipeline_rank}, tensor rank {tensor_rank}")
            chunks = stages_of(config, layout)[pipeline_rank :: layout.pipeline]
            stages.append({"layers": [f"{c.first}-{c.last - 1}" for c in chunks], "parameters": fullest})
    elements = sum(_require_cover(name, blocks) for name, blocks in held.items())
    whole = config.model.parameters().total
    assert elements == whole, f"the ranks hold {elements} of {whole} logical elements"
    return {"stages": stages, "tensors": len(held), "elements": elements}


def _join(config: RunConfig, world: int, rank: int) -> Mesh:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("cpu:fake,meta:fake", store=FakeStore(), rank=rank, world_size=world)
    mesh = Mesh.create(config.parallel, RankInfo(rank, world))
    torch.cuda.current_device = lambda: _META  # type: ignore[assignment, return-value]  # where megatron gathers into
    return replace(mesh, device=torch.device("cpu"))


def _models(config: RunConfig, mesh: Mesh) -> list[Transformer]:
    shape, train, layout = config.model, config.train, config.parallel
    engine_config = transformer_config(mesh, shape.width, shape.heads, train.precision)
    with _META:
        models = [
            Transformer(shape, mesh, engine_config, config.objective.causal, train.head_chunk, stage)
            for stage in stages_of(config, layout)[mesh.pipeline_rank :: layout.pipeline]
        ]
    for model in models:
        assert all(p.is_meta for p in model.parameters()), "a parameter has taken memory"
        model.to(torch.bfloat16 if train.precision == "bf16" else torch.float32)
    return models


def _note_blocks(models: list[Transformer], tensor_rank: int, held: dict[str, list[Block]]) -> None:
    """Vectors are on all tensor ranks, matrices are cut."""
    for model in models:
        for _, blocks in logical_parameters(model):
            for block in blocks:
                if len(block.shape) > 1 or tensor_rank == 0:
                    held[block.name].append(block)
                else:
                    assert block in held[block.name], f"{block.name} differs between tensor ranks"


def _require_cover(name: str, blocks: list[Block]) -> int:
    """Elements of logical tensor `name`, which `blocks` must hold exactly once."""
    (shape,) = {block.shape for block in blocks}
    whole = Rectangle((0,) * len(shape), shape)
    boxes = [Rectangle(block.offset, block.box.size) for block in blocks]
    assert all(box.intersect(whole) == box or not box.numel for box in boxes), f"{name} reaches out of its shape"
    assert not any(a.intersect(b) for a, b in combinations(boxes, 2)), f"two ranks hold the same part of {name}"
    assert sum(box.numel for box in boxes) == whole.numel, f"{name} is not held whole"
    return whole.numel


def _forward_backward(config: RunConfig, mesh: Mesh, models: list[Transformer]) -> None:
    """Take one micro-batch through each chunk: every operation checks its shapes."""
    train, layout = config.train, config.parallel
    length = train.sequence_length // layout.context
    batch = _batch(train.micro_batch, length, config.objective.head_rows)
    hidden = (length // (layout.tensor if layout.sequence else 1), train.micro_batch, config.model.width)
    dtype = torch.bfloat16 if train.precision == "bf16" else torch.float32
    for model in models:
        if not model.stage.embeds:
            model.input_SBD = torch.empty(hidden, dtype=dtype, device=_META, requires_grad=True)
        output = model(batch)
        if model.stage.has_head:
            output = output[0]
        else:
            assert output.shape == hidden, f"a chunk gives {tuple(output.shape)} to the next, not {hidden}"
        output.backward(torch.empty_like(output))
        assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters()), "a gradient is missing"


def _batch(sequences: int, length: int, head_rows: float) -> MicroBatch:
    """Shapes of a micro-batch with the expected number of counting rows."""
    rows = max(1, round(sequences * length * head_rows))

    def ids(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.int64, device=_META)

    weights = torch.empty(rows, device=_META)
    return MicroBatch(ids(sequences, length), ids(rows), ids(rows), weights, ids(rows), ids(sequences))


def main() -> None:
    """Answer the question on standard input; an error is answered too."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    asked = json.load(sys.stdin)
    try:
        config = RunConfig.parse(asked["config"], "rehearsal")
        answer = build_ranks(config, asked["world"], asked["progress"])
    except Exception as error:
        if os.environ.get("LACUNA_DEBUG"):
            traceback.print_exc()
        answer = {"error": one_line(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
