"""The machine of rank 0 in numbers, under the names by which MLflow's page of system metrics knows them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import torch

_MEGABYTE = 1e6
_EVERY = 10.0


class SystemMonitor:
    """Samples at most every `seconds`, since reading counters takes up to a millisecond. `disk`: the run's."""

    def __init__(self, disk: Path, seconds: float = _EVERY, clock: Callable[[], float] = time.monotonic) -> None:
        self._disk, self._seconds, self._clock = disk, seconds, clock
        self._next = clock()
        self._network = psutil.net_io_counters()
        psutil.cpu_percent()  # the first call has nothing to compare with

    def sample(self) -> dict[str, float]:
        """What is to be told now: often nothing. Network traffic is since the attempt began."""
        if self._clock() < self._next:
            return {}
        self._next = self._clock() + self._seconds
        memory, network = psutil.virtual_memory(), psutil.net_io_counters()
        values = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / _MEGABYTE,
            "system_memory_usage_percentage": memory.percent,
        }
        if network is not None and self._network is not None:
            received = network.bytes_recv - self._network.bytes_recv
            sent = network.bytes_sent - self._network.bytes_sent
            values |= {
                "network_receive_megabytes": received / _MEGABYTE,
                "network_transmit_megabytes": sent / _MEGABYTE,
            }
        with suppress(OSError):
            disk = psutil.disk_usage(str(self._disk))
            values |= {
                "disk_usage_percentage": disk.percent,
                "disk_usage_megabytes": disk.used / _MEGABYTE,
                "disk_available_megabytes": disk.free / _MEGABYTE,
            }
        return {f"system/{key}": float(value) for key, value in (values | _gpu()).items()}


def _gpu() -> dict[str, float]:
    """The GPU of this process, if it has one."""
    if not torch.cuda.is_available():
        return {}
    number = torch.cuda.current_device()
    free, whole = torch.cuda.mem_get_info()
    used = whole - free
    values = {
        f"gpu_{number}_memory_usage_megabytes": used / _MEGABYTE,
        f"gpu_{number}_memory_usage_percentage": 100 * used / whole,
    }
    with suppress(ImportError, RuntimeError):  # without NVIDIA's management library
        values[f"gpu_{number}_utilization_percentage"] = float(torch.cuda.utilization())
    return values
