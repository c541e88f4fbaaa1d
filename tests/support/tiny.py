"""A run small enough for tests: tokens that are a function of the index, a model of two layers."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pretrain.config import RunConfig

MASK, PAD, BOS = 130, 129, 128
VOCABULARY = 131  # odd on purpose: tensor ranks must pad it


@dataclass(frozen=True)
class CountedTokens:
    """Tokens of sample i: a keyed stream of its own, no files."""

    sequence_length: int

    def tokens(self, index: int) -> np.ndarray:
        generator = np.random.Generator(np.random.Philox(key=np.array([7, index], dtype=np.uint64)))
        return generator.integers(0, 128, self.sequence_length)


@dataclass(frozen=True)
class DocumentTokens:
    """Counted tokens in documents, each of which ends with BOS: by turns one that ends beyond the window, short ones
    with one that crosses the middle, two that meet in the middle, and one of a single token.
    """

    sequence_length: int

    def tokens(self, index: int) -> np.ndarray:
        middle = self.sequence_length // 2
        ends = ((), (2, middle - 5, middle + 4), (middle - 1,), (middle - 9, middle - 8, self.sequence_length - 1))
        tokens = CountedTokens(self.sequence_length).tokens(index)
        tokens[list(ends[index % len(ends)])] = BOS
        return tokens


def tiny_config(objective: str = "masked", **changes: Any) -> RunConfig:
    """A valid configuration; `changes` are dotted keys with dots written as two underscores."""
    values: dict[str, Any] = {
        "name": "tiny",
        "objective": {"kind": "masked", "random_length": 0.25} if objective == "masked" else {"kind": objective},
        "model": {"layers": 2, "width": 64, "heads": 4, "kv_heads": 4, "ffn": 96, "vocabulary": VOCABULARY},
        "optimizer": {"lr": 0.01, "clip": 0.05, "schedule": {"kind": "wsd", "warmup": 1000}},
        "train": {"steps": 20, "global_batch": 8, "micro_batch": 2, "sequence_length": 32, "seed": 3, "head_chunk": 40},
        "data": {"path": "unused"},
    }
    for key, value in changes.items():
        *path, last = key.split("__")
        section = values
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value
    return RunConfig.parse(values, "tiny")
