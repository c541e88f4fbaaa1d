"""How many questions a run answers along its training: the table of a study of questions."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from inference.answers import wilson_interval
from runtime.files import write_atomic

COLUMNS = ("share", "low", "high")


@dataclass(frozen=True)
class Score:
    """Right answers of one run after `step` steps and `flops` computed FLOPs of training.

    `couplets` says whether the questions' own answers were in the training data as answers ("seen") or as statements
    only ("unseen"); `direction` is forward or backward.
    """

    family: str
    seed: int
    step: int
    flops: float
    couplets: str
    direction: str
    asked: int
    hits: int

    @property
    def share(self) -> float:
        """Right answers of those asked."""
        return self.hits / self.asked

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the share over questions (Wilson)."""
        return wilson_interval(self.hits, self.asked)


def write_scores(path: Path, scores: Iterable[Score]) -> None:
    """The scores as CSV, with shares and intervals beside the counts."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*(field.name for field in fields(Score)), *COLUMNS])
    for score in scores:
        shares = (f"{value:.5f}" for value in (score.share, *score.interval))
        writer.writerow([*asdict(score).values(), *shares])
    write_atomic(path, out.getvalue())


def together(scores: Sequence[Score]) -> dict[str, Any]:
    """Scores of several seeds at the same point as one: the mean share, its range, and the interval of all answers.

    The interval takes answers of different seeds to the same question as independent.
    """
    shares = [score.share for score in scores]
    low, high = wilson_interval(sum(s.hits for s in scores), sum(s.asked for s in scores))
    return {
        "seeds": len(scores),
        "share": sum(shares) / len(shares),
        "least": min(shares),
        "most": max(shares),
        "low": low,
        "high": high,
    }
