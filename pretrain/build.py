"""From a configuration to an engine: the one place that knows which engine is which."""

from __future__ import annotations

from parallel.engines.base import Engine
from parallel.megatron_config import transformer_config
from parallel.mesh import Mesh
from parallel.stages import Stage
from pretrain.compilation import compile_blocks
from pretrain.config import RunConfig
from pretrain.initialise import initialise_engine
from pretrain.model import Transformer
from pretrain.stage_cut import stages_of


def build_engine(config: RunConfig, mesh: Mesh, compile_backend: str = "inductor") -> Engine:
    """The model with freshly initialised weights under `mesh`'s layout, in the engine that the layout names.

    `compile_backend`: what torch.compile uses under `train.compile`. Raises UserError if it has no compiler.
    """
    engine = empty_engine(config, mesh, compile_backend if config.train.compile else None)
    initialise_engine(engine, config.model, config.train.seed)
    return engine


def empty_engine(config: RunConfig, mesh: Mesh, compile_backend: str | None = None) -> Engine:
    """As `build_engine`, with weights that hold no values yet; blocks are compiled if a backend is given."""
    shape, train = config.model, config.train
    engine_config = transformer_config(mesh, shape.width, shape.heads, train.precision)

    def build(stage: Stage | None = None) -> Transformer:
        model = Transformer(shape, mesh, engine_config, config.objective.causal, train.head_chunk, stage)
        if compile_backend is not None:
            compile_blocks(model, compile_backend)
        return model

    if mesh.layout.engine == "deepspeed":
        from parallel.engines.deepspeed import DeepSpeedEngine

        return DeepSpeedEngine(mesh, build, config.optimizer, train.precision, config.micro_batches(mesh.world))
    from parallel.engines.megatron import MegatronEngine

    chunks = stages_of(config, mesh.layout)[mesh.pipeline_rank :: mesh.layout.pipeline]
    models = [build(stage).to(mesh.device) for stage in chunks]
    return MegatronEngine(
        mesh, engine_config, models, config.optimizer, train.precision, train.sequence_length, train.micro_batch
    )
