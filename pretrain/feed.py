"""From sample indices to this rank's micro-batches of a step; runs on the prefetch thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from data_pipeline.shards import DamagedBatch
from pretrain.batch import MicroBatch
from pretrain.objectives.base import Sample, SampleObjective

_WORD = 1 << 64
_SAMPLES_AHEAD = 64


class TokenReader(Protocol):
    """Tokens of a global sample, as `data_pipeline.dataset.SampleReader` gives them."""

    def tokens(self, index: int) -> np.ndarray:
        """int64 [sequence_length], or fewer for a sample that must be padded. Raises DamagedBatch."""
        ...


@dataclass(frozen=True)
class StepBatch:
    """This rank's share of a step: micro-batches, counting tokens, and two words of digest (see `Sample.digest`).

    `quarantined` are the global samples that this rank left out, each with the damage it met.
    """

    micro_batches: tuple[MicroBatch, ...]
    tokens: int
    digest: tuple[int, int]
    quarantined: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class Feed:
    """Builds step batches: sample step · global_batch + position; a data rank takes consecutive positions.

    Context ranks share the samples of a data rank, each with its part of the sequence. With `quarantine`, a sample in a
    damaged batch is left out: its place holds padding that has no loss and no share in the denominator. All other
    samples stay what they are.
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
    quarantine: bool = False
    _reading: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def step(self, step: int, left_out: AbstractSet[int] = frozenset()) -> StepBatch:
        """Share of this data rank in step `step` (counted from 0); the global samples `left_out` are not read.

        Raises DamagedBatch, unless damaged samples are quarantined. May be called from several threads.
        """
        with self._reading:
            return self._step(step, left_out)

    def _step(self, step: int, left_out: AbstractSet[int]) -> StepBatch:
        share = self.global_batch // self.data_size
        positions = range(self.data_rank * share, (self.data_rank + 1) * share)
        if self.prefetch is not None:
            ahead = range(step, step + 1 + max(2, -(-_SAMPLES_AHEAD // share)))
            self.prefetch(soon * self.global_batch + j for soon in ahead for j in positions)
        prepared = [self._sample(step * self.global_batch + j, left_out) for j in positions]
        samples = [sample for sample, _ in prepared]
        low = high = 0
        for j, sample in zip(positions, samples, strict=True):
            words = sample.digest(j)
            low, high = (low + words[0]) % _WORD, (high + words[1]) % _WORD
        cut = range(0, share, self.micro_batch)
        micro_batches = tuple(
            collate(samples[k : k + self.micro_batch], self.context_rank, self.context_size) for k in cut
        )
        damage = ((step * self.global_batch + j, why) for j, (_, why) in zip(positions, prepared, strict=True) if why)
        return StepBatch(micro_batches, sum(s.length for s in samples), (low, high), tuple(damage))

    def _sample(self, index: int, left_out: AbstractSet[int]) -> tuple[Sample, str]:
        """The sample, and the damage for which it holds nothing."""
        damage = "left out"
        if index not in left_out:
            try:
                return self.objective.prepare(self.reader.tokens(index), index), ""
            except DamagedBatch as error:
                if not self.quarantine:
                    raise
                damage = str(error)
        return self.objective.prepare(np.empty(0, dtype=np.int64), index), damage


def collate(samples: Sequence[Sample], context_rank: int = 0, context_size: int = 1) -> MicroBatch:
    """Stack samples; rows index the flattened [S, B] activations. A context rank gets its part of the sequence."""
    batch, length = len(samples), len(samples[0].inputs)
    part = length // context_size
    first = context_rank * part
    mine = [(s.positions >= first) & (s.positions < first + part) for s in samples]
    rows = [(s.positions[m] - first) * batch + b for b, (s, m) in enumerate(zip(samples, mine, strict=True))]
    levels = [np.full(m.sum(), s.level_bin, dtype=np.int64) for s, m in zip(samples, mine, strict=True)]
    lengths = np.array([max(1, s.length) for s in samples])  # to see nothing has no softmax
    documents = [s.documents for s in samples if s.documents is not None]
    return MicroBatch(
        inputs_BS=torch.from_numpy(np.stack([s.inputs[first : first + part] for s in samples])),
        rows_R=torch.from_numpy(np.concatenate(rows)),
        targets_R=torch.from_numpy(np.concatenate([s.targets[m] for s, m in zip(samples, mine, strict=True)])),
        weights_R=torch.from_numpy(np.concatenate([s.weights[m] for s, m in zip(samples, mine, strict=True)])),
        levels_R=torch.from_numpy(np.concatenate(levels)),
        lengths_B=torch.from_numpy(lengths) if (lengths < length).any() and not documents else None,
        documents_BS=torch.from_numpy(np.stack(documents)) if documents else None,
    )
