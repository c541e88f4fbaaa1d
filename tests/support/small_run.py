"""A small dataset and a recipe of 8 steps on it, for tests that launch real runs."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import yaml

from tests.support.command_line import lacuna, succeeded

_WORDS = ["the", "sea", "fills", "every", "lacuna", "of", "an", "old", "manuscript", "with", "12", "blue", "words\n"]


def write_corpus(folder: Path) -> Path:
    """200 short texts, and the file that `lacuna data build` reads, which is returned."""
    source = random.Random(0)
    for number in range(200):
        text = " ".join(source.choices(_WORDS, k=source.randint(1, 60))) + f" {number}"
        (folder / f"{number:03d}.txt").write_text(text)
    values = {
        "sources": [{"kind": "text", "name": "words", "licence": "CC0", "glob": f"{folder}/*.txt"}],
        "tokenizer": {"kind": "train", "vocabulary": 300},
        "validation": 0.2,
        "batch_tokens": 512,
        "shard_tokens": 3000,
    }
    (folder / "build.yaml").write_text(yaml.safe_dump(values))
    return folder / "build.yaml"


def build_dataset(corpus: Path, out: Path) -> Path:
    """The dataset of a corpus."""
    succeeded(lacuna("data", "build", "--config", corpus, "--out", out))
    return out


def write_recipe(folder: Path, data: Path) -> Path:
    """A recipe of 8 steps of 8 × 32 tokens with a checkpoint every 2."""
    values: dict[str, Any] = {
        "name": "tiny",
        "model": {"layers": 2, "width": 24, "heads": 3, "kv_heads": 3, "ffn": 66, "vocabulary": 300},
        "optimizer": {"lr": 0.01},
        "data": {"path": str(data)},
        "train": {"steps": 8, "global_batch": 8, "micro_batch": 4, "sequence_length": 32, "seed": 1},
        "checkpoint": {"every": 2, "keep": 3},
        "tracking": {"enabled": False},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return folder / "tiny.yaml"
