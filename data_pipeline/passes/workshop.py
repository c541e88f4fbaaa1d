"""Units of work: each writes a directory of its own, named by what it depends on, whole or not at all.

A unit that stands finished is not done again, so a build that was killed goes on where it was.
"""

import importlib.metadata
import json
import os
import platform
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from pydantic import BaseModel

from data_pipeline.passes.worker import Worker
from runtime.files import digest_bytes, fsync_directory, fsync_file
from runtime.progress import ProgressBar

T = TypeVar("T")
_VERSION = 1
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
            if self.processes == 1 or len(missing) <= 1:
                for place, task in missing.items():
                    _perform(function, task, place)
                    bar.advance(1)
            else:
                self._share_out(function, missing, bar)
        return places

    def _share_out(self, function: Callable[[Any, Path], None], missing: dict[Path, Any], bar: ProgressBar) -> None:
        """Each worker takes the next unit when it is done; the first error ends it all."""
        self._workers += [Worker() for _ in range(min(self.processes, len(missing)) - len(self._workers))]
        waiting = iter(list(missing.items()))
        turn = threading.Lock()

        def serve(worker: Worker) -> None:
            while True:
                with turn:
                    place, task = next(waiting, (None, None))
                if place is None:
                    return
                try:
                    worker.do(_perform, function, task, place)
                except BaseException:
                    with turn:
                        list(waiting)
                    raise
                with turn:
                    bar.advance(1)

        with ThreadPoolExecutor(len(self._workers)) as threads:
            served = [threads.submit(serve, worker) for worker in self._workers]
            for one in as_completed(served):
                one.result()

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
