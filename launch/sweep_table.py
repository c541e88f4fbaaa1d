"""A sweep's table that is kept outside its directory, so that the points in it are done on other machines too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pretrain.scaling.points import Measured, read_points
from pretrain.scaling.sweep import Point, Sweep
from runtime.errors import UserError


def known_points(path: Path, sweep: Sweep, points: Sequence[Point], data_digest: str | None) -> dict[str, Measured]:
    """The lines of a sweep's table by the names of its points; none if there is no such file yet.

    Raises UserError for what `read_points` refuses, and a line that is no point of the sweep, stands twice, or was
    trained by another configuration or on other data: the table is written anew, and would lose it.
    """
    by_name = {point.name: point for point in points}
    known: dict[str, Measured] = {}
    for row in read_points(path) if path.exists() else []:
        where = f"{path}: {row.name!r:.80}"
        if row.name not in by_name:
            raise UserError(f"{where} is no point of the sweep {sweep.name}: remove its line, or give another --table")
        if row.name in known:
            raise UserError(f"{where} stands twice: keep one of its lines")
        if not (row.config_digest and row.data_digest):
            raise UserError(f"{where} has no config_digest or data_digest, as a sweep writes them: remove its line")
        anew = "remove its line to train it anew, or give another --table"
        if row.data_digest != data_digest:
            raise UserError(f"{where} was trained on other data than {sweep.data} holds now: {anew}")
        if row.config_digest != by_name[row.name].config_digest:
            raise UserError(f"{where} was trained or validated by another configuration: {anew}")
        known[row.name] = row
    return known
