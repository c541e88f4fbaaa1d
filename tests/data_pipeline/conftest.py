"""One small corpus and one dataset of several shards and batches, made once."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sample_texts import HOSTILE, documents

from data_pipeline.build import build_dataset
from data_pipeline.config import BuildConfig
from data_pipeline.tokenizer import Tokenizer, train_tokenizer
from data_pipeline.tokenizer.piece_model import PieceTokenizer


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 text files, some hostile, one not UTF-8, one empty, one a duplicate."""
    directory = tmp_path_factory.mktemp("corpus")
    for number, text in enumerate([*documents(400, 0), *HOSTILE]):
        (directory / f"{number:04d}.txt").write_bytes(text.encode())
    shutil.copy(directory / "0007.txt", directory / "9000.txt")
    (directory / "9001.txt").write_bytes(b"caf\xe9 in latin-1")
    (directory / "9002.txt").write_bytes(b" \n")
    return directory


@pytest.fixture(scope="session")
def build_config(corpus: Path) -> Callable[..., BuildConfig]:
    """A configuration of the corpus; keywords replace its keys."""

    def make(**changes: Any) -> BuildConfig:
        values = {
            "sources": [{"kind": "text", "name": "words", "licence": "CC0", "glob": f"{corpus}/*.txt"}],
            "tokenizer": {"kind": "train", "vocabulary": 400},
            "validation": 0.1,
            "batch_tokens": 512,
            "shard_tokens": 3000,
        }
        return BuildConfig.parse({**values, **changes}, "build.yaml")

    return make


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, build_config: Callable[..., BuildConfig]) -> Path:
    """A dataset that no test changes."""
    out = tmp_path_factory.mktemp("datasets") / "words"
    build_dataset(build_config(), out, show_progress=False)
    return out


@pytest.fixture
def dataset(built: Path, tmp_path: Path) -> Path:
    """A copy of the dataset that a test may damage."""
    return Path(shutil.copytree(built, tmp_path / "words"))


@pytest.fixture(scope="session", params=["bpe", "unigram"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return PieceTokenizer(train_tokenizer(documents(300, 1), 306, request.param))
