"""Who this process is among all processes of the run, and what machine it stands on."""

import importlib.metadata
import os
import platform
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import UserError

_PACKAGES = ("torch", "megatron-core", "deepspeed", "numpy", "pyarrow", "sentencepiece", "mlflow")
_DIGITS = 9


@dataclass(frozen=True)
class RankInfo:
    """Place of a process in the run, as torchrun or Slurm tells it.

    Ranks count from 0. `attempt` counts restarts of the same run by the scheduler.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    attempt: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for the run on the console and in shared files."""
        return self.rank == 0

    @classmethod
    def from_environment(cls, variables: Mapping[str, str] | None = None) -> "RankInfo":
        """Read torchrun's variables, else Slurm's step variables, else a single process.

        Raises UserError for values that are no place in a world, or half of torchrun's variables.
        """
        variables = os.environ if variables is None else variables
        attempt = _integer(variables, "SLURM_RESTART_COUNT", 0) + _integer(variables, "TORCHELASTIC_RESTART_COUNT", 0)
        if bool(variables.get("RANK")) != bool(variables.get("WORLD_SIZE")):
            raise UserError("only one of RANK and WORLD_SIZE is set: set both (torchrun does) or neither")
        for rank, world, local in (
            ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
            ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
        ):
            if variables.get(rank) and variables.get(world):
                place = cls(
                    _integer(variables, rank, 0), _integer(variables, world, 1), _integer(variables, local, 0), attempt
                )
                if place.rank >= place.world:
                    raise UserError(
                        f"environment variables {rank}={place.rank} and {world}={place.world} do not fit together: "
                        "ranks count from 0; start with torchrun, srun or `lacuna train`"
                    )
                return place
        return cls(attempt=attempt)


def _integer(variables: Mapping[str, str], name: str, default: int) -> int:
    text = variables.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) <= _DIGITS):
        raise UserError(
            f"environment variable {name}={text!r:.40} is not a whole number: "
            "start with torchrun, srun or `lacuna train`"
        )
    return int(text)


def node_name(variables: Mapping[str, str] | None = None) -> str:
    """As Slurm calls this machine, else its host name."""
    variables = os.environ if variables is None else variables
    return variables.get("SLURMD_NODENAME") or socket.gethostname()


def describe_machine() -> dict[str, object]:
    """Versions and host facts for `environment.json`; nothing secret, no environment variables."""
    versions: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "missing"
    return {
        "host": socket.gethostname(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "packages": versions,
    }


def code_version() -> dict[str, object]:
    """Commit of the code that will run, and whether it has been changed since; empty outside of a checkout."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str | None:
        try:
            result = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=False)
        except OSError:
            return None
        return result.stdout.strip() if result.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    return {} if commit is None else {"commit": commit, "changed": bool(git("status", "--porcelain", "-uno"))}
