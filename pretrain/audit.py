"""What a run has read, proved from its metrics and its data plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.dataset import SampleReader
from parallel.checkpoint.catalogue import newest_checkpoint
from parallel.checkpoint.manifest import CheckpointManifest
from pretrain.config import RunConfig
from pretrain.feed import Feed
from pretrain.run_directory import RunDirectory
from pretrain.session import build_objective
from pretrain.tracking.spool import iterate_metrics
from runtime.errors import ProofFailed, UserError
from runtime.progress import ProgressBar
from runtime.settings import read_yaml

_SAMPLES_AT_A_TIME = 1 << 16


@dataclass(frozen=True)
class SourceAccount:
    """What a source has given: samples, of so many windows an epoch. `complete_epochs`: those with every window given
    once. `quarantined`: samples that were left out because their batch is damaged."""

    path: str
    samples: int
    windows: int
    epochs: float
    complete_epochs: int
    quarantined: int


@dataclass(frozen=True)
class Audit:
    """The account of a run. `steps_read` of its `steps_logged` logged batch digests were computed again.

    `segments`: `{from_sample, to_sample, weights, samples}`. `quarantined`: `{sample, source, epoch, window}`.
    `contradiction`: the first thing that is not as the plan says, or None.
    """

    run: str
    steps: int
    samples: int
    steps_logged: int
    steps_read: int
    sources: list[SourceAccount]
    segments: list[dict[str, Any]]
    quarantined: list[dict[str, Any]]
    contradiction: str | None

    def require_proof(self) -> None:
        """Raise ProofFailed naming the first contradiction."""
        if self.contradiction is not None:
            raise ProofFailed(f"{self.run}: {self.contradiction}")


@dataclass(frozen=True)
class _Line:
    step: int
    tokens: int
    digest: str
    left_out: frozenset[int]


def audit_run(directory: RunDirectory, steps_read: int = 256, show_progress: bool = True) -> Audit:
    """Account for every sample of a run up to its last logged step.

    Computes the batch digests of at most `steps_read` logged steps again, evenly chosen, from the data itself; walks
    the plan over all samples. Memory: a byte for each window of an epoch under way. Raises UserError if the run or its
    data cannot be read.
    """
    config = RunConfig.parse(read_yaml(directory.config), str(directory.config))
    train = config.train
    reader = SampleReader(config.data, train.sequence_length, train.seed, global_batch=train.global_batch)
    lines = [_line(directory, entry) for _, entry in iterate_metrics(directory.metrics)]
    if not lines:
        raise UserError(f"{directory.metrics} has no step yet: audit the run once it has logged one")
    steps = lines[-1].step
    samples = steps * train.global_batch
    left_out = frozenset[int]().union(*(line.left_out for line in lines))
    chosen = sorted({*np.linspace(0, len(lines) - 1, min(steps_read, len(lines))).round().astype(int).tolist()})
    walk = _Walk(reader, samples)
    with ProgressBar("audit", len(chosen) + walk.parts, show_progress) as bar:
        contradiction = (
            _wrong_count(lines, config, samples, left_out)
            or _other_data(directory, reader, config)
            or _wrong_digest([lines[n] for n in chosen], config, reader, left_out, bar)
            or walk.contradiction(bar)
        )
    found = [_place(reader, sample) for sample in sorted(left_out) if sample < samples]
    lost = {name: sum(place["source"] == name for place in found) for name in reader.names}
    return Audit(
        run=str(directory.root),
        steps=steps,
        samples=samples,
        steps_logged=len(lines),
        steps_read=len(chosen),
        sources=[walk.account(source, lost[name]) for source, name in enumerate(reader.names)],
        segments=_segments(reader, samples),
        quarantined=found,
        contradiction=contradiction,
    )


def _line(directory: RunDirectory, entry: dict[str, Any]) -> _Line:
    step = entry["step"]
    try:
        left_out = frozenset(
            map(int, str(entry.get("data/quarantined", "")).split(",") if entry.get("data/quarantined") else ())
        )
        return _Line(step, int(entry["tokens"]), str(entry["data/batch_digest"]), left_out)
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{directory.metrics}: the line of step {step} lacks tokens, data/batch_digest or whole data/quarantined: "
            "restore it"
        ) from None


def _wrong_count(lines: list[_Line], config: RunConfig, samples: int, left_out: frozenset[int]) -> str | None:
    for line in lines:
        expected = line.step * config.train.tokens_per_step
        if line.tokens != expected:
            return f"step {line.step} is logged with {line.tokens} tokens, the plan gives {expected}"
    beyond = [sample for sample in left_out if not 0 <= sample < samples]
    return f"sample {min(beyond)} is said to be left out, and was never reached" if beyond else None


def _other_data(directory: RunDirectory, reader: SampleReader, config: RunConfig) -> str | None:
    newest = newest_checkpoint(directory.checkpoints)
    if newest is None:
        return None
    manifest = CheckpointManifest.read(newest)
    if manifest.identity.get("data") == reader.digest_before(manifest.step * config.train.global_batch):
        return None
    return f"{newest.name} was trained on other data or weights than {directory.config.name} says"


def _wrong_digest(
    lines: list[_Line], config: RunConfig, reader: SampleReader, left_out: frozenset[int], bar: ProgressBar
) -> str | None:
    """Compare batch digests; samples that the run left out are left out again, and not read."""
    data = config.data.model_copy(update={"on_corrupt": "quarantine"})
    objective = build_objective(config.model_copy(update={"data": data}), reader.manifests[0].tokenizer)
    feed = Feed(reader, objective, config.train.global_batch, config.train.global_batch, 0, 1)
    for line in lines:
        low, high = feed.step(line.step - 1, left_out).digest
        if line.digest != f"{high:016x}{low:016x}":
            return f"step {line.step} is logged with batch digest {line.digest}, the plan gives {high:016x}{low:016x}"
        bar.advance(1)
    return None


class _Walk:
    """Goes through all samples and notes the windows that each source gave in each epoch."""

    def __init__(self, reader: SampleReader, samples: int) -> None:
        self._reader, self._samples = reader, samples
        self.parts = -(-samples // _SAMPLES_AT_A_TIME)
        count = len(reader.names)
        self._given = [0] * count
        self._complete = [0] * count
        self._open: list[dict[int, npt.NDArray[np.bool_]]] = [{} for _ in range(count)]
        self._epochs: list[dict[int, int]] = [{} for _ in range(count)]

    def contradiction(self, bar: ProgressBar) -> str | None:
        """The first window that comes twice in an epoch, or an account that does not add up."""
        for begin in range(0, self._samples, _SAMPLES_AT_A_TIME):
            end = min(begin + _SAMPLES_AT_A_TIME, self._samples)
            sources, epochs, windows = self._reader.places(begin, end)
            if len(sources) < end - begin:
                return f"the sources of the plan are used up before sample {end}"
            for source, epoch in sorted(set(zip(sources.tolist(), epochs.tolist(), strict=True))):
                chosen = np.flatnonzero((sources == source) & (epochs == epoch))
                twice = self._note(source, epoch, windows[chosen])
                if twice is not None:
                    sample = begin + int(chosen[twice])
                    name, window = self._reader.names[source], int(windows[chosen[twice]])
                    return f"sample {sample} is window {window} of {name} a second time in epoch {epoch}"
            bar.advance(1)
        return next(self._unfinished(), None)

    def _note(self, source: int, epoch: int, windows: npt.NDArray[np.int64]) -> int | None:
        """Place among `windows` of the first that the epoch has had, or None."""
        seen = self._open[source].get(epoch)
        if seen is None:
            if epoch in self._epochs[source]:
                return 0  # it was complete
            seen = self._open[source][epoch] = np.zeros(self._reader.windows_of(source), dtype=bool)
        _, first = np.unique(windows, return_index=True)
        again = seen[windows]
        again[np.setdiff1d(np.arange(len(windows)), first)] = True
        if again.any():
            return int(again.argmax())
        seen[windows] = True
        counts = self._epochs[source]
        counts[epoch] = counts.get(epoch, 0) + len(windows)
        self._given[source] += len(windows)
        if counts[epoch] == self._reader.windows[source]:
            self._complete[source] += 1
            del self._open[source][epoch]
        return None

    def _unfinished(self) -> Iterator[str]:
        """Epochs that have not as many windows as the plan had given: past ones lack none, but those that blocks at
        the end and at changes of weights passed over."""
        supplies = self._reader.plan.supplies(self._samples)
        for source, (name, supply) in enumerate(zip(self._reader.names, supplies, strict=True)):
            if self._given[source] != supply.given:
                yield f"{name} has given {self._given[source]} samples, its weights say {supply.given}"
            found, expected = self._epochs[source], supply.given_by_epoch(self._reader.windows[source])
            for epoch in sorted({*found, *expected}):
                if found.get(epoch, 0) != expected.get(epoch, 0):
                    counts = f"{found.get(epoch, 0)} windows, the plan gives {expected.get(epoch, 0)}"
                    yield f"epoch {epoch} of {name} has {counts}"

    def account(self, source: int, quarantined: int) -> SourceAccount:
        """What is known of a source after the walk."""
        windows = self._reader.windows[source]
        given = self._given[source]
        name = self._reader.names[source]
        return SourceAccount(name, given, windows, given / windows, self._complete[source], quarantined)


def _place(reader: SampleReader, sample: int) -> dict[str, Any]:
    source, epoch, window = reader.locate(sample)
    return {"sample": sample, "source": source, "epoch": epoch, "window": window}


def _segments(reader: SampleReader, samples: int) -> list[dict[str, Any]]:
    """The plan's phases as far as the run has come, with what each source gave in them."""
    found: list[dict[str, Any]] = []
    for phase in reader.plan.phases:
        if phase.start >= samples:
            break
        end = samples if phase.end is None else min(phase.end, samples)
        before, after = reader.plan.given(phase.start), reader.plan.given(end)
        names = [reader.names[source] for source in phase.sources]
        found.append(
            {
                "from_sample": phase.start,
                "to_sample": end,
                "weights": dict(zip(names, phase.weights, strict=True)),
                "samples": {reader.names[s]: after[s] - before[s] for s in phase.sources},
            }
        )
    return found
