"""Read a whole dataset against its manifest, and say what it holds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.dataset import open_shards
from data_pipeline.manifest import DatasetManifest, FileInfo
from data_pipeline.shards import ShardReader
from data_pipeline.tokenizer import Tokenizer
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


def verify_dataset(path: Path, progress: bool = True) -> VerifyReport:
    """Check every file, record batch, document border and id of a dataset.

    Raises UserError if its manifest cannot be used; all else is in the report.
    """
    manifest = DatasetManifest.load(path)
    shards = [shard for split in manifest.splits for shard in open_shards(path, manifest, split)]
    problems: list[str] = []
    with ProgressBar("verify", 1 + len(shards), progress) as bar:
        problems += _tokenizer_problems(path, manifest)
        bar.advance(1)
        for shard in shards:
            problems += _shard_problems(shard, path, manifest)
            bar.advance(1, f"{len(problems)} bad files" if problems else "")
    return VerifyReport(
        path=path,
        files=len(manifest.files),
        tokens=sum(s.info.tokens for s in shards),
        documents=sum(s.info.documents for s in shards),
        problems=tuple(problems),
    )


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


def _shard_problems(shard: ShardReader, path: Path, manifest: DatasetManifest) -> list[str]:
    info = shard.info
    problems = [problem for file in (info.file, info.offsets) if (problem := _file_problem(path, file))]
    if problems:
        return problems
    try:
        _check_content(shard, path / info.file.name, manifest)
    except UserError as error:
        return [one_line(error)]
    return []


def _check_content(shard: ShardReader, file: Path, manifest: DatasetManifest) -> None:
    """Digests of all batches; ids inside the vocabulary; EOS at every document's end and nowhere else."""
    eos, begin = manifest.tokenizer.eos_id, 0
    ends, sources = shard.documents()
    borders: list[np.ndarray[Any, np.dtype[np.int64]]] = []
    for number in range(len(shard.info.batches)):
        tokens = shard.batch(number)
        if int(tokens.max()) >= manifest.tokenizer.vocabulary:
            raise UserError(f"{file}: record batch {number} holds ids outside the vocabulary: rebuild the dataset")
        borders.append(np.flatnonzero(tokens == eos) + begin + 1)
        begin += tokens.size
    if not np.array_equal(np.concatenate(borders), ends) or int(sources.max()) >= len(manifest.sources):
        raise UserError(f"{file}: its documents do not end where {shard.info.offsets.name} says: rebuild the dataset")


def dataset_stats(path: Path) -> dict[str, Any]:
    """Documents, tokens, bytes per token, counts by source and split, and documents by length.

    `document_lengths` maps a power of two L to the number of documents with L <= tokens < 2 L.
    """
    manifest = DatasetManifest.load(path)
    histogram = np.zeros(64, dtype=np.int64)
    for split in manifest.splits:
        for shard in open_shards(path, manifest, split):
            ends, _ = shard.documents()
            lengths = np.diff(ends, prepend=0)
            histogram += np.bincount(np.frexp(lengths)[1] - 1, minlength=64)
    documents, tokens, text = (
        sum(getattr(s, what) for s in manifest.sources) for what in ("documents", "tokens", "bytes")
    )
    return {
        "digest": manifest.digest,
        "vocabulary": manifest.tokenizer.vocabulary,
        "documents": documents,
        "tokens": tokens,
        "bytes": text,
        "bytes_per_token": text / (tokens - documents) if tokens > documents else 0.0,
        "splits": {
            name: {"tokens": s.tokens, "documents": s.documents, "shards": len(s.shards)}
            for name, s in manifest.splits.items()
        },
        "sources": {s.name: s.model_dump(mode="json", exclude={"name"}) for s in manifest.sources},
        "document_lengths": {1 << power: int(count) for power, count in enumerate(histogram) if count},
    }
