"""Read a whole dataset against its manifest."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.manifest import DatasetManifest, FileInfo
from data_pipeline.passes.worker import processes_for, spread
from data_pipeline.shards import MEND, ShardTask
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.windows import MEND_INDEX, load_index, window_indices
from runtime.errors import UserError, one_line
from runtime.files import digest_file
from runtime.progress import ProgressBar


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


def verify_dataset(path: Path, progress: bool = True, processes: int | None = None) -> VerifyReport:
    """Check every file, record batch, document border and id of a dataset, and its indices of windows.

    A large one is shared by a process a core, unless `processes` says else.

    Raises UserError if its manifest cannot be used; all else is in the report.
    """
    manifest = DatasetManifest.load(path)
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    tasks = [ShardTask(path, shard, manifest.form_of_shards()) for shard in shards]
    processes = processes or processes_for(sum(file.bytes for file in manifest.files))
    indices = window_indices(path)
    found: dict[int, list[str]] = {}
    with ProgressBar("verify", 1 + len(shards), progress) as bar:
        first = _tokenizer_problems(path, manifest)
        first += [problem for index in indices if (problem := _index_problem(index, manifest))]
        bar.advance(1)
        for number, problems in spread(shard_problems, tasks, processes):
            found[number] = problems
            bad = len(first) + sum(map(len, found.values()))
            bar.advance(1, f"{bad} bad files" if bad else "")
    return VerifyReport(
        path=path,
        files=len(manifest.files) + len(indices),
        tokens=sum(shard.tokens for shard in shards),
        documents=sum(shard.documents for shard in shards),
        problems=tuple(first + [problem for number in sorted(found) for problem in found[number]]),
    )


def _file_problem(path: Path, info: FileInfo, mend: str = MEND) -> str | None:
    file = path / info.name
    try:
        size = file.stat().st_size
        if size != info.bytes:
            return f"{file} is {size} bytes long, not {info.bytes}: {mend}"
        if digest_file(file) != info.digest:
            return f"{file} is damaged (its digest does not fit): {mend}"
    except OSError as error:
        return f"{file} cannot be read ({error.strerror}): {mend}"
    return None


def _tokenizer_problems(path: Path, manifest: DatasetManifest) -> list[str]:
    info = manifest.tokenizer
    problem = _file_problem(path, info.file)
    if problem:
        return [problem]
    if Tokenizer.load(path / info.file.name).info(info.file) != info:
        return [f"{path / info.file.name} has other ids than the manifest says: rebuild the dataset"]
    return []


def _index_problem(path: Path, manifest: DatasetManifest) -> str | None:
    """What is wrong with an index of windows, or None."""
    try:
        index = load_index(path, manifest)
    except UserError as error:
        return one_line(error)
    problems = (_file_problem(path.parent, split.file, MEND_INDEX) for split in index.splits.values())
    return next(filter(None, problems), None)


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
    info, form, shard = task.info, task.form, task.reader()
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
