"""The reversal study: trained on `A，B`, does a model know what comes before B? Both families at equal FLOPs.

An autoregressive model learns p(B | A) only; a masked one learns to fill any gap, so p(A | B) too (LLaDA, 2502.09992,
section 3.3). All goes the ordinary way: documents, shards, recipe, runs, checkpoints, samplers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data_pipeline.sources.config import DebianPackage, SourceConfig, TextFiles
from launch.pool import Job, run_jobs, why_failed
from launch.recipe import load_recipe
from launch.studies.couplets import DIRECTIONS, couplets_of, documents, halves
from launch.studies.scores import Score
from pretrain.config import RunConfig
from pretrain.flops import training_flops_per_token
from runtime.errors import LacunaError, Requeue, UserError
from runtime.files import read_json, write_atomic, write_json
from runtime.progress import ProgressBar
from runtime.signals import StopRequest

RECIPE = Path(__file__).with_name("reversal.yaml")
FAMILIES = ("masked", "autoregressive")
CHARACTERS = 5
_POEMS = DebianPackage(
    kind="debian", name="tang-poems", licence="public-domain", package="fortunes-zh", split="fortune",
    include=["usr/share/games/fortunes/tang300"],
)  # fmt: skip
_MODULE = "launch.studies.reversal_run"
_BYTES = 1 << 26


@dataclass(frozen=True)
class StudyRun:
    """A run of the study: its configuration, and after which steps it is asked."""

    family: str
    seed: int
    config: RunConfig
    asked_after: tuple[int, ...]

    @property
    def name(self) -> str:
        """Its directory's name."""
        return f"{self.family}-{self.seed}"

    @property
    def flops_per_step(self) -> float:
        """Computed FLOPs of a step."""
        return step_flops(self.config)


@dataclass(frozen=True)
class StudyDirectory:
    """Where a study keeps its data, its questions and its runs."""

    root: Path

    @property
    def data(self) -> Path:
        """The dataset."""
        return self.root / "data"

    @property
    def questions(self) -> Path:
        """Questions by couplets (seen, unseen) and direction, each a prompt and an answer."""
        return self.root / "questions.json"

    def run(self, run: StudyRun) -> Path:
        """The run directory of a run."""
        return self.root / "runs" / run.name

    def scores(self, run: StudyRun) -> Path:
        """What a run has answered so far."""
        return self.run(run) / "scores.json"


def prepare_data(directory: StudyDirectory, poems: Path | None, show_progress: bool = True) -> None:
    """Parse the poems (a fortune file, or those of Debian's `fortunes-zh`), write the questions, build the dataset.

    What is there is kept. Raises UserError if the poems cannot be had or hold no couplets.
    """
    from data_pipeline.build import Means, build_dataset
    from data_pipeline.config import BuildConfig

    if directory.data.exists():
        return
    source = _POEMS if poems is None else TextFiles(
        kind="text", name="poems", licence="unknown", glob=str(poems), split="fortune"
    )  # fmt: skip
    couplets = couplets_of(_read(source), CHARACTERS)
    if len(couplets) < 2:
        raise UserError(f"the poems hold {len(couplets)} couplets of {CHARACTERS} characters a line: give others")
    seen, unseen = halves(couplets)
    text = directory.root / "couplets.txt"
    write_atomic(text, "".join(line + "\n" for line in documents(seen, unseen)))
    groups = {"unseen": unseen, "seen": seen}
    asked = {name: {d: [c.question(d) for c in group] for d in DIRECTIONS} for name, group in groups.items()}
    write_json(directory.questions, asked)
    build = {
        "sources": [
            {"kind": "text", "name": "couplets", "licence": source.licence, "glob": str(text), "split": "line"}
        ],
        "tokenizer": {"kind": "train", "model": "char", "vocabulary": 1 << 16, "coverage": 1.0},
    }
    write_atomic(directory.root / "build.yaml", yaml.safe_dump(build, sort_keys=False))
    config = BuildConfig.parse(build, str(directory.root / "build.yaml"))
    build_dataset(config, directory.data, means=Means(show_progress=show_progress))


def _read(source: SourceConfig) -> list[str]:
    from data_pipeline.sources.debian import default_cache
    from data_pipeline.sources.pieces import cut, open_source, read_piece

    with tempfile.TemporaryDirectory() as workspace:
        opened = open_source(source, Path(workspace), default_cache())
        pieces = cut(source, opened.files, _BYTES)
        found = (document.text for piece in pieces for document in read_piece(source, piece, _BYTES))
        return [text for text in found if text is not None]


def step_flops(config: RunConfig) -> float:
    """Computed FLOPs of a training step: the head on the rows that count, causal attention below the diagonal."""
    objective, length = config.objective, config.train.sequence_length
    counted = training_flops_per_token(config.model, length, objective.causal, objective.head_rows)
    return counted.total * config.train.tokens_per_step


def study_runs(
    data: Path, vocabulary: int | None, seeds: int, points: int, overrides: Sequence[str] = ()
) -> list[StudyRun]:
    """Both families for each seed, a seed after the other; asked `points` times, after equal shares of the FLOPs.

    The recipe's steps are the masked model's; the baseline takes as many as cost the same. `vocabulary`: that of the
    data, if it is there yet. Raises UserError as recipes do, or if there are fewer steps than points.
    """
    runs = []
    for seed in range(1, seeds + 1):
        masked = _config(
            data, vocabulary, seed, points, [*overrides, "objective.kind=masked", "objective.random_length=0"]
        )
        causal = _config(data, vocabulary, seed, points, [*overrides, "objective.kind=autoregressive"])
        steps = round(masked.train.steps * step_flops(masked) / step_flops(causal))
        train = causal.train.model_copy(update={"steps": steps})
        for config in (masked, causal.model_copy(update={"train": train})):
            total = config.train.steps
            if total < points:
                raise UserError(f"train.steps={total} is less than --points {points}: ask less often or train longer")
            asked = tuple(round(total * k / points) for k in range(1, points + 1))
            runs.append(StudyRun(config.objective.kind, seed, config, asked))
    return runs


def _config(data: Path, vocabulary: int | None, seed: int, points: int, overrides: list[str]) -> RunConfig:
    fixed = [f"data.path={data.absolute()}", f"train.seed={seed}"]
    if vocabulary is not None:
        fixed.append(f"model.vocabulary={vocabulary}")
    config = load_recipe(str(RECIPE), [*overrides, *fixed])
    every = -(-config.train.steps // points)
    return config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"every": every})})


def run_study(directory: StudyDirectory, runs: Sequence[StudyRun], processes: int, show_progress: bool = True) -> None:
    """Train and ask every run that is not done, `processes` at a time. Killed at any moment, it continues where it was.

    Raises UserError if a run was begun with other settings, Requeue if it was stopped, LacunaError if runs failed.
    """
    failures: list[str] = []
    waiting = [run for run in runs if len(read_scores(directory, run)) < len(run.asked_after)]
    points = sum(len(run.asked_after) for run in runs)
    with StopRequest() as stop, ProgressBar("points", points, visible=show_progress) as bar:

        def look() -> None:
            if fresh := sum(_answered(directory, run) for run in runs) - bar.done:
                bar.advance(fresh)

        for job, code in run_jobs(_jobs(directory, waiting), processes, stop, look):
            if code:
                failures.append(f"{job.name}: {why_failed(job, code)}")
    if stop:
        raise Requeue("stopped; the same command continues")
    if failures:
        raise LacunaError(f"{len(failures)} of {len(runs)} runs failed, the first was {failures[0]}")


def _jobs(directory: StudyDirectory, runs: Sequence[StudyRun]) -> Iterator[Job]:
    for run in runs:
        root = directory.run(run)
        root.mkdir(parents=True, exist_ok=True)
        order = {
            "config": run.config.model_dump(mode="json"),
            "questions": str(directory.questions.absolute()),
            "asked_after": run.asked_after,
        }
        write_json(root / "order.json", order)
        yield Job(run.name, _MODULE, root, root / "run.log")


def _answered(directory: StudyDirectory, run: StudyRun) -> int:
    path = directory.scores(run)
    return len(read_json(path)) if path.exists() else 0


def read_scores(directory: StudyDirectory, run: StudyRun) -> list[dict[str, Any]]:
    """The answers of a run so far, one entry a point. Raises UserError if it was begun with other settings."""
    path = directory.scores(run)
    order = directory.run(run) / "order.json"
    if order.exists():
        begun = read_json(order)
        same = RunConfig.parse(begun["config"], str(order)) == run.config
        if not same or tuple(begun["asked_after"]) != run.asked_after:
            raise UserError(f"{order.parent} was begun with other settings: use another --out, or remove it")
    found: list[dict[str, Any]] = read_json(path) if path.exists() else []
    return found


def scores_of(directory: StudyDirectory, runs: Sequence[StudyRun]) -> list[Score]:
    """All that was answered so far, run by run."""
    return [
        Score(run.family, run.seed, entry["step"], entry["step"] * run.flops_per_step, couplets, direction, *counts)
        for run in runs
        for entry in read_scores(directory, run)
        for couplets, by_direction in entry["right"].items()
        for direction, counts in by_direction.items()
    ]
