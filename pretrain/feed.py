"""From sample indices to this rank's micro-batches of a step; runs on the prefetch thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from pretrain.batch import MicroBatch
from pretrain.objectives.base import Sample, SampleObjective

_WORD = 1 << 64
_SAMPLES_AHEAD = 64


class TokenReader(Protocol):
    """Tokens of a global sample, as `data_pipeline.dataset.SampleReader` gives them."""

    def tokens(self, index: int) -> np.ndarray:
        """int64 [sequence_length], or fewer for a sample that must be padded."""
        ...


@dataclass(frozen=True)
class StepBatch:
    """This rank's share of a step: micro-batches, counting tokens, and two words of digest (see `Sample.digest`)."""

    micro_batches: tuple[MicroBatch, ...]
    tokens: int
    digest: tuple[int, int]


@dataclass(frozen=True)
class Feed:
    """Builds step batches: sample step · global_batch + position; a data rank takes consecutive positions.

    Context ranks share the samples of a data rank, each with its part of the sequence.
    """

    reader: TokenReader
    objective: SampleObjective
    global_batch: int
    micro_batch: int
    data_rank: int
    data_size: int
    context_rank: int = 0
    context_size: int = 1
    prefetch: Callable[[Iterable[int]], None] | None = None
    """Is told, for data that is far away, which samples the next steps will need: two steps, or 64 samples."""

    def step(self, step: int) -> StepBatch:
        """Share of this data rank in step `step` (counted from 0)."""
        share = self.global_batch // self.data_size
        positions = range(self.data_rank * share, (self.data_rank + 1) * share)
        if self.prefetch is not None:
            ahead = range(step, step + 1 + max(2, -(-_SAMPLES_AHEAD // share)))
            self.prefetch(soon * self.global_batch + j for soon in ahead for j in positions)
        samples = [self._sample(step * self.global_batch + j) for j in positions]
        low = high = 0
        for j, sample in zip(positions, samples, strict=True):
            words = sample.digest(j)
            low, high = (low + words[0]) % _WORD, (high + words[1]) % _WORD
        cut = range(0, share, self.micro_batch)
        micro_batches = tuple(
            collate(samples[k : k + self.micro_batch], self.context_rank, self.context_size) for k in cut
        )
        return StepBatch(micro_batches, sum(s.length for s in samples), (low, high))

    def _sample(self, index: int) -> Sample:
        return self.objective.prepare(self.reader.tokens(index), index)


def collate(samples: Sequence[Sample], context_rank: int = 0, context_size: int = 1) -> MicroBatch:
    """Stack samples; rows index the flattened [S, B] activations. A context rank gets its part of the sequence."""
    batch, length = len(samples), len(samples[0].inputs)
    part = length // context_size
    first = context_rank * part
    mine = [(s.positions >= first) & (s.positions < first + part) for s in samples]
    rows = [(s.positions[m] - first) * batch + b for b, (s, m) in enumerate(zip(samples, mine, strict=True))]
    levels = [np.full(m.sum(), s.level_bin, dtype=np.int64) for s, m in zip(samples, mine, strict=True)]
    lengths = np.array([s.length for s in samples])
    return MicroBatch(
        inputs_BS=torch.from_numpy(np.stack([s.inputs[first : first + part] for s in samples])),
        rows_R=torch.from_numpy(np.concatenate(rows)),
        targets_R=torch.from_numpy(np.concatenate([s.targets[m] for s, m in zip(samples, mine, strict=True)])),
        weights_R=torch.from_numpy(np.concatenate([s.weights[m] for s, m in zip(samples, mine, strict=True)])),
        levels_R=torch.from_numpy(np.concatenate(levels)),
        lengths_B=torch.from_numpy(lengths) if (lengths < length).any() else None,
    )
