"""Runs megatron-core on machines without CUDA, and mends its optimizer's reliance on CUDA calls.

megatron-core asks `torch.cuda` for devices, streams and random states in many places. Where CUDA is absent
these calls are answered with their CPU meaning. The patch is global, so only worker processes install it.
"""

import contextlib
import ctypes
import functools
import os
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.distributed import distributed_c10d
from torch.utils._device import _device_constructors

_CPU = torch.device("cpu")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_FACTORIES = ("tensor", "zeros", "ones", "empty", "full", "arange", "empty_like", "zeros_like")


class _CpuTypeName(str):
    """Lets `p.type() == "torch.cuda.FloatTensor"` hold for a float tensor on the CPU."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, str(other).replace("torch.cuda.", "torch."))

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def build(*args: Any, **kwargs: Any) -> torch.Tensor:
        device = kwargs.get("device")
        if isinstance(device, str | torch.device) and str(device).startswith("cuda"):
            kwargs["device"] = _CPU
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        return factory(*args, **kwargs)

    return build


def _nothing() -> Callable[..., None]:
    """A new function that does nothing: dynamo's tables refuse one object under two names of torch."""
    return lambda *_args, **_kwargs: None


def install() -> bool:
    """Patch torch for megatron-core if this machine has no CUDA. Returns whether the patch is active.

    torch.compile is switched off with it: megatron decorates small functions with it, 40 s of compilation on a CPU
    and no gain. `compilation` lets what is compiled on purpose through.
    """
    if torch.cuda.is_available():
        return False
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    torch._dynamo.config.disable = True
    _keep_freed_memory()
    if getattr(torch.cuda, "_lacuna_cpu", False):
        return True
    _share_gloo_devices()
    _patch_cuda_namespace(torch.cuda)
    _device_constructors()  # cached from here on: with `torch.device(…):` must know the factories that are wrapped now
    for name in _FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    _have_deepspeed_keep_them()
    original_type = torch.Tensor.type

    def type_or_name(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return original_type(self, *args, **kwargs) if args or kwargs else _CpuTypeName(original_type(self))

    torch.Tensor.type = type_or_name  # type: ignore[method-assign, assignment]
    torch.Tensor.cuda = lambda self, *_a, **_k: self  # type: ignore[method-assign]
    torch.nn.Module.cuda = lambda self, *_a, **_k: self  # type: ignore[method-assign]
    import megatron.core.tensor_parallel.random as megatron_random

    megatron_random._set_cuda_rng_state = lambda state, device=-1, graph_safe=False: torch.set_rng_state(state)
    return True


def _have_deepspeed_keep_them() -> None:
    """DeepSpeed gives torch back the factories that were there when it was imported: before the patches, perhaps."""
    if loaded := sys.modules.get("deepspeed.runtime.zero.partition_parameters"):
        for name in _FACTORIES:
            if hasattr(loaded, f"_orig_torch_{name}"):
                setattr(loaded, f"_orig_torch_{name}", getattr(torch, name))


@contextlib.contextmanager
def compilation() -> Iterator[None]:
    """Within it, torch.compile compiles, also where `install` has switched it off for what it decorates later."""
    switched_off = os.environ.pop("TORCHDYNAMO_DISABLE", None)
    torch._dynamo.config.disable = False
    try:
        yield
    finally:
        if switched_off is not None:
            os.environ["TORCHDYNAMO_DISABLE"] = switched_off


def _keep_freed_memory() -> None:
    """Have glibc keep freed activations for the next step instead of giving their pages back to the kernel.

    Without it a step of a small model takes thousands of page faults.
    """
    with contextlib.suppress(AttributeError, OSError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)


def _share_gloo_devices() -> None:
    """Have all gloo groups of a process share the first one's devices.

    A device has a thread that polls a hundred times a second, and a mesh has some thirty groups.
    """
    plain: Any = distributed_c10d.ProcessGroupGloo
    devices: dict[int, Any] = {}  # by process: a fork has no thread for those of its parent

    class Sharing(plain):
        def __init__(self, store: Any, rank: int, size: int, timeout: Any) -> None:
            if known := devices.get(os.getpid()):
                options = plain._Options()
                options._devices, options._timeout = known, timeout
                super().__init__(store, rank, size, options)
            else:
                super().__init__(store, rank, size, timeout=timeout)
                devices[os.getpid()] = self.options._devices

    distributed_c10d.ProcessGroupGloo = Sharing  # type: ignore[misc]


def _patch_cuda_namespace(cuda: Any) -> None:
    cuda._lacuna_cpu = True
    cuda.current_device = lambda: _CPU
    for name in ("synchronize", "set_device", "empty_cache"):
        setattr(cuda, name, _nothing())
    cuda.nvtx.range_push, cuda.nvtx.range_pop = _nothing(), _nothing()
    idle = ("wait_stream", "synchronize", "wait_event", "record_event")
    stream = types.SimpleNamespace(**{name: _nothing() for name in idle})
    cuda.current_stream = lambda *_args: stream
    cuda.default_stream = lambda *_args: stream
    cuda.get_rng_state = cuda.random.get_rng_state = lambda device=None: torch.get_rng_state()
    cuda.set_rng_state = cuda.random.set_rng_state = lambda state, device=None: torch.set_rng_state(state)
    cuda.manual_seed = torch.default_generator.manual_seed
