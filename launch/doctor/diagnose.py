"""From the reports of all ranks to what is bad, and which nodes to stay away from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from launch.doctor.outliers import low_outliers
from launch.doctor.report import Bandwidth, Diagnosis, Finding, RankReport

_CLOCK_SECONDS = 1.0
_OF_THE_SITE = ("tracking", "room")  # the same server and file system for all nodes


def diagnose(reports: Sequence[RankReport], bandwidths: Sequence[Bandwidth]) -> Diagnosis:
    """What all nodes have in common is not a node's fault: then none is excluded for it."""
    findings = list(dict.fromkeys([
        *_own_problems(reports),
        *_minorities(reports, "versions", lambda report: report.versions),
        *_minorities(reports, "data", lambda report: report.data),
        *_clocks(reports),
        *_slow_ranks(reports),
        *_slow_nodes(bandwidths),
    ]))  # fmt: skip
    nodes = {report.node for report in reports}
    reasons: dict[str, list[str]] = {}
    for check in dict.fromkeys(finding.check for finding in findings):
        blamed = [finding for finding in findings if finding.check == check and finding.node]
        if {finding.node for finding in blamed} == nodes:
            continue
        for finding in blamed:
            reasons.setdefault(finding.node, []).append(finding.text)
    exclude = {node: "; ".join(texts) for node, texts in reasons.items()}
    return Diagnosis(tuple(reports), tuple(bandwidths), tuple(findings), exclude)


def _own_problems(reports: Sequence[RankReport]) -> Iterator[Finding]:
    for report in reports:
        for problem in report.problems:
            yield Finding(problem.check, problem.text, "" if problem.check in _OF_THE_SITE else report.node)


def _minorities(
    reports: Sequence[RankReport], check: str, of: Callable[[RankReport], Mapping[str, str]]
) -> Iterator[Finding]:
    """Nodes that have another value than most."""
    for key in sorted({key for report in reports for key in of(report)}):
        values = Counter(of(report).get(key, "nothing") for report in reports)
        usual = values.most_common(1)[0][0]
        for report in reports:
            if (value := of(report).get(key, "nothing")) != usual:
                yield Finding(check, f"has {key} {value}, most have {usual}", report.node)


def _clocks(reports: Sequence[RankReport]) -> Iterator[Finding]:
    for report in reports:
        if abs(report.clock) > _CLOCK_SECONDS:
            way = "ahead" if report.clock > 0 else "behind"
            yield Finding("clock", f"its clock is {abs(report.clock):.1f} s {way}", report.node)


def _slow_ranks(reports: Sequence[RankReport]) -> Iterator[Finding]:
    node = {report.rank: report.node for report in reports}
    for rank, share in low_outliers({r.rank: r.gemm for r in reports if r.gemm}).items():
        yield Finding("gemm", f"matrix products at {share:.0%} of the median rank's rate", node[rank], rank)


def _slow_nodes(bandwidths: Sequence[Bandwidth]) -> Iterator[Finding]:
    """A node inside by its own ring; between nodes by the better of its pairs, for in the worse one the other may be
    to blame.
    """
    for size in sorted({bandwidth.bytes for bandwidth in bandwidths})[-1:]:  # small ones measure delays
        inside: dict[str, float] = {}
        between: dict[str, float] = {}
        for bandwidth in bandwidths:
            if bandwidth.bytes != size or bandwidth.group == "world":
                continue
            pair = bandwidth.group.split("+")
            if len(pair) == 1:
                inside[pair[0]] = bandwidth.bytes_per_second
            for node in pair if len(pair) == 2 else ():
                between[node] = max(between.get(node, 0.0), bandwidth.bytes_per_second)
        for check, what, values in (("intra-node", "inside", inside), ("inter-node", "to other nodes", between)):
            for node, share in low_outliers(values).items():
                yield Finding(check, f"all-reduce {what} at {share:.0%} of the median node's bandwidth", node)
