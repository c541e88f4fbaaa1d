"""The DeepSpeed engine: ZeRO-1, 2 and 3 over data-parallel ranks, tensor parallelism through megatron's groups."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from parallel.engines.base import (
    KINDS,
    STATISTICS,
    Fragment,
    StepResult,
    Verdict,
    decay_groups,
    ensure_adam_state,
    is_sharded,
    set_adam_steps,
    step_result,
    sum_statistics,
)
from parallel.engines.settings import AdamWSettings
from parallel.logical import logical_parameters, logical_shapes
from parallel.mesh import Mesh

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it looks for one and prints a warning
import deepspeed
import deepspeed.ops


class _ModelParallelUnit:
    """megatron's groups under the names DeepSpeed asks for; pipelines are not offered, so model = tensor."""

    def __getattr__(self, name: str) -> Any:
        return getattr(parallel_state, name)

    get_model_parallel_world_size = staticmethod(parallel_state.get_tensor_model_parallel_world_size)
    get_model_parallel_rank = staticmethod(parallel_state.get_tensor_model_parallel_rank)
    get_model_parallel_group = staticmethod(parallel_state.get_tensor_model_parallel_group)

    @staticmethod
    def get_data_parallel_group_ranks() -> list[int]:
        """Global ranks of this rank's data-parallel group."""
        return dist.get_process_group_ranks(parallel_state.get_data_parallel_group())


class _JudgedAdamW(torch.optim.AdamW):
    """AdamW that asks before it updates: DeepSpeed computes the gradient norm and calls `step` in one breath.

    ZeRO calls `step` once for every flat partition; the first call asks, the others follow.
    """

    verdict: Callable[[], bool] | None = None
    accepted = False

    def step(self, closure: Any = None) -> Any:
        """Update the partition at hand if the step is accepted."""
        if self.verdict is not None:
            self.accepted, self.verdict = self.verdict(), None
        return super().step(closure) if self.accepted else None


class DeepSpeedEngine:
    """Implements `parallel.engines.base.Engine` on DeepSpeed; `build` makes the model.

    With ZeRO-3 the model is cut while it is built, so that no rank ever holds all of it.
    """

    def __init__(
        self,
        mesh: Mesh,
        build: Callable[[], torch.nn.Module],
        optimizer: AdamWSettings,
        precision: str,
        micro_batches: int,
    ) -> None:
        self.mesh = mesh
        self._micro_batches = micro_batches
        self._cuts_weights = mesh.layout.zero == 3
        _adopt_process_group(mesh)
        config = self._config(optimizer, precision)
        if self._cuts_weights:
            group = parallel_state.get_data_parallel_group()
            with deepspeed.zero.Init(config_dict_or_path=config, data_parallel_group=group, mpu=_ModelParallelUnit()):
                self._model = build()
        else:
            self._model = build().to(mesh.device)
        self._adam = _JudgedAdamW(
            decay_groups(self._model, optimizer.weight_decay), lr=0.0, betas=optimizer.betas, eps=optimizer.epsilon
        )
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=self._model, optimizer=self._adam, config=config, mpu=_ModelParallelUnit(), dist_init_required=False
        )
        if self._cuts_weights:
            ensure_adam_state(self._optimizer.optimizer, self._optimizer.fp32_partitioned_groups_flat)
        else:
            ensure_adam_state(self._optimizer.optimizer)
            self._optimizer._lazy_init_hp_params_optimizer_state()

    def _config(self, optimizer: AdamWSettings, precision: str) -> dict[str, Any]:
        layout = self.mesh.layout
        zero: dict[str, Any] = {"stage": layout.zero}
        if layout.offload != "none":
            zero["offload_optimizer"] = {"device": "cpu"}
        if layout.offload == "parameters":
            zero["offload_param"] = {"device": "cpu"}
        if self._cuts_weights:
            zero["stage3_param_persistence_threshold"] = 0
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": self._micro_batches,
            "train_batch_size": self._micro_batches * self.mesh.data_size,
            "gradient_clipping": optimizer.clip,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 1 << 40,
            "bf16": {"enabled": precision == "bf16"},
        }

    def train_step(
        self, micro_batches: Sequence[Any], denominator: float, learning_rate: float, accepts: Verdict
    ) -> StepResult:
        """See `Engine.train_step`."""
        assert len(micro_batches) == self._micro_batches, "DeepSpeed fixes the number of micro-batches at start"
        for group in self._optimizer.optimizer.param_groups:
            group["lr"] = learning_rate
        # DeepSpeed means over micro-batches and data ranks; our loss is a sum over both
        scale = self._micro_batches * self.mesh.data_size / denominator
        stats = torch.zeros(STATISTICS, dtype=torch.float64, device=self.mesh.device)
        for number, batch in enumerate(micro_batches):
            loss_sum, batch_stats = self._engine(batch.to(self.mesh.device))
            stats += batch_stats
            self._engine.backward(loss_sum * scale)
            if number < self._micro_batches - 1:
                self._engine.step()
        total = sum_statistics(self.mesh, stats.cpu())
        # a gradient that is not finite makes DeepSpeed skip the update without asking
        self._adam.verdict = partial(self._judge, accepts, total[0])
        self._adam.accepted = False
        self._engine.step()
        return step_result(total, float(self._engine.get_global_grad_norm()), self._adam.accepted)

    def _judge(self, accepts: Verdict, loss_sum: float) -> bool:
        return accepts(loss_sum, float(self._optimizer._global_grad_norm))

    def fragments(self) -> Iterator[Fragment]:
        """See `Engine.fragments`."""
        for parameter, blocks in logical_parameters(self._model):
            writes = is_sharded(parameter) or self.mesh.tensor_rank == 0
            shape = tuple(parameter.ds_shape if self._cuts_weights else parameter.shape)  # type: ignore[attr-defined]
            for kind in KINDS:
                start, values = (self._cut_state if self._cuts_weights else self._partition_state)(parameter, kind)
                if values.numel():
                    yield Fragment(kind, shape, blocks, start, values, writes)

    def _partition_state(self, parameter: torch.nn.Parameter, kind: str) -> tuple[int, torch.Tensor]:
        """ZeRO-1 and 2: the part of a parameter's float32 state that lies in this rank's flat partition."""
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return 0, torch.empty(0)
        values = mapping.get_hp_fragment(None if kind == "weight" else kind)
        return mapping.lp_fragment_address.start, values.detach().view(-1)

    def _cut_state(self, parameter: torch.nn.Parameter, kind: str) -> tuple[int, torch.Tensor]:
        """ZeRO-3: this rank's slice of every parameter; the last slices may be padding."""
        key = None if kind == "weight" else kind
        values, _ = self._optimizer._get_fp32_opt_state_partition(parameter, False, key)
        start = self.mesh.data_rank * parameter.ds_tensor.ds_numel  # type: ignore[attr-defined]
        real = max(0, min(values.numel(), parameter.ds_numel - start))  # type: ignore[attr-defined]
        return start, values.detach()[:real]

    def finish_load(self, updates: int) -> None:
        """See `Engine.finish_load`."""
        set_adam_steps(self._optimizer.optimizer, updates)
        if not self._cuts_weights:
            self._optimizer.update_lp_params()
            return
        for group in range(len(self._optimizer.fp16_groups)):
            self._optimizer._reassign_or_swap_out_partitioned_parameters(group)

    def logical_shapes(self) -> dict[str, tuple[int, ...]]:
        """See `Engine.logical_shapes`."""
        return logical_shapes(self._model)


def _adopt_process_group(mesh: Mesh) -> None:
    """Let DeepSpeed use the process group that `mesh` has joined."""
    log = logging.getLogger("DeepSpeed")
    log.setLevel(logging.WARNING)
    log.addFilter(lambda record: "untested optimizer" not in record.getMessage())  # the grid of layouts tests it
    if mesh.device.type == "cpu":
        # else a shared-memory kernel is compiled at first use: 30-60 s, and a crash without a compiler
        deepspeed.ops.__compatible_ops__ = {}
    # DeepSpeed insists on it, also under srun and in a single process, and takes its device from it
    os.environ.setdefault("LOCAL_RANK", str(mesh.device.index or 0))
    deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)
