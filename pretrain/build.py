"""From a configuration to an engine: the one place that knows which engine is which."""

from __future__ import annotations

from functools import partial

from parallel.engines.base import Engine
from parallel.megatron_config import transformer_config
from parallel.mesh import Mesh
from pretrain.config import RunConfig
from pretrain.initialise import initialise_engine
from pretrain.model import Transformer
from pretrain.stage_cut import stages_of


def build_engine(config: RunConfig, mesh: Mesh) -> Engine:
    """The model with freshly initialised weights under `mesh`'s layout, in the engine that the layout names."""
    engine = empty_engine(config, mesh)
    initialise_engine(engine, config.model, config.train.seed)
    return engine


def empty_engine(config: RunConfig, mesh: Mesh) -> Engine:
    """As `build_engine`, with weights that hold no values yet."""
    shape, train = config.model, config.train
    engine_config = transformer_config(mesh, shape.width, shape.heads, train.precision)
    build = partial(Transformer, shape, mesh, engine_config, config.objective.causal, train.head_chunk)
    if mesh.layout.engine == "deepspeed":
        from parallel.engines.deepspeed import DeepSpeedEngine

        return DeepSpeedEngine(mesh, build, config.optimizer, train.precision, config.micro_batches(mesh.world))
    from parallel.engines.megatron import MegatronEngine

    chunks = stages_of(config, mesh.layout)[mesh.pipeline_rank :: mesh.layout.pipeline]
    models = [build(stage).to(mesh.device) for stage in chunks]
    return MegatronEngine(
        mesh, engine_config, models, config.optimizer, train.precision, train.sequence_length, train.micro_batch
    )
