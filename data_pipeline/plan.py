"""The data plan of a run: which source gives sample i, over changes of weights and sources that run dry."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from data_pipeline.mixture import Mixture
from data_pipeline.order import Indices, derive_key

_NONE: Indices = np.zeros(0, dtype=np.int64)


class Segment(NamedTuple):
    """From sample `start` on, sources (by number) have these weights, in this order."""

    start: int
    weights: Mapping[int, float]


class Supply(NamedTuple):
    """What is left of a source: ranks that a cut block passed over, ascending, and all ranks from `fresh` on."""

    passed_over: Indices
    fresh: int

    def ranks(self, numbers: Indices) -> Indices:
        """The ranks of the next samples `numbers` (0, 1, 2 ...) of the source."""
        old = len(self.passed_over)
        ranks = numbers + (self.fresh - old)
        if old:
            early = numbers < old
            ranks[early] = self.passed_over[numbers[early]]
        return ranks

    def given_by_epoch(self, windows: int) -> dict[int, int]:
        """Samples given so far of each epoch of `windows` ranks, those of which there are some."""
        passed_over = np.bincount(self.passed_over // windows, minlength=-(-self.fresh // windows)).tolist()
        counts = (min(windows, self.fresh - n * windows) - passed for n, passed in enumerate(passed_over))
        return {epoch: count for epoch, count in enumerate(counts) if count}

    def after(self, taken: int, skipped: Indices) -> "Supply":
        """What is left once the next `taken` samples were dealt, but those `skipped` among them not given."""
        kept = np.concatenate([self.ranks(skipped), self.passed_over[taken:]])
        return Supply(np.sort(kept), self.fresh + max(0, taken - len(self.passed_over)))

    @property
    def given(self) -> int:
        """Samples given so far."""
        return self.fresh - len(self.passed_over)


class Phase(NamedTuple):
    """Samples [start, end) from `sources` in a mixture. A source's cap may end it: `blocks` whole blocks, then one in
    which they give `last`. `supplies` is what all sources of the plan had left at `start`."""

    start: int
    end: int | None
    sources: Sequence[int]
    weights: Sequence[float]
    mixture: Mixture
    blocks: int | None
    last: Sequence[int]
    supplies: Sequence[Supply]

    def draw(self, begin: int, end: int) -> tuple[Indices, Indices]:
        """Source (its number in the plan) and rank of the phase's samples [begin, end), counted from its start."""
        parts = []
        while begin < end:
            block, first = divmod(begin, self.mixture.size)
            taken = min(end - begin, self.mixture.size - first)
            parts.append(self._dealt(block, first, first + taken))
            begin += taken
        positions, numbers = (np.concatenate(part) for part in zip(*parts, strict=True))
        ranks = np.empty_like(numbers)
        for position in set(positions.tolist()):
            chosen = positions == position
            ranks[chosen] = self.supplies[self.sources[position]].ranks(numbers[chosen])
        return np.array(self.sources, dtype=np.int64)[positions], ranks

    def _dealt(self, block: int, begin: int, end: int) -> tuple[Indices, Indices]:
        if block == self.blocks and len(self.sources) > 1:
            return self.mixture.deal(block, self.mixture.counts(block), self.last, begin, end)
        return self.mixture.block(block, begin, end)

    def left(self, samples: int) -> list[Supply]:
        """What all sources have left after the phase's first `samples` samples."""
        supplies = list(self.supplies)
        block, first = divmod(samples, self.mixture.size)
        before, dealt = self._counts(block), self._counts(block + 1) if first else self._counts(block)
        if len(self.sources) == 1:
            before = dealt = [samples]
        positions, numbers = self._dealt(block, 0, first) if first else (_NONE, _NONE)
        for position, source in enumerate(self.sources):
            used = numbers[positions == position]
            skipped = np.setdiff1d(np.arange(before[position], dealt[position]), used, assume_unique=True)
            supplies[source] = supplies[source].after(dealt[position], skipped)
        return supplies

    def _counts(self, blocks: int) -> list[int]:
        if self.blocks is None or blocks <= self.blocks:
            return self.mixture.counts(blocks)
        return [a + b for a, b in zip(self.mixture.counts(self.blocks), self.last, strict=True)]


class SamplePlan:
    """Source and rank of every sample: a pure function of (segments, caps, seed, index).

    A source's ranks count its samples over all segments, each rank given once. `caps` are the samples that each
    source may give in all (None: no limit). Once one has given them, the others of the segment go on with their
    weights. `end` is the first sample that no source is left for (None: there is none).

    What is kept: a `Phase` for each segment and each source that runs dry, with the ranks that the block at its
    border passed over, less than a block of each source.
    """

    def __init__(self, segments: Sequence[Segment], caps: Sequence[int | None], seed: int) -> None:
        assert segments[0].start == 0, "a plan begins with sample 0"
        self._caps, self._seed = caps, seed
        self.phases: list[Phase] = []
        self.end: int | None = None
        supplies = [Supply(_NONE, 0) for _ in caps]
        stops = [segment.start for segment in segments[1:]]
        for segment, stop in zip(segments, [*stops, None], strict=True):
            start = segment.start
            while start != stop:
                phase = self._phase(start, segment.weights, supplies)
                if phase is None:
                    self.end = start
                    break
                if stop is not None and (phase.end is None or phase.end > stop):
                    phase = phase._replace(end=stop)
                self.phases.append(phase)
                if phase.end is None:
                    break
                supplies, start = phase.left(phase.end - start), phase.end
            if self.end is not None:
                break
        self._starts = [phase.start for phase in self.phases]

    def _phase(self, start: int, weights: Mapping[int, float], supplies: Sequence[Supply]) -> Phase | None:
        """The phase from `start` on until a source runs dry, or None if all are."""
        left = {source: self._left(source, supplies) for source in weights}
        active = [source for source in weights if left[source] != 0]
        if not active:
            return None
        seed = self._seed if start == 0 else derive_key(self._seed, "from", start)
        used = [weights[source] for source in active]
        mixture = Mixture(used, seed)
        limits = [left[source] for source in active]
        blocks, last = _dry(mixture, limits)
        end = None if blocks is None else start + blocks * mixture.size + sum(last)
        return Phase(start, end, active, used, mixture, blocks, last, supplies)

    def _left(self, source: int, supplies: Sequence[Supply]) -> int | None:
        cap = self._caps[source]
        return None if cap is None else cap - supplies[source].given

    def draw(self, begin: int, end: int) -> tuple[Indices, Indices]:
        """Source and rank of samples [begin, end), each of shape [end - begin], less where the plan ends before."""
        end = end if self.end is None else min(end, self.end)
        parts = [(_NONE, _NONE)]
        while begin < end:
            phase = self.phases[bisect_right(self._starts, begin) - 1]
            until = end if phase.end is None else min(end, phase.end)
            parts.append(phase.draw(begin - phase.start, until - phase.start))
            begin = until
        sources, ranks = (np.concatenate(part) for part in zip(*parts, strict=True))
        return sources, ranks

    def supplies(self, samples: int) -> list[Supply]:
        """What each source has left after the first `samples` samples; `samples` not beyond `end`."""
        phase = self.phases[bisect_right(self._starts, samples) - 1]
        return phase.left(samples - phase.start)

    def given(self, samples: int) -> list[int]:
        """How many of the first `samples` samples each source gives; `samples` not beyond `end`."""
        return [supply.given for supply in self.supplies(samples)]

    def identity(self, samples: int, names: Sequence[str]) -> list[Any]:
        """JSON-ready: all that decides the first `samples` samples (of none: the first one), sources by `names`."""
        described: list[Any] = []
        for phase in self.phases:
            if phase.start >= max(samples, 1):
                break
            described += [["from", phase.start]] if phase.start else []
            described += [[names[s], weight] for s, weight in zip(phase.sources, phase.weights, strict=True)]
            if phase.blocks is not None and phase.last and len(phase.sources) > 1:
                short = phase.start + phase.blocks * phase.mixture.size
                met = short < (samples if phase.end is None else min(samples, phase.end))
                described += [["last", phase.blocks, list(phase.last)]] if met else []
        return described


def _dry(mixture: Mixture, limits: Sequence[int | None]) -> tuple[int | None, list[int]]:
    """After how many whole blocks a source runs dry, and what each gives in the block after them (nothing: []).

    The source that runs dry first gives all it has left; the others as much of their share of a whole block, within 1.
    """
    capped = [(source, limit) for source, limit in enumerate(limits) if limit is not None]
    if not capped:
        return None, []
    if len(limits) == 1:
        blocks, rest = divmod(capped[0][1], mixture.size)
        return blocks, [rest] if rest else []
    blocks = min(_whole_blocks(mixture, source, limit) for source, limit in capped)
    before, after = mixture.counts(blocks), mixture.counts(blocks + 1)
    if any(before[source] == limit for source, limit in capped):
        return blocks, []
    full = [b - a for a, b in zip(before, after, strict=True)]
    left = [None if limit is None else limit - b for limit, b in zip(limits, before, strict=True)]
    share = min(Fraction(n, g) for n, g in zip(left, full, strict=True) if n is not None and g)
    exact = [share * g for g in full]
    given = [int(e) for e in exact]
    missing = int(share * mixture.size) - sum(given)
    for source in sorted(range(len(given)), key=lambda s: (given[s] - exact[s], s)):
        room = left[source]
        if missing and exact[source] > given[source] and (room is None or given[source] < room):
            given[source] += 1
            missing -= 1
    return blocks, given


def _whole_blocks(mixture: Mixture, source: int, limit: int) -> int:
    """The most whole blocks in which `source` gives no more than `limit` samples."""
    low, high = 0, int((limit + 2) / (mixture.weights[source] * mixture.size)) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if mixture.counts(middle)[source] <= limit else (low, middle)
    return low
