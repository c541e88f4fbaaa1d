"""What a rank found out, and what all of them together mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Problem:
    """Something that is bad on a rank. `check`: what was looked at, in one word; `text`: one line."""

    check: str
    text: str


@dataclass(frozen=True)
class RankReport:
    """One rank's. `versions` and `data` (digest by path) must be equal everywhere.

    `gemm`: FLOP/s of a matrix product, all ranks at once; `clock`: seconds by which the clock is ahead of the median.
    """

    rank: int
    node: str
    problems: tuple[Problem, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    gemm: float = 0.0
    clock: float = 0.0


@dataclass(frozen=True)
class Bandwidth:
    """An all-reduce of `bytes` over the ranks of `group`: `world`, a node's name, or two nodes' as `a+b`.

    `bytes_per_second` is bus bandwidth: 2·(n-1)/n times the bytes, over the seconds of the slowest rank.
    """

    group: str
    ranks: int
    bytes: int
    seconds: float

    @property
    def bytes_per_second(self) -> float:
        """2·(n-1)/n · bytes / seconds."""
        return 2 * (self.ranks - 1) / self.ranks * self.bytes / self.seconds

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"bytes_per_second": self.bytes_per_second}


@dataclass(frozen=True)
class Finding:
    """A problem and where: `node` is empty for what no node is to blame for, `rank` None for all of a node."""

    check: str
    text: str
    node: str = ""
    rank: int | None = None

    @property
    def line(self) -> str:
        """For people."""
        where = ", ".join(part for part in (self.node, "" if self.rank is None else f"rank {self.rank}") if part)
        return f"{where}: {self.text}" if where else self.text


@dataclass(frozen=True)
class Diagnosis:
    """All that was measured, what is bad, and the nodes to stay away from, each with the reason."""

    reports: tuple[RankReport, ...]
    bandwidths: tuple[Bandwidth, ...]
    findings: tuple[Finding, ...]
    exclude: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "ok": not self.findings,
            "ranks": [asdict(report) for report in self.reports],
            "all_reduce": [bandwidth.as_dict() for bandwidth in self.bandwidths],
            "problems": [asdict(finding) for finding in self.findings],
            "exclude": dict(self.exclude),
        }
