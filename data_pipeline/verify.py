"""Read a whole dataset against its manifest."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from data_pipeline.files import MEND, FileInfo
from data_pipeline.manifest import DatasetManifest
from data_pipeline.passes.worker import processes_for, spread
from data_pipeline.shards import ShardReader, ShardTask, Tokens
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.windows import MEND_INDEX, load_index, window_indices
from runtime.errors import UserError, one_line
from runtime.files import digest_file
from runtime.progress import ProgressBar

_HEADER_BYTES = 4096  # of a record batch; Arrow needs a few hundred
_FOOTER_BYTES = 32  # of each batch at the file's end


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
    shard, problems = task.reader(), []
    try:
        ends, sources = shard.documents()
    except UserError as error:
        problems.append(one_line(error))
    try:
        found = _document_ends(task, shard)
    except UserError as error:
        problems.append(one_line(error))
    if not problems and not (np.array_equal(found, ends) and int(sources.max()) < task.form["sources"]):
        file, documents = task.path / task.info.file.name, task.info.offsets.name
        problems.append(f"{file}: its documents do not end where {documents} says: rebuild the dataset")
    return problems


def _document_ends(task: ShardTask, shard: ShardReader) -> npt.NDArray[np.int64]:
    """Where EOS stands, once the file and all its batches fit their digests and all ids are inside the vocabulary.

    Raises UserError naming the file.
    """
    form, file = task.form, task.path / task.info.file.name
    borders, begin = [np.zeros(0, dtype=np.int64)], 0
    for number, tokens in enumerate(_batches_as_read(file, task, shard)):
        if int(tokens.max()) >= form["vocabulary"]:
            raise UserError(f"{file}: record batch {number} holds ids outside the vocabulary: rebuild the dataset")
        borders.append(np.flatnonzero(tokens == form["eos_id"]) + begin + 1)
        begin += tokens.size
    return np.concatenate(borders)


def _batches_as_read(file: Path, task: ShardTask, shard: ShardReader) -> Iterator[Tokens]:
    """The batches of a shard while its file is read, once, for its digest: each comes right after its bytes were read.

    So they are in memory when the mapping is asked for them, and a fault of the disk is an error and not a signal.
    Raises UserError naming the file if a batch, or in the end the file, does not fit its digest.
    """
    size, batches = shard.mapped.size, len(task.info.batches)
    tail = min(size, _HEADER_BYTES + _FOOTER_BYTES * batches)
    state = xxhash.xxh3_128()
    buffer = memoryview(bytearray(task.form["batch_tokens"] * np.dtype(task.form["dtype"]).itemsize + _HEADER_BYTES))
    try:
        with open(file, "rb", buffering=0) as source:
            os.pread(source.fileno(), tail, size - tail)
            for number in range(batches):
                state.update(buffer[: source.readinto(buffer)])
                yield shard.batch(number)
            while count := source.readinto(buffer):
                state.update(buffer[:count])
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): {MEND}") from None
    if state.hexdigest() != task.info.file.digest:
        raise UserError(f"{file} is damaged (its digest does not fit): {MEND}")
