"""What a device could do at most, and how much memory it uses."""

from __future__ import annotations

import resource
import time

import torch

# Dense bf16 peak of the vendors' data sheets, FLOP/s
_BF16_PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "B200": 2250e12}


def peak_flops(device: torch.device, precision: str) -> float:
    """FLOP/s against which MFU is stated: data sheet for a known GPU in bf16, else a measured matrix product."""
    if device.type == "cuda" and precision == "bf16":
        name = torch.cuda.get_device_name(device)
        for model, peak in _BF16_PEAK.items():
            if model in name:
                return peak
    return measured_matmul_rate(device, torch.bfloat16 if precision == "bf16" else torch.float32)


def measured_matmul_rate(device: torch.device, dtype: torch.dtype, size: int = 1024, seconds: float = 0.3) -> float:
    """Best rate in FLOP/s of a square matrix product of `size`, over about `seconds`."""
    a = torch.randn(size, size, device=device, dtype=dtype)
    best, end = 0.0, time.perf_counter() + seconds
    a @ a
    while best == 0.0 or time.perf_counter() < end:  # a busy machine may spend all the time on the first product
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def peak_memory(device: torch.device) -> int:
    """Most bytes used so far: allocator peak on a GPU, resident set on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
