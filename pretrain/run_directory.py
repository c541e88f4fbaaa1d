"""The run directory: a contract with people and scripts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunDirectory:
    """Paths of one run."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved configuration; all that ranks read."""
        return self.root / "config.yaml"

    @property
    def metadata(self) -> Path:
        """Name of the run and one entry per attempt."""
        return self.root / "run.json"

    @property
    def environment(self) -> Path:
        """Versions and host facts."""
        return self.root / "environment.json"

    @property
    def metrics(self) -> Path:
        """One JSON object per logged step."""
        return self.root / "metrics.jsonl"

    @property
    def goodput(self) -> Path:
        """Where the run's wall time has gone, when its last attempt began or ended to train."""
        return self.root / "goodput.json"

    @property
    def checkpoints(self) -> Path:
        """Published checkpoints, `step-NNNNNNNN/`."""
        return self.root / "checkpoints"

    @property
    def evaluations(self) -> Path:
        """What evaluations of its checkpoints gave."""
        return self.root / "evaluations"

    @property
    def plots(self) -> Path:
        """PNG files."""
        return self.root / "plots"

    def logs(self, attempt: int) -> Path:
        """Logs of one attempt, a file a rank."""
        return self.root / "logs" / str(attempt)

    def failure(self, attempt: int, rank: int) -> Path:
        """Why a rank ended, for the launcher to tell."""
        return self.logs(attempt) / f"failure-{rank:05d}.json"

    def signs(self, attempt: int, token: int) -> Path:
        """What ranks say of themselves while the holder of lease `token` trains, and what the watchdog found."""
        return self.logs(attempt) / f"watch-{token}"

    @property
    def profile_request(self) -> Path:
        """Steps that a person wants traced; written by `lacuna profile`."""
        return self.root / "profile.json"

    def traces(self, first: int, last: int) -> Path:
        """Traces of a range of steps, a file a rank."""
        return self.root / "traces" / f"steps-{first:08d}-{last:08d}"
