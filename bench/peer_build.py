"""A whole dataset build beside the bare tokenizer on the same text."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.timing import Spread, interleave, ratio
from data_pipeline.build import Means, build_dataset
from data_pipeline.config import BuildConfig
from data_pipeline.manifest import DatasetManifest
from data_pipeline.sources.pieces import cut, open_source, read_piece

BUILD, BARE = "lacuna data build", "bare SentencePiece, one core"


@dataclass(frozen=True)
class BuildResult:
    """Tokens/s of both, and the build's rate over the bare one in the same round."""

    cores: int
    tokens: int
    documents: int
    bytes: int
    rates: dict[str, Spread]
    ratio: Spread


def measure_build(scratch: Path, cores: int, max_bytes: int | None, rounds: int) -> BuildResult:
    """Build Python's standard library (or so much of it) into a dataset with a given vocabulary; encode the same
    documents."""
    source = {"kind": "python_stdlib", "name": "stdlib", "licence": "PSF-2.0", "max_bytes": max_bytes}
    small = {
        "sources": [{**source, "max_bytes": max_bytes or 2_000_000}],
        "tokenizer": {"kind": "train", "vocabulary": 8000},
    }
    build_dataset(BuildConfig.parse(small, "peers"), scratch / "vocabulary", show_progress=False)
    values = {"sources": [source], "tokenizer": {"kind": "existing", "path": str(scratch / "vocabulary")}}
    config = BuildConfig.parse(values, "peers")

    def build(number: int) -> float:
        begin = time.perf_counter()
        build_dataset(config, scratch / f"built-{number}", means=Means(processes=cores, show_progress=False))
        return time.perf_counter() - begin

    texts = _texts(config, scratch)
    encode = _bare(scratch / "vocabulary" / "tokenizer.model")

    def bare(_number: int) -> float:
        begin = time.perf_counter()
        for text in texts:
            encode(text)
        return time.perf_counter() - begin

    times = interleave({BUILD: build, BARE: bare}, rounds)
    made = DatasetManifest.load(scratch / "built-0")
    tokens = sum(split.tokens for split in made.splits.values())
    return BuildResult(
        cores,
        tokens,
        len(texts),
        sum(len(text.encode()) for text in texts),
        {name: Spread.of([tokens / t for t in taken]) for name, taken in times.items()},
        ratio(times[BARE], times[BUILD]),
    )


def _texts(config: BuildConfig, scratch: Path) -> list[str]:
    """The documents that the build keeps."""
    source, texts, left = config.sources[0], dict[str, None](), config.sources[0].max_bytes
    files = open_source(source, scratch, scratch).files
    for piece in cut(source, files, 1 << 26):
        for text in (read.text for read in read_piece(source, piece, 1 << 26)):
            if text is None or not text.strip():
                continue
            left = None if left is None else left - len(text.encode())
            if left is not None and left < 0:
                return list(texts)
            texts[text] = None
    return list(texts)


def _bare(model: Path) -> Callable[[str], Any]:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    return partial(processor.encode, return_type="numpy")  # quicker than lists of ids
