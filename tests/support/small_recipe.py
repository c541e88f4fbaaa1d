"""A dataset and a recipe on it that train in seconds, made by the command line."""

import random
from pathlib import Path

import yaml

from tests.support.command_line import lacuna, succeeded

_WORDS = ["the", "sea", "fills", "every", "lacuna", "of", "an", "old", "manuscript", "with", "12", "blue", "words\n"]


def write_small_recipe(folder: Path) -> Path:
    """A recipe of 8 steps of 8 × 32 tokens with a checkpoint every 2, and its data beside it."""
    values = {
        "name": "small",
        "model": {"layers": 2, "width": 24, "heads": 3, "kv_heads": 3, "ffn": 66, "vocabulary": 300},
        "optimizer": {"lr": 0.01},
        "data": {"path": str(_build_data(folder))},
        "train": {"steps": 8, "global_batch": 8, "micro_batch": 4, "sequence_length": 32, "seed": 1},
        "checkpoint": {"every": 2, "keep": 3},
        "tracking": {"enabled": False},
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def _build_data(folder: Path) -> Path:
    """A dataset of 200 short texts."""
    source = random.Random(0)
    corpus = "\n%\n".join(" ".join(source.choices(_WORDS, k=source.randint(1, 60))) + f" {n}" for n in range(200))
    (folder / "corpus.txt").write_text(corpus)
    build = {
        "sources": [
            {"kind": "text", "name": "words", "licence": "CC0", "glob": f"{folder}/corpus.txt", "split": "fortune"}
        ],
        "tokenizer": {"kind": "train", "vocabulary": 300},
        "validation": 0.2,
    }
    (folder / "build.yaml").write_text(yaml.safe_dump(build))
    succeeded(lacuna("data", "build", "--config", folder / "build.yaml", "--out", folder / "data"))
    return folder / "data"
