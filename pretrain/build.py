"""From a configuration to an engine: the one place that knows which engine is which."""

from __future__ import annotations

from typing import Any

from parallel.engines.base import Engine
from parallel.mesh import Mesh
from pretrain.config import RunConfig
from pretrain.initialise import initialise
from pretrain.model import Transformer


def build_engine(config: RunConfig, mesh: Mesh) -> Engine:
    """The model with freshly initialised weights under `mesh`'s layout, in the engine that the layout names."""
    shape, train = config.model, config.train
    from parallel.megatron_config import transformer_config

    engine_config = transformer_config(mesh, shape.layers, shape.width, shape.heads, train.precision)
    model = Transformer(shape, mesh, engine_config, config.objective.causal, train.head_chunk)
    initialise(model, shape, train.seed)
    model = model.to(mesh.device)
    micro_batches = config.micro_batches(mesh.world)
    if mesh.layout.engine == "deepspeed":
        from parallel.engines.deepspeed import DeepSpeedEngine

        DeepSpeedEngine.prepare(mesh)
        return DeepSpeedEngine(mesh, model, config.optimizer, train.precision, micro_batches)
    from parallel.engines.megatron import MegatronEngine

    return MegatronEngine(mesh, engine_config, model, config.optimizer, train.precision, train.sequence_length)


def model_identity(config: RunConfig) -> dict[str, Any]:
    """What must agree between a checkpoint and the run that loads it."""
    return {"model": config.model.model_dump(), "causal": config.objective.causal}
