"""Models of one process without an engine."""

from typing import Any

import torch

from parallel.layout import ParallelConfig
from parallel.logical import logical_parameters
from parallel.mesh import Mesh
from pretrain.config import RunConfig
from pretrain.initialise import initialise
from pretrain.model import Transformer
from tests.support.reference_model import Weights

CPU = torch.device("cpu")


def local_model(config: RunConfig, **layout: Any) -> Transformer:
    """The initialised model of `config` on the CPU; `layout` are keys of `parallel` that need no other ranks."""
    mesh = Mesh(ParallelConfig(**{"zero": 0, **layout}), 0, 1, CPU)
    model = Transformer(config.model, mesh, None, config.objective.causal, config.train.head_chunk)
    initialise(model, config.model, config.train.seed)
    return model


@torch.no_grad()
def fill_model(model: Transformer, weights: Weights) -> None:
    """Copy whole logical tensors into the model's parameters."""
    for parameter, blocks in logical_parameters(model):
        for block in blocks:
            parameter[block.box.slices] = weights[block.name].to(parameter)


def logical_gradients(model: Transformer, gradients: Any) -> Weights:
    """Gradients in the order of `model.parameters()` by logical name."""
    found: Weights = {}
    for (_, blocks), gradient in zip(logical_parameters(model), gradients, strict=True):
        for block in blocks:
            found[block.name] = gradient[block.box.slices]
    return found
