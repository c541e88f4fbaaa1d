"""Flips single bits of a dataset's files, and writes what reading and `lacuna data verify` said into docs/data.md.

`python -m tests.prove.flips` makes 200 flips in tokens and 50 of each other kind, each a pure function of its number.
A flip in the tokens must be refused when they are read, with shard and record batch named; any other is refused or
leaves the tokens as they were; `verify` must name the file every time.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np

from data_pipeline.build import build_dataset
from data_pipeline.config import BuildConfig
from data_pipeline.dataset import TokenDataset
from data_pipeline.verify import verify_dataset
from runtime.errors import UserError

BEGIN, END = "<!-- flips: begin -->", "<!-- flips: end -->"
LENGTH = 100


class Kind(NamedTuple):
    """Where bits are flipped: in which dataset, which files, and whether in token bytes only."""

    name: str
    dataset: str
    files: str
    tokens_only: bool = False


KINDS = (
    Kind("tokens of plain shards", "none", "train-*[0-9].arrow", tokens_only=True),
    Kind("anywhere in plain shards", "none", "train-*[0-9].arrow"),
    Kind("anywhere in lz4 shards", "lz4", "train-*[0-9].arrow"),
    Kind("anywhere in the documents' files", "none", "train-*.documents.arrow"),
)


class Outcome(NamedTuple):
    """Of the flips of a kind: refused at read with shard and batch named, refused by file alone, read as they were."""

    kind: Kind
    flips: int
    named: int
    by_file: int
    harmless: int
    verified: int

    @property
    def good(self) -> bool:
        """Whether none was missed."""
        caught = self.named if self.kind.tokens_only else self.named + self.by_file + self.harmless
        return caught == self.flips == self.verified


def build_pair(folder: Path, size: int = 120_000) -> None:
    """The same text, `size` bytes of it, as `folder/none` and `folder/lz4`."""
    for compression in ("none", "lz4"):
        values: dict[str, Any] = {
            "sources": [{"kind": "python_stdlib", "name": "stdlib", "licence": "PSF-2.0", "max_bytes": size}],
            "tokenizer": {"kind": "train", "vocabulary": 400, "sample_bytes": 50_000},
            "batch_tokens": 1024,
            "shard_tokens": 9000,
            "compression": compression,
        }
        build_dataset(BuildConfig.parse(values, "build"), folder / compression, show_progress=False)


def prove(folder: Path, flips: int) -> Iterator[Outcome]:
    """Flip, read, verify and mend again, `flips` times in tokens and a quarter as often elsewhere."""
    for kind in KINDS:
        path = folder / kind.dataset
        whole = TokenDataset(path)
        truth = [whole.window(w, LENGTH).copy() for w in range(whole.windows(LENGTH))]
        count = flips if kind.tokens_only else -(-flips // 4)
        seen = [_one(path, kind, Random(f"{kind.name} {trial}"), truth) for trial in range(count)]
        verdicts, verified = zip(*seen, strict=True)
        counts = {verdict: verdicts.count(verdict) for verdict in ("named", "file", "harmless")}
        yield Outcome(kind, count, counts["named"], counts["file"], counts["harmless"], sum(verified))


def _one(path: Path, kind: Kind, source: Random, truth: list[Any]) -> tuple[str, bool]:
    file = source.choice(sorted(path.glob(kind.files)))
    data = bytearray(file.read_bytes())
    batch, bit = None, source.randrange(len(data) * 8)
    if kind.tokens_only:
        batch, bit = _in_tokens(path, file, bytes(data), source)
    data[bit // 8] ^= 1 << bit % 8
    good = file.read_bytes()
    file.write_bytes(data)
    try:
        message = _first_problem(path, truth)
        problems = verify_dataset(path, progress=False).problems
    finally:
        file.write_bytes(good)
    where = f"{file}: record batch " + ("" if batch is None else f"{batch} ")
    verdict = "named" if where in message else "file" if str(file) in message else message or "harmless"
    return verdict, len(problems) == 1 and str(file) in problems[0]


def _in_tokens(path: Path, file: Path, data: bytes, source: Random) -> tuple[int, int]:
    """A record batch of the shard, and a bit of its tokens counted from the file's start."""
    shard = next(s for s in TokenDataset(path).shards if s.info.file.name == file.name)
    batch = source.randrange(len(shard.info.batches))
    tokens = shard.batch(batch).tobytes()
    return batch, data.index(tokens) * 8 + source.randrange(len(tokens) * 8)


def _first_problem(path: Path, truth: list[Any]) -> str:
    """What reading everything says, or nothing if all is as it was."""
    try:
        dataset = TokenDataset(path)
        for window, tokens in enumerate(truth):
            if not np.array_equal(dataset.window(window, LENGTH), tokens):
                return "wrong tokens"
        for shard in dataset.shards:
            shard.document_table()
    except UserError as error:
        return str(error)
    return ""


def table(outcomes: list[Outcome]) -> str:
    """A Markdown table."""
    lines = [
        "| one bit flipped in | flips | refused when read, shard and batch named | refused, file named "
        "| tokens unharmed | named by `verify` |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {o.kind.name} | {o.flips} | {o.named} | {o.by_file} | {o.harmless} | {o.verified} |" for o in outcomes
    ]
    return "\n".join(lines)


def rewrite(page: Path, begin: str, end: str, text: str) -> None:
    """Put `text` between two markers of a page."""
    before, rest = page.read_text().split(begin)
    page.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}")


def main() -> None:
    """Parse arguments, run, and rewrite the table between its markers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--page", type=Path, default=Path("docs/data.md"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        build_pair(Path(folder))
        outcomes = list(prove(Path(folder), options.flips))
    first = outcomes[0]
    note = f"{first.named} of {first.flips} flips in tokens found at read, shard and batch named"
    note += "; none of the others missed." if all(outcome.good for outcome in outcomes) else "; SOME WERE MISSED."
    rewrite(options.page, BEGIN, END, f"{note} (`python -m tests.prove.flips`)\n\n{table(outcomes)}")
    print(note)
    sys.exit(not all(outcome.good for outcome in outcomes))


if __name__ == "__main__":
    main()
