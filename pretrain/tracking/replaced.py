"""Steps whose points MLflow has otherwise than the run has them now: MLflow never changes or removes a point.

A resumed run that trains differently (another learning rate, say) gives new values to steps that were shown already.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from pretrain.tracking.server import TrackingServer
from pretrain.tracking.spool import iterate_metrics
from pretrain.tracking.state import ForwardState
from runtime.files import digest_bytes

REPLACED_TAG = "lacuna.replaced_steps"
_KEYS = ("train/loss", "optim/lr")  # no training differs from another and leaves both as they were


def fingerprint(line: Mapping[str, Any]) -> str:
    """What tells a line from one that differs in the curve; equal for one that differs in times only."""
    return digest_bytes(repr([line.get(key) for key in _KEYS]).encode("utf-8", "backslashreplace"))[:16]


def may_differ(path: Path, state: ForwardState, last_steps: Mapping[str, int], ended: bool) -> bool:
    """Whether steps that were shown have been trained again, differently, as far as this machine can tell.

    True also if that cannot be told: the last call was killed before it noted what it had sent, or the run has `ended`
    before it came to the last step shown. `last_steps`: the server's, by metric.
    """
    if not path.exists():
        return False
    if max((last_steps.get(key, -1) for key in _KEYS), default=-1) > state.last_step:
        return True
    if not state.fingerprint:
        return False
    found = next(_from_step(path, state), None)
    return ended if found is None else found["step"] > state.last_step or fingerprint(found) != state.fingerprint


def _from_step(path: Path, state: ForwardState) -> Iterator[dict[str, Any]]:
    """Lines from the state's last step on."""
    first = next(iterate_metrics(path, state.offset, skip_broken=True), None)
    offset = state.offset if first is not None and first[1]["step"] == state.last_step else 0
    return (line for _, line in iterate_metrics(path, offset, skip_broken=True) if line["step"] >= state.last_step)


def replaced_steps(path: Path, server: TrackingServer, run_id: str, ended: bool) -> str:
    """Steps as `21-30, 45-50` (empty: none) of which MLflow has other values, or has values though the run has none;
    the latter beyond the run's last line only if it has `ended`. Asks for two whole curves.
    """
    shown = {key: server.history(run_id, key) for key in _KEYS}
    equal: set[int] = set()
    last = -1
    for _, line in iterate_metrics(path, skip_broken=True):
        last = line["step"]
        if all(_same(points.get(last), line.get(key)) for key, points in shown.items()):
            equal.add(last)
    steps = sorted({step for points in shown.values() for step in points if ended or step <= last})
    ranges = [list(group) for differs, group in groupby(steps, lambda step: step not in equal) if differs]
    return ", ".join(f"{some[0]}-{some[-1]}" for some in ranges)


def shown_value(value: float) -> float:
    """`value` as MLflow is sent it, which would turn infinite ones into 1.8e308."""
    return float(value) if abs(value) < 1e308 else math.nan


def _same(shown: float | None, value: object) -> bool:
    if shown is None:
        return True
    if not isinstance(value, int | float):
        return False
    return shown == shown_value(value) or (math.isnan(shown) and math.isnan(shown_value(value)))
