"""`slurm.json` of a run directory: what was submitted. It is written before `sbatch` is called, so that a submission
that broke off can be told from none.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pretrain.run_directory import RunDirectory
from runtime.errors import UserError
from runtime.files import read_json, write_json

_FILE, _STOP = "slurm.json", "stop-requested"


@dataclass(frozen=True)
class Submission:
    """One call of `lacuna submit`: `jobs` are the ids of its links so far, in order; `wanted`, how many there will be.

    `token` marks its jobs in Slurm's comment field.
    """

    name: str
    token: str
    wanted: int
    nodes: int
    ranks_per_node: int
    requeues: bool
    give_up_after: int
    bad_nodes: str
    bad_node_days: float
    data: list[str]
    jobs: list[str] = field(default_factory=list)

    @property
    def ranks(self) -> int:
        """Ranks of the whole job."""
        return self.nodes * self.ranks_per_node


def read_submission(directory: RunDirectory) -> Submission | None:
    """The run's last submission, or None if it never went to Slurm. Raises UserError for a broken file."""
    path = directory.root / _FILE
    if not path.exists():
        return None
    values: Any = read_json(path)
    try:
        return Submission(**values)
    except TypeError:
        raise UserError(f"{path} is not as it was written: remove it if no job of this run is in the queue") from None


def write_submission(directory: RunDirectory, submission: Submission) -> None:
    """Replace `slurm.json`, atomically. Raises OSError."""
    write_json(directory.root / _FILE, asdict(submission))


def stop_requested(directory: RunDirectory) -> bool:
    """Whether `lacuna stop` wants the run to stay stopped."""
    return _stop(directory).exists()


def request_stop(directory: RunDirectory, wanted: bool) -> None:
    """Set or clear the mark that keeps jobs of the run from going back into the queue."""
    _stop(directory).touch() if wanted else _stop(directory).unlink(missing_ok=True)


def _stop(directory: RunDirectory) -> Path:
    return directory.root / _STOP
