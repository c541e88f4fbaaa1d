"""Models of one process without an engine."""

from typing import Any

import torch

from parallel.layout import ParallelConfig
from parallel.logical import logical_parameters
from parallel.mesh import Mesh
from pretrain.batch import MicroBatch
from pretrain.config import RunConfig
from pretrain.initialise import initialise
from pretrain.model import Transformer
from tests.support.reference_model import Weights, batch_gradients

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


def gradients_of(model: Transformer, batch: MicroBatch) -> tuple[torch.Tensor, Weights]:
    """Loss sum and its gradients by logical name."""
    loss_sum, _ = model(batch)
    return loss_sum.detach(), logical_gradients(model, torch.autograd.grad(loss_sum, list(model.parameters())))


def largest_error(found: Weights, expected: Weights) -> float:
    """‖found - expected‖ / ‖expected‖ of the worst tensor."""
    assert found.keys() == expected.keys()
    return max(float((found[name].double() - g).norm() / g.norm()) for name, g in expected.items())


def assert_float32_gradients(found: Weights, weights: Weights, config: RunConfig, batch: MicroBatch) -> None:
    """At most four times as far from the float64 reference on `batch` as the same reference in float32 is.

    How near float32 can come is so measured and not chosen; the factor is for other orders of summation.
    """
    causal = config.objective.causal
    _, expected = batch_gradients(weights, config.model, batch, causal)
    _, single = batch_gradients({n: w.float() for n, w in weights.items()}, config.model, batch, causal)
    floor = largest_error(single, expected)
    assert floor < 5e-6
    assert largest_error(found, expected) < 4 * floor
