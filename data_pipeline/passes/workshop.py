"""Units of work: each writes a directory of its own, named by what it depends on, whole or not at all.

A unit that stands finished is not done again, so a build that was killed goes on where it was.
"""

import fcntl
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from pydantic import BaseModel

from data_pipeline.passes.worker import Worker, share_out
from runtime.errors import UserError
from runtime.files import digest_bytes, fsync_directory, fsync_file, remove_tree
from runtime.progress import ProgressBar

T = TypeVar("T")
_VERSION = 3
"""Raised when units of an older Lacuna must not be taken for this one's."""
_PACKAGES = ("pyarrow", "sentencepiece", "numpy", "rensa", "py3langid", "selectolax", "docutils", "tokenizers")


class Unit(NamedTuple):
    """What a unit of work depends on, besides the machine's libraries, and what it is given."""

    depends_on: Any
    task: Any


def digest_of(value: Any) -> str:
    """32 hexadecimal digits of a JSON-like value; settings, paths and named tuples count as what they hold."""

    def plain(below: Any) -> Any:
        return below.model_dump(mode="json") if isinstance(below, BaseModel) else str(below)

    return digest_bytes(json.dumps(value, sort_keys=True, default=plain).encode())


def library_versions() -> dict[str, str]:
    """Versions that the result of a unit may depend on."""
    found = {"unit": str(_VERSION), "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = ""
    return found


class Workshop:
    """Does units of work below `directory`, in this process or in `processes` others."""

    def __init__(self, directory: Path, processes: int, show_progress: bool) -> None:
        self.directory, self.processes, self.show_progress = directory, processes, show_progress
        self._versions = library_versions()
        self._workers: list[Worker] = []
        for stale in directory.glob(".*-*"):
            shutil.rmtree(stale, ignore_errors=True)

    def run(self, stage: str, function: Callable[[Any, Path], None], units: Sequence[Unit]) -> list[Path]:
        """Directories that `function(task, directory)` filled, in the order of `units`.

        `function` must be importable by name and depend on its task alone. Raises what it raises; LacunaError
        if a worker process was killed.
        """
        places = [
            self.directory / f"{stage.replace(' ', '-')}-{digest_of([self._versions, unit.depends_on])}"
            for unit in units
        ]
        missing = {place: unit.task for place, unit in zip(places, units, strict=True) if not place.exists()}
        with ProgressBar(stage, len(units), self.show_progress and bool(units)) as bar:
            bar.advance(len(units) - len(missing), "found finished" if len(missing) < len(units) else "")
            tasks = [(function, task, place) for place, task in missing.items()]
            if self.processes == 1 or len(tasks) <= 1:
                for task in tasks:
                    _perform(*task)
                    bar.advance(1)
            else:
                self._workers += [Worker() for _ in range(min(self.processes, len(tasks)) - len(self._workers))]
                for _ in share_out(_perform, tasks, self._workers):
                    bar.advance(1)
        return places

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.close()


def _perform(function: Callable[[Any, Path], None], task: Any, place: Path) -> None:
    staging = place.with_name(f".{place.name}.{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        function(task, staging)
        for file in staging.iterdir():
            fsync_file(file)
        fsync_directory(staging)
        os.rename(staging, place)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def work_directory(out: Path) -> Path:
    """Where the work for `out` is kept until `out` stands there."""
    return out.with_name(f".{out.name}.building")


@contextmanager
def work_beside(out: Path, processes: int | None, show_progress: bool) -> Iterator[Workshop]:
    """A workshop in a directory beside `out` that only this process uses.

    The directory is removed when all went well, or nothing was finished; else the next build goes on from it.
    """
    place = work_directory(out)
    place.mkdir(parents=True, exist_ok=True)
    lock = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out} is being built by another process: wait for it") from None
        try:
            with Workshop(place, processes or len(os.sched_getaffinity(0)), show_progress) as workshop:
                yield workshop
        except BaseException:
            if not any(place.glob("*-*")):
                remove_tree(place)
            raise
        remove_tree(place)
    finally:
        os.close(lock)


def fresh_directory(path: Path) -> Path:
    """An empty directory, whatever stood there before."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    return path
