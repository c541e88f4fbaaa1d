"""What a process can find out about its machine without torch and without the others."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.config import RemoteConfig
from launch.doctor.gpus import gpu_problems
from launch.doctor.report import Problem
from pretrain.tracking.uri import check_reachable
from runtime.environment import describe_machine
from runtime.errors import LacunaError, UserError, one_line

_MODULES = ("torch", "megatron.core", "deepspeed", "sentencepiece", "pyarrow", "safetensors")
_TRACKING_SECONDS = 10.0
_STORE_SECONDS = 10.0


@dataclass(frozen=True)
class Subject:
    """What to look at; nothing of a run, if there is none. `checkpoint`: bytes of one; `remote`: how data in an object
    store is reached.
    """

    run: Path | None = None
    checkpoint: float = 0.0
    data: Sequence[str] = ()
    tracking: str | None = None
    remote: RemoteConfig = field(default_factory=RemoteConfig)


def versions() -> dict[str, str]:
    """Of Python and the packages that matter."""
    machine = describe_machine()
    packages: Any = machine["packages"]
    return {"python": str(machine["python"]), **packages}


def import_problems(all_of_them: bool = True) -> list[Problem]:
    """Packages that cannot be imported, or only torch, if that cannot; takes seconds."""
    found = []
    for name in _MODULES if all_of_them else _MODULES[:1]:
        try:
            with redirect_stdout(sys.stderr):  # DeepSpeed talks while it is imported, and standard output is ours
                importlib.import_module(name)
        except Exception as error:  # whatever a package does wrong at import
            found.append(Problem("imports", f"cannot import {name}: {one_line(error)}"))
    return found


def machine_problems() -> list[Problem]:
    """Temporary files and GPUs: what each node must have."""
    return [*_temporary_files(), *gpu_problems()]


def run_problems(subject: Subject) -> list[Problem]:
    """Room for checkpoints."""
    found = []
    if subject.run is not None and subject.checkpoint:
        from launch.slurm.preflight import check_room

        try:
            check_room(subject.run, subject.checkpoint)
        except LacunaError as error:
            found.append(Problem("room", one_line(error)))
    return found


def look_at_data(subject: Subject) -> tuple[dict[str, str], list[Problem]]:
    """The digest of each dataset's manifest as training would read it, from a directory or an object store, and what
    is wrong with those that cannot be read.
    """
    digests: dict[str, str] = {}
    problems = []
    for path in subject.data:
        try:
            digests[path] = manifest_digest(path, subject.remote)
        except UserError as error:
            problems.append(Problem("data", one_line(error)))
    return digests, problems


def manifest_digest(path: str, remote: RemoteConfig) -> str:
    """Of the dataset at `path`. A store that fails is given some seconds. Raises UserError."""
    from data_pipeline.places import open_place

    hurried = remote.model_copy(update={"patience": min(remote.patience, _STORE_SECONDS)})
    return open_place(path, hurried).manifest().digest


def tracking_problems(subject: Subject) -> list[Problem]:
    """Whether somebody answers at the tracking URI."""
    if subject.tracking is None:
        return []
    try:
        check_reachable(subject.tracking, _TRACKING_SECONDS)
    except UserError as error:
        return [Problem("tracking", one_line(error))]
    return []


def _temporary_files() -> list[Problem]:
    folder = os.environ.get("TMPDIR")
    try:
        if folder:
            Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(1 << 20))
            probe.flush()
    except OSError as error:
        return [Problem("temporary files", f"temporary files: {one_line(error)}")]
    return []
