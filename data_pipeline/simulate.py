"""The order of a run of any size, walked without data: what it costs to start, and whether it is a good order."""

import time
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from scipy import stats

from data_pipeline.order import Indices, Permutation, derive_key
from data_pipeline.plan import SamplePlan, Segment
from data_pipeline.sample_order import SampleOrder
from data_pipeline.shards import default_shard_tokens
from runtime.errors import LacunaError, UserError
from runtime.progress import ProgressBar

T = TypeVar("T")
_BINS = 1000
_MOST_TOKENS = 1 << 62
LEAST_P = 1e-6
"""A test fails below this probability: the order is a pure function of the seed, so chance is no excuse twice."""


@dataclass(frozen=True)
class Workload:
    """A run to be simulated; sources share the tokens, and are drawn from, as 1 : 2 : 3 …"""

    tokens: int
    ranks: int
    sequence_length: int = 4096
    global_batch: int = 0
    sources: int = 4
    seed: int = 0
    steps: int = 64
    """Steps of which every sample is looked at."""

    def check(self) -> "Workload":
        """The workload with its defaults. Raises UserError naming the option and the mend."""
        if not 0 < self.tokens <= _MOST_TOKENS:
            raise UserError(f"--tokens {self.tokens} is not between 1 and 2**62")
        batch = self.global_batch or 4 * self.ranks
        if batch % self.ranks:
            nearest = -(-batch // self.ranks) * self.ranks
            raise UserError(f"--global-batch {batch} is not a multiple of --ranks {self.ranks}: give {nearest}")
        if min(self.windows()) < 1:
            raise UserError(
                f"--tokens {self.tokens} in {self.sources} sources gives the smallest less than one sample of "
                f"{self.sequence_length}: raise --tokens or lower --sequence-length"
            )
        return Workload(**{**asdict(self), "global_batch": batch})

    def shares(self) -> list[int]:
        """Tokens of each source."""
        parts = [n + 1 for n in range(self.sources)]
        return [self.tokens * part // sum(parts) for part in parts]

    def windows(self) -> list[int]:
        """Windows of each source."""
        return [share // self.sequence_length for share in self.shares()]


def order_of(windows: list[int], weights: list[float], seed: int) -> SampleOrder:
    """The order of a mixture as `SampleReader` makes it, but for keys that come from datasets."""
    numbers = range(len(windows))
    plan = SamplePlan(
        [Segment(0, dict(zip(numbers, weights, strict=True)))], [None] * len(windows), derive_key(seed, "mixture")
    )
    return SampleOrder(plan, windows, [derive_key(seed, "order", source) for source in numbers])


class Drawn(NamedTuple):
    """What was drawn for the sampled steps, each of shape [samples]."""

    positions: Indices
    sources: Indices
    epochs: Indices
    windows: Indices


def simulate(workload: Workload, progress: bool = True) -> dict[str, Any]:
    """Start the order, walk sampled steps, test them. JSON-ready. Raises UserError for options that do not fit.

    Raises LacunaError if a window is given twice, a rank does not find its share, or a test of randomness fails.
    """
    workload = workload.check()
    seconds, size, order = _measured(lambda: _start(workload))
    table_seconds, table_size, shards = _measured(lambda: _shard_table(workload))
    windows, batch = sum(workload.windows()), workload.global_batch
    steps = sampled_steps(workload)
    with ProgressBar("simulate", len(steps), progress) as bar:
        drawn, step_seconds = _walk(order, workload, steps, bar)
    repeated = drawn.positions.size - np.unique(np.stack(drawn[1:]), axis=1).shape[1]
    tests = randomness(workload, drawn)
    report = {
        **asdict(workload),
        "windows": windows,
        "steps_an_epoch": windows // batch,
        "shards": len(shards) - workload.sources,
        "start_seconds": seconds,
        "start_bytes": size,
        "shard_table_seconds": table_seconds,
        "shard_table_bytes": table_size,
        "rank_step_seconds": float(np.median(step_seconds)),
        "sampled_steps": len(steps),
        "sampled_windows": int(drawn.positions.size),
        "epochs_met": int(drawn.epochs.max()) + 1,
        "repeated_windows": int(repeated),
        "p_values": tests,
    }
    if repeated:
        raise LacunaError(f"{repeated} of {drawn.positions.size} sampled windows were given twice in an epoch")
    worst = min(tests, key=lambda name: tests[name])
    if tests[worst] < LEAST_P:
        raise LacunaError(f"the order is not random: test {worst!r} has probability {tests[worst]:.2g}")
    return report


def start_cost(workload: Workload) -> tuple[float, int]:
    """Seconds and bytes until the first sample's place is known."""
    seconds, size, _ = _measured(lambda: _start(workload))
    return seconds, size


def _start(workload: Workload) -> SampleOrder:
    order = order_of(workload.windows(), [float(n + 1) for n in range(workload.sources)], workload.seed)
    order.places(0, 1)
    return order


def _shard_table(workload: Workload) -> list[int]:
    """Where every shard of every source begins, as a reader keeps it."""
    size = default_shard_tokens("uint32")
    return [begin for share in workload.shares() for begin in (*range(0, share, size), share)]


def _measured(make: Callable[[], T]) -> tuple[float, int, T]:
    """Seconds and, at most, bytes that it takes to make something, and the thing."""
    begin = time.perf_counter()
    make()
    seconds = time.perf_counter() - begin
    tracemalloc.start()
    try:
        made = make()
        _, size = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return seconds, size, made


def sampled_steps(workload: Workload) -> list[int]:
    """The first steps, those around the end of the first epoch, and others of two epochs at random."""
    total = max(1, 2 * sum(workload.windows()) // workload.global_batch)
    border = total // 2
    fixed = {0, 1, max(0, border - 1), border, border + 1}
    order = Permutation(total, derive_key(workload.seed, "simulate"))
    drawn = {order(k) for k in range(min(total, workload.steps))}
    return sorted(step for step in [*fixed, *drawn] if step < max(total, 2))[: workload.steps + len(fixed)]


def _walk(order: SampleOrder, workload: Workload, steps: list[int], bar: ProgressBar) -> tuple[Drawn, list[float]]:
    batch, share = workload.global_batch, workload.global_batch // workload.ranks
    parts, seconds = [], []
    for number, step in enumerate(dict.fromkeys(steps)):
        first = step * batch
        whole = order.places(first, first + batch)
        rank = number * 7919 % workload.ranks
        begin = time.perf_counter()
        own = order.places(first + rank * share, first + (rank + 1) * share)
        seconds.append(time.perf_counter() - begin)
        for mine, all_of_it in zip(own, whole, strict=True):
            if not np.array_equal(mine, all_of_it[rank * share : (rank + 1) * share]):
                raise LacunaError(f"rank {rank} of {workload.ranks} does not find its share of step {step}")
        parts.append((np.arange(first, first + batch), *whole))
        bar.advance(1)
    return Drawn(*(np.concatenate(column) for column in zip(*parts, strict=True))), seconds


def randomness(workload: Workload, drawn: Drawn) -> dict[str, float]:
    """Probabilities that an order at random would look less random than this one, by test.

    Places of windows in their sources, as fractions, are uniform over bins (chi-square), uncorrelated with the next
    sample's (normal), and equal over ranks in the mean (chi-square); sources come by weight (chi-square).
    """
    places = (drawn.windows + 0.5) / np.array(workload.windows())[drawn.sources]
    bins = max(2, min(_BINS, places.size // 20, min(workload.windows()) // 50))
    counts = np.bincount((places * bins).astype(np.int64).clip(0, bins - 1), minlength=bins)
    centred = places - 0.5
    follows = np.flatnonzero(np.diff(drawn.positions) == 1)
    serial = float((centred[follows] * centred[follows + 1]).sum() * 12 / max(1, follows.size) ** 0.5)
    share = workload.global_batch // workload.ranks
    ranks = drawn.positions % workload.global_batch // share
    size = np.bincount(ranks, minlength=workload.ranks)
    means = np.bincount(ranks, weights=centred, minlength=workload.ranks) / size
    weights = np.arange(1, workload.sources + 1) / (workload.sources * (workload.sources + 1) / 2)
    given = np.bincount(drawn.sources, minlength=workload.sources)
    expected = weights * drawn.sources.size
    return {
        "places are uniform": _beyond(
            float(((counts - places.size / bins) ** 2).sum() / (places.size / bins)), bins - 1
        ),
        "neighbours are independent": float(2 * stats.norm.sf(abs(serial))),
        "ranks are alike": _beyond(float((means**2 * 12 * size).sum()), workload.ranks),
        "sources come by weight": _beyond(float(((given - expected) ** 2 / expected).sum()), workload.sources - 1),
    }


def _beyond(chi_square: float, freedom: int) -> float:
    return float(stats.chi2.sf(chi_square, freedom)) if freedom else 1.0
