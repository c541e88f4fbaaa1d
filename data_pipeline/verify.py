"""Read a whole dataset against its manifest."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.manifest import DatasetManifest, FileInfo, ShardInfo
from data_pipeline.passes.worker import Worker, share_out
from data_pipeline.shards import ShardReader
from data_pipeline.tokenizer import Tokenizer
from runtime.errors import UserError, one_line
from runtime.files import digest_file
from runtime.progress import ProgressBar

_ALONE_BYTES = 1 << 28  # less than this is read sooner than workers start


@dataclass(frozen=True)
class VerifyReport:
    """What was read, and one line for every file that is not as it was built."""

    path: Path
    files: int
    tokens: int
    documents: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def require_ok(self) -> None:
        """Raise UserError naming the first bad file, and how many there are."""
        if self.problems:
            raise UserError(f"{self.problems[0]} ({len(self.problems)} of {self.files} files are bad)")


@dataclass(frozen=True)
class ShardTask:
    """A shard, and what its dataset says of all shards."""

    path: Path
    info: ShardInfo
    form: dict[str, Any]


def verify_dataset(path: Path, progress: bool = True, processes: int | None = None) -> VerifyReport:
    """Check every file, record batch, document border and id of a dataset, with a process a core unless told else.

    Raises UserError if its manifest cannot be used; all else is in the report.
    """
    manifest = DatasetManifest.load(path)
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    tasks = [ShardTask(path, shard, manifest.form_of_shards()) for shard in shards]
    if processes is None:
        large = sum(file.bytes for file in manifest.files) > _ALONE_BYTES
        processes = len(os.sched_getaffinity(0)) if large else 1
    found: dict[int, list[str]] = {}
    with ProgressBar("verify", 1 + len(shards), progress) as bar:
        first = _tokenizer_problems(path, manifest)
        bar.advance(1)
        for number, problems in _each(tasks, processes):
            found[number] = problems
            bad = len(first) + sum(map(len, found.values()))
            bar.advance(1, f"{bad} bad files" if bad else "")
    return VerifyReport(
        path=path,
        files=len(manifest.files),
        tokens=sum(shard.tokens for shard in shards),
        documents=sum(shard.documents for shard in shards),
        problems=tuple(first + [problem for number in sorted(found) for problem in found[number]]),
    )


def _each(tasks: list[ShardTask], processes: int) -> Iterator[tuple[int, list[str]]]:
    if processes == 1 or len(tasks) < 2:
        yield from ((number, shard_problems(task)) for number, task in enumerate(tasks))
        return
    workers = [Worker() for _ in range(min(processes, len(tasks)))]
    try:
        yield from share_out(shard_problems, [(task,) for task in tasks], workers)
    finally:
        for worker in workers:
            worker.close()


def _file_problem(path: Path, info: FileInfo) -> str | None:
    file = path / info.name
    try:
        size = file.stat().st_size
        if size != info.bytes:
            return f"{file} is {size} bytes long, not {info.bytes}: restore the file or rebuild the dataset"
        if digest_file(file) != info.digest:
            return f"{file} is damaged (its digest does not fit): restore the file or rebuild the dataset"
    except OSError as error:
        return f"{file} cannot be read ({error.strerror}): restore the file or rebuild the dataset"
    return None


def _tokenizer_problems(path: Path, manifest: DatasetManifest) -> list[str]:
    info = manifest.tokenizer
    problem = _file_problem(path, info.file)
    if problem:
        return [problem]
    if Tokenizer.load(path / info.file.name).info(info.file) != info:
        return [f"{path / info.file.name} has other ids than the manifest says: rebuild the dataset"]
    return []


def shard_problems(task: ShardTask) -> list[str]:
    """One line for every file of a shard that is not as it was built."""
    info = task.info
    problems = [problem for file in info.files if (problem := _file_problem(task.path, file))]
    if problems:
        return problems
    try:
        _check_content(task)
    except UserError as error:
        return [one_line(error)]
    return []


def _check_content(task: ShardTask) -> None:
    """Digests of all batches; ids inside the vocabulary; EOS at every document's end and nowhere else."""
    info, form = task.info, task.form
    shard = ShardReader(task.path, info, dtype=form["dtype"], batch_tokens=form["batch_tokens"], packed=form["packed"])
    file, begin = task.path / info.file.name, 0
    ends, sources = shard.documents()
    borders: list[np.ndarray[Any, np.dtype[np.int64]]] = []
    for number in range(len(info.batches)):
        tokens = shard.batch(number)
        if int(tokens.max()) >= form["vocabulary"]:
            raise UserError(f"{file}: record batch {number} holds ids outside the vocabulary: rebuild the dataset")
        borders.append(np.flatnonzero(tokens == form["eos_id"]) + begin + 1)
        begin += tokens.size
    if not np.array_equal(np.concatenate(borders), ends) or int(sources.max()) >= form["sources"]:
        raise UserError(f"{file}: its documents do not end where {info.offsets.name} says: rebuild the dataset")
