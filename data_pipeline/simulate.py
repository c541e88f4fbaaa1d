"""A run of any size, started and walked without data: what that costs a rank, and whether its order is a good one."""

import tempfile
import time
import tracemalloc
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from data_pipeline.config import DataConfig
from data_pipeline.dataset import SampleReader
from data_pipeline.order import Indices, Permutation, derive_key
from data_pipeline.plan import SamplePlan, Segment
from data_pipeline.rank_start import find_samples, open_reader, start_apart
from data_pipeline.sample_order import SampleOrder
from data_pipeline.synthetic import MOST_TOKENS, write_synthetic
from runtime.errors import LacunaError, UserError
from runtime.progress import ProgressBar

_BINS = 1000
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
        if not 0 < self.tokens <= MOST_TOKENS:
            raise UserError(f"--tokens {self.tokens} is not between 1 and {MOST_TOKENS:.0e}")
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

    def run(self) -> tuple[int, int, int]:
        """What a rank knows of the run: sequence length, seed, global batch."""
        return self.sequence_length, self.seed, self.global_batch

    def shares(self) -> list[int]:
        """Tokens of each source."""
        parts = [n + 1 for n in range(self.sources)]
        return [self.tokens * part // sum(parts) for part in parts]

    def windows(self) -> list[int]:
        """Windows of each source."""
        return [share // self.sequence_length for share in self.shares()]


def write_datasets(workload: Workload, folder: Path, tokens: list[int]) -> DataConfig:
    """A mixture of datasets without data, of so many tokens each, and the keys of a recipe that name it."""
    for number, count in enumerate(tokens):
        write_synthetic(folder / f"source-{number}", f"source-{number}", count, workload.seed * len(tokens) + number)
    return DataConfig(mixture={str(folder / f"source-{number}"): number + 1.0 for number in range(len(tokens))})


class Drawn(NamedTuple):
    """What was drawn for the sampled steps, each of shape [samples]."""

    positions: Indices
    sources: Indices
    epochs: Indices
    windows: Indices


def simulate(workload: Workload, progress: bool = True) -> dict[str, Any]:
    """Start a rank, walk sampled steps, test their order. JSON-ready. Raises UserError for options that do not fit.

    Raises LacunaError if a window is given twice, a rank does not find its share, or a test of randomness fails.
    """
    workload = workload.check()
    order_seconds, order_size = order_cost(workload)
    steps = sampled_steps(workload)
    with tempfile.TemporaryDirectory(prefix="lacuna-simulate-") as name:
        folder = Path(name)
        config = write_datasets(workload, folder / "data", workload.shares())
        small = write_datasets(workload, folder / "small", [workload.sequence_length] * workload.sources)
        start = start_apart(config, small, *workload.run())
        reader = open_reader(config, *workload.run())
        with ProgressBar("simulate", len(steps), progress) as bar:
            drawn, step_seconds = _walk(reader, workload, steps, bar)
    tests = randomness(workload, drawn)
    report = {
        **asdict(workload),
        "windows": sum(reader.windows),
        "steps_an_epoch": sum(reader.windows) // workload.global_batch,
        "shards": sum(len(dataset.shards) for dataset in reader.datasets),
        "start_seconds": start.seconds,
        "start_bytes": start.bytes,
        "start_mapped_bytes": start.mapped,
        "start_peak_bytes": start.peak,
        "order_seconds": order_seconds,
        "order_bytes": order_size,
        "rank_step_seconds": float(np.median(step_seconds)),
        "sampled_steps": len(steps),
        "sampled_windows": int(drawn.positions.size),
        "epochs_met": int(drawn.epochs.max()) + 1,
        "repeated_windows": int(drawn.positions.size - np.unique(np.stack(drawn[1:]), axis=1).shape[1]),
        "p_values": tests,
    }
    if report["repeated_windows"]:
        raise LacunaError(
            f"{report['repeated_windows']} of {drawn.positions.size} sampled windows were given twice in an epoch"
        )
    worst = min(tests, key=lambda name: tests[name])
    if tests[worst] < LEAST_P:
        raise LacunaError(f"the order is not random: test {worst!r} has probability {tests[worst]:.2g}")
    return report


def order_cost(workload: Workload) -> tuple[float, int]:
    """Seconds, and bytes at most, until the order alone knows the first sample's window."""
    begin = time.perf_counter()
    _start_order(workload)
    seconds = time.perf_counter() - begin
    tracemalloc.start()
    try:
        _start_order(workload)
        _, size = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return seconds, size


def _start_order(workload: Workload) -> None:
    """As `SampleReader` makes it, but for keys that come from datasets."""
    windows = workload.windows()
    plan = SamplePlan(
        [Segment(0, {source: source + 1.0 for source in range(workload.sources)})],
        [None] * workload.sources,
        derive_key(workload.seed, "mixture"),
    )
    keys = [derive_key(workload.seed, "order", source) for source in range(workload.sources)]
    SampleOrder(plan, windows, keys).places(0, 1)


def sampled_steps(workload: Workload) -> list[int]:
    """The first steps, those around the end of the first epoch, and others of two epochs at random."""
    total = max(1, 2 * sum(workload.windows()) // workload.global_batch)
    border = total // 2
    fixed = {0, 1, max(0, border - 1), border, border + 1}
    order = Permutation(total, derive_key(workload.seed, "simulate"))
    drawn = {order(k) for k in range(min(total, workload.steps))}
    return sorted(step for step in [*fixed, *drawn] if step < max(total, 2))[: workload.steps + len(fixed)]


def _walk(reader: SampleReader, workload: Workload, steps: list[int], bar: ProgressBar) -> tuple[Drawn, list[float]]:
    batch, share = workload.global_batch, workload.global_batch // workload.ranks
    parts, seconds = [], []
    for number, step in enumerate(dict.fromkeys(steps)):
        first = step * batch
        whole = reader.places(first, first + batch)
        rank = number * 7919 % workload.ranks
        begin = time.perf_counter()
        own = find_samples(reader, first + rank * share, first + (rank + 1) * share)
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
