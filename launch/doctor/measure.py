"""What can only be measured: matrix products, clocks, and all-reduces inside and between nodes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from launch.doctor.report import Bandwidth
from parallel.mesh import default_device
from pretrain.device import measured_matmul_rate
from runtime.environment import RankInfo

_KIB, _MIB = 1 << 10, 1 << 20
_SIZES = {"cpu": (64 * _KIB, _MIB, 8 * _MIB), "cuda": (_MIB, 32 * _MIB, 512 * _MIB)}
_REPEATS = 5
_CLOCK_ROUNDS = 5


@dataclass(frozen=True)
class Measured:
    """Of this rank, but for `bandwidths`, which all ranks know."""

    gemm: float
    clock: float
    bandwidths: tuple[Bandwidth, ...]


def measure(rank: RankInfo, nodes: Sequence[str]) -> Measured:
    """`nodes`: the node of every rank. All ranks call this, in a process group if there are several."""
    device = default_device(rank.local_rank)
    cuda = device.type == "cuda"
    _together(rank)
    gemm = measured_matmul_rate(
        device, torch.bfloat16 if cuda else torch.float32, 8192 if cuda else 1024, seconds=2.0 if cuda else 0.5
    )
    if rank.world == 1:
        return Measured(gemm, 0.0, ())
    return Measured(gemm, _clock(rank), tuple(_bandwidths(rank, nodes, device)))


def _together(rank: RankInfo) -> None:
    if rank.world > 1:
        dist.barrier()


def _clock(rank: RankInfo) -> float:
    """Seconds ahead of the median clock, as far as a barrier lets ranks go at the same moment: the best of rounds."""
    rounds = []
    for _ in range(_CLOCK_ROUNDS):
        dist.barrier()
        mine = torch.tensor([time.time()], dtype=torch.float64)
        clocks = [torch.zeros_like(mine) for _ in range(rank.world)]
        dist.all_gather(clocks, mine)
        times = [clock.item() for clock in clocks]
        rounds.append((max(times) - min(times), times[rank.rank] - statistics.median(times)))
    return min(rounds)[1]


def _bandwidths(rank: RankInfo, nodes: Sequence[str], device: torch.device) -> list[Bandwidth]:
    """Groups one round after the other; those of a round have no node in common and are measured at once."""
    found: list[Bandwidth] = []
    for groups in rounds(nodes):
        # every rank must make every group
        made = [(name, ranks, dist.new_group(list(ranks))) for name, ranks in groups]
        for size in _SIZES[device.type]:
            dist.barrier()
            mine = [_all_reduce(name, ranks, size, group, device) for name, ranks, group in made if rank.rank in ranks]
            gathered: list[Any] = [None] * rank.world
            dist.all_gather_object(gathered, mine)
            worst: dict[str, Bandwidth] = {}
            for bandwidth in (one for many in gathered for one in many):
                if bandwidth.group not in worst or bandwidth.seconds > worst[bandwidth.group].seconds:
                    worst[bandwidth.group] = bandwidth
            found += worst.values()
    return found


def rounds(nodes: Sequence[str]) -> list[list[tuple[str, tuple[int, ...]]]]:
    """(name, ranks) of the groups: all ranks; each node with several ranks; nodes in pairs, round a ring."""
    of: dict[str, list[int]] = {}
    for rank, node in enumerate(nodes):
        of.setdefault(node, []).append(rank)
    names = list(of)
    plan = [[("world", tuple(range(len(nodes))))]]
    if len(names) == 1:
        return plan
    if inside := [(name, tuple(ranks)) for name, ranks in of.items() if len(ranks) > 1]:
        plan.append(inside)
    ring = [(a, b) for a, b in zip(names, [*names[1:], names[0]], strict=True)]
    if len(names) == 2:
        ring = ring[:1]
    last = [ring.pop()] if len(ring) > 1 and len(ring) % 2 else []
    for pairs in (ring[::2], ring[1::2], last):
        if pairs:
            plan.append([(f"{a}+{b}", tuple(sorted(of[a] + of[b]))) for a, b in pairs])
    return plan


def _all_reduce(name: str, ranks: Sequence[int], size: int, group: Any, device: torch.device) -> Bandwidth:
    values = torch.zeros(size // 4, dtype=torch.float32, device=device)
    times = []
    for _ in range(1 + _REPEATS):
        start = time.perf_counter()
        dist.all_reduce(values, group=group)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return Bandwidth(name, len(ranks), size, statistics.median(times[1:]))  # the first one connects
