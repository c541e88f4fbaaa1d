"""The megatron-core engine: tensor, sequence, pipeline, context and data parallel, distributed optimizer (ZeRO-1)."""

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
    STATISTICS,
    Fragment,
    StepResult,
    Verdict,
    ensure_adam_state,
    is_sharded,
    set_adam_steps,
    step_result,
    sum_statistics,
)
from parallel.engines.settings import AdamWSettings
from parallel.logical import logical_parameters, logical_shapes
from parallel.mesh import Mesh


class _Chunk(MegatronModule):
    """What megatron's schedules and wrappers ask of a model, around ours."""

    model_type = ModelType.encoder_or_decoder
    share_embeddings_and_output_weights = False

    def __init__(self, config: TransformerConfig, model: torch.nn.Module, virtual_stage: int | None) -> None:
        super().__init__(config)
        self.model = model
        self.vp_stage = virtual_stage
        self.pre_process, self.post_process = model.stage.embeds, model.stage.has_head  # type: ignore[union-attr]

    def set_input_tensor(self, tensor: Any) -> None:
        """Activations of the stage before, [S, B, D] or a list of one."""
        self.model.input_SBD = tensor[0] if isinstance(tensor, list) else tensor

    def forward(self, batch: Any) -> Any:
        return self.model(batch)


class MegatronEngine:
    """Implements `parallel.engines.base.Engine` on megatron-core; `models` are this rank's chunks by depth."""

    def __init__(
        self,
        mesh: Mesh,
        config: TransformerConfig,
        models: Sequence[torch.nn.Module],
        optimizer: AdamWSettings,
        precision: str,
        sequence_length: int,
        micro_batch: int,
    ) -> None:
        self.mesh = mesh
        self._settings = optimizer
        self._sequence_length, self._micro_batch = sequence_length, micro_batch
        # over one rank there is nothing to shard, but gloo's collectives would still disturb OpenMP's threads
        self._sharded = mesh.layout.zero == 1 and mesh.data_size * mesh.layout.context > 1
        self._models = [model.bfloat16() if precision == "bf16" else model for model in models]
        self._wrapped = [self._wrap(config, model, number) for number, model in enumerate(self._models)]
        chained = get_megatron_optimizer(
            _optimizer_config(optimizer, precision, self._sharded), self._wrapped, use_gloo_process_groups=False
        )
        # megatron chains one optimizer for dense and one for expert parameters; we have no experts
        (self._optimizer,) = getattr(chained, "chained_optimizers", [chained])
        config.grad_scale_func = self._optimizer.scale_loss
        config.finalize_model_grads_func = _reduce_gradients
        if mesh.layout.overlap:
            hooks = [wrapped.no_sync for wrapped in self._wrapped]
            config.no_sync_func = hooks if len(hooks) > 1 else hooks[0]
        ensure_adam_state(self._optimizer.optimizer)

    def _wrap(self, config: TransformerConfig, model: torch.nn.Module, number: int) -> DistributedDataParallel:
        virtual = number if self.mesh.layout.virtual_pipeline > 1 else None
        settings = DistributedDataParallelConfig(
            use_distributed_optimizer=self._sharded,
            grad_reduce_in_fp32=True,
            overlap_grad_reduce=self.mesh.layout.overlap,
            overlap_param_gather=self.mesh.layout.overlap and self._sharded,
        )
        return DistributedDataParallel(config, settings, _Chunk(config, model, virtual), disable_bucketing=number > 0)

    def train_step(
        self, micro_batches: Sequence[Any], denominator: float, learning_rate: float, accepts: Verdict
    ) -> StepResult:
        """See `Engine.train_step`."""
        optimizer = self._optimizer
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
            # megatron applies `wd_mult` in its own scheduler only, which is not used here
            group["weight_decay"] = self._settings.weight_decay * group["wd_mult"]
        for wrapped in self._wrapped:
            wrapped.zero_grad_buffer()
        optimizer.zero_grad()
        total = sum_statistics(self.mesh, self._forward_backward(micro_batches, denominator))
        optimizer.prepare_grads()
        grad_norm = float(optimizer.clip_grad_norm(self._settings.clip))
        accepted = accepts(total[0], grad_norm)
        if accepted:
            optimizer.step_with_ready_grads()
        return step_result(total, grad_norm, accepted)

    def _forward_backward(self, micro_batches: Sequence[Any], denominator: float) -> torch.Tensor:
        """Run the schedule; this rank's statistics, zeros on stages without the head."""
        single = len(self._wrapped) == 1
        outputs = get_forward_backward_func()(
            forward_step_func=partial(_forward, 1.0 / denominator, self.mesh.device),
            data_iterator=iter(micro_batches) if single else [iter(micro_batches) for _ in self._wrapped],
            model=self._wrapped[0] if single else self._wrapped,
            num_microbatches=len(micro_batches),
            seq_length=self._sequence_length,
            micro_batch_size=self._micro_batch,
            forward_only=False,
        )
        return torch.stack(outputs).sum(0).cpu() if outputs else torch.zeros(STATISTICS, dtype=torch.float64)

    def fragments(self) -> Iterator[Fragment]:
        """See `Engine.fragments`."""
        mesh = self.mesh
        blocks = {parameter: held for model in self._models for parameter, held in logical_parameters(model)}
        for parameter, start, main in self._main_parameters():
            writes = is_sharded(parameter) or mesh.tensor_rank == 0
            if not self._sharded:
                writes = writes and mesh.data_rank == mesh.context_rank == 0
            tensors = {"weight": main, **self._optimizer.optimizer.state[main]}
            for kind in KINDS:
                values = tensors[kind].detach().view(-1)
                yield Fragment(kind, tuple(parameter.shape), blocks[parameter], start, values, writes)

    def _main_parameters(self) -> Iterator[tuple[torch.nn.Parameter, int, torch.Tensor]]:
        """(model parameter, first flat element, float32 master of this rank's part)."""
        optimizer = self._optimizer
        if self._sharded:
            for parameter, (group, order) in optimizer.model_param_group_index_map.items():
                start = optimizer._get_model_param_range_map(parameter)["param"].start
                yield parameter, start, optimizer.optimizer.param_groups[group]["params"][order]
        else:
            for model in self._models:
                for parameter in model.parameters():
                    yield parameter, 0, getattr(parameter, "main_param", parameter)

    def finish_load(self, updates: int) -> None:
        """See `Engine.finish_load`."""
        optimizer = self._optimizer
        set_adam_steps(optimizer.optimizer, updates)
        if hasattr(optimizer, "_copy_main_params_to_model_params"):
            optimizer._copy_main_params_to_model_params()
        if self._sharded:
            for wrapped in self._wrapped:
                wrapped.start_param_sync(force_sync=True)

    def logical_shapes(self) -> dict[str, tuple[int, ...]]:
        """See `Engine.logical_shapes`."""
        return {name: shape for model in self._models for name, shape in logical_shapes(model).items()}


def _optimizer_config(optimizer: AdamWSettings, precision: str, sharded: bool) -> OptimizerConfig:
    half = precision == "bf16"
    return OptimizerConfig(
        optimizer="adam",
        lr=0.0,
        weight_decay=optimizer.weight_decay,
        adam_beta1=optimizer.betas[0],
        adam_beta2=optimizer.betas[1],
        adam_eps=optimizer.epsilon,
        clip_grad=optimizer.clip,
        use_distributed_optimizer=sharded,
        bf16=half,
        params_dtype=torch.bfloat16 if half else torch.float32,
    )


def _reduce_gradients(model: list[torch.nn.Module], _num_tokens: Any = None, **kwargs: Any) -> None:
    """Reduce gradients without megatron's division by tokens: the loss is divided by the denominator already."""
    finalize_model_grads(model, None, **kwargs)


def _forward(scale: float, device: torch.device, batches: Iterator[Any], chunk: torch.nn.Module) -> tuple[Any, Any]:
    output = chunk(next(batches).to(device))
    if isinstance(output, torch.Tensor):
        return output, None  # activations for the next stage
    loss_sum, stats = output

    def scaled_loss(_output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return loss_sum * scale, torch.zeros((), dtype=torch.int), stats

    return loss_sum, scaled_loss
