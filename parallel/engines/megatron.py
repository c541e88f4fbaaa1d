"""The megatron-core engine: tensor and sequence parallel layers, DDP, distributed optimizer (ZeRO-1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.enums import ModelType
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from parallel.engines.base import (
    KINDS,
    Fragment,
    StepResult,
    blocks_by_parameter,
    ensure_adam_state,
    is_sharded,
    set_adam_steps,
    summarise,
)
from parallel.engines.settings import AdamWSettings
from parallel.logical import logical_shapes
from parallel.mesh import Mesh


class _Stage(MegatronModule):
    """What megatron's schedule and wrappers ask of a model, around ours."""

    model_type = ModelType.encoder_or_decoder
    share_embeddings_and_output_weights = False

    def __init__(self, config: TransformerConfig, model: torch.nn.Module) -> None:
        super().__init__(config)
        self.model = model
        self.pre_process = self.post_process = True

    def set_input_tensor(self, tensor: Any) -> None:
        """Activations of the previous pipeline stage; a whole model has none."""

    def forward(self, batch: Any) -> Any:
        return self.model(batch)


class MegatronEngine:
    """Implements `parallel.engines.base.Engine` on megatron-core."""

    def __init__(
        self,
        mesh: Mesh,
        config: TransformerConfig,
        model: torch.nn.Module,
        optimizer: AdamWSettings,
        precision: str,
        sequence_length: int,
    ) -> None:
        self.mesh = mesh
        self._settings = optimizer
        self._sequence_length = sequence_length
        sharded = mesh.layout.zero == 1
        if precision == "bf16":
            model = model.bfloat16()
        self._model = model
        ddp = DistributedDataParallelConfig(use_distributed_optimizer=sharded, grad_reduce_in_fp32=True)
        self._wrapped = DistributedDataParallel(config, ddp, _Stage(config, model))
        self._optimizer = get_megatron_optimizer(
            OptimizerConfig(
                optimizer="adam",
                lr=0.0,
                weight_decay=optimizer.weight_decay,
                adam_beta1=optimizer.betas[0],
                adam_beta2=optimizer.betas[1],
                adam_eps=optimizer.epsilon,
                clip_grad=optimizer.clip,
                use_distributed_optimizer=sharded,
                bf16=precision == "bf16",
                params_dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
            ),
            [self._wrapped],
            use_gloo_process_groups=False,
        )
        config.grad_scale_func = self._optimizer.scale_loss
        config.finalize_model_grads_func = _reduce_gradients
        for inner in self._inner_optimizers():
            ensure_adam_state(inner.optimizer)

    def train_step(self, micro_batches: Sequence[Any], denominator: float, learning_rate: float) -> StepResult:
        """See `Engine.train_step`."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
            # megatron applies `wd_mult` in its own scheduler only, which is not used here
            group["weight_decay"] = self._settings.weight_decay * group["wd_mult"]
        self._wrapped.zero_grad_buffer()
        self._optimizer.zero_grad()
        outputs = get_forward_backward_func()(
            forward_step_func=partial(_forward, 1.0 / denominator, self.mesh.device),
            data_iterator=iter(micro_batches),
            model=self._wrapped,
            num_microbatches=len(micro_batches),
            seq_length=self._sequence_length,
            micro_batch_size=1,
            forward_only=False,
        )
        _, grad_norm, _ = self._optimizer.step()
        return summarise(self.mesh, torch.stack(outputs).sum(0).cpu(), float(grad_norm))

    def _inner_optimizers(self) -> list[Any]:
        return list(getattr(self._optimizer, "chained_optimizers", [self._optimizer]))

    def fragments(self) -> Iterator[Fragment]:
        """See `Engine.fragments`."""
        blocks = blocks_by_parameter(self._model)
        for parameter, start, main, optimizer in self._main_parameters():
            writes = is_sharded(parameter) or self.mesh.tensor_rank == 0
            if self.mesh.layout.zero == 0:
                writes = writes and self.mesh.data_rank == 0
            tensors = {"weight": main, **optimizer.optimizer.state[main]}
            for kind in KINDS:
                values = tensors[kind].detach().view(-1)
                yield Fragment(kind, tuple(parameter.shape), blocks[parameter], start, values, writes)

    def _main_parameters(self) -> Iterator[tuple[torch.nn.Parameter, int, torch.Tensor, Any]]:
        """(model parameter, first flat element, float32 master of this rank's part, optimizer that holds it)."""
        for optimizer in self._inner_optimizers():
            if self.mesh.layout.zero == 1:
                for parameter, (group, order) in optimizer.model_param_group_index_map.items():
                    main = optimizer.optimizer.param_groups[group]["params"][order]
                    yield parameter, optimizer._get_model_param_range_map(parameter)["param"].start, main, optimizer
            else:
                mains = {id(p): p for group in optimizer.optimizer.param_groups for p in group["params"]}
                for parameter in self._model.parameters():
                    main = getattr(parameter, "main_param", parameter)
                    if id(main) in mains:
                        yield parameter, 0, main, optimizer

    def finish_load(self, steps_taken: int) -> None:
        """See `Engine.finish_load`."""
        for optimizer in self._inner_optimizers():
            set_adam_steps(optimizer.optimizer, steps_taken)
            if self.mesh.layout.zero == 1 or hasattr(optimizer, "_copy_main_params_to_model_params"):
                optimizer._copy_main_params_to_model_params()
        if self.mesh.layout.zero == 1:
            self._wrapped.start_param_sync(force_sync=True)

    def logical_shapes(self) -> dict[str, tuple[int, ...]]:
        """See `Engine.logical_shapes`."""
        return logical_shapes(self._model)


def _reduce_gradients(model: list[torch.nn.Module], _num_tokens: Any = None, **kwargs: Any) -> None:
    """Reduce gradients without megatron's division by tokens: the loss is divided by the denominator already."""
    finalize_model_grads(model, None, **kwargs)


def _forward(scale: float, device: torch.device, batches: Iterator[Any], stage: torch.nn.Module) -> tuple[Any, Any]:
    loss_sum, stats = stage(next(batches).to(device))

    def scaled_loss(_output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return loss_sum * scale, torch.zeros((), dtype=torch.int), stats

    return loss_sum, scaled_loss
