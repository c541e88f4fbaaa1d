"""Runs that are killed at a chosen point, resumed, and compared with the run that was not."""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from parallel.checkpoint.catalogue import list_checkpoints
from parallel.checkpoint.manifest import CheckpointManifest
from pretrain.config import CheckpointConfig
from pretrain.tracking.spool import read_metrics
from tests.support.command_line import ENVIRONMENT, LACUNA
from tests.support.small_run import build_dataset, write_corpus, write_recipe

STEPS, EVERY, KEEP = 12, 3, 2
FAULTS = Path(__file__).parent / "faults"
SECONDS = 300
RUN_MARK = "LACUNA_PROOF_RUN"
"""Names a variable with the run's path: all processes of a run have it, whatever their arguments are."""
_SAVING, _STEPPING = "checkpoints", "metrics.jsonl"
_PLACES = {
    "staging": ("mkdir staging",),
    "shard": ("write shard", "open shard"),
    "fsync": ("fsync shard",),
    "manifest": ("open manifest", "write manifest", "fsync manifest", "replace manifest"),
    "rename": ("fsync staging", "rename staging", "fsync root"),
    "hint": ("write hint", "replace hint"),
    "retention": ("rename old", "unlink old", "rmdir old"),
}


@dataclass(frozen=True)
class Setting:
    """How a run is launched."""

    world: int
    background: bool

    @property
    def name(self) -> str:
        """For directories and tables."""
        return f"{self.world} {'rank' if self.world == 1 else 'ranks'}, {'async' if self.background else 'sync'}"


@dataclass(frozen=True)
class Point:
    """Where a run is killed: at call number `call` of `rank` below `prefix`, or `delay` seconds after it."""

    number: int
    place: str
    setting: Setting
    rank: int
    prefix: str
    call: int
    moment: str
    delay: float | None
    victims: str


@dataclass(frozen=True)
class Reference:
    """The uninterrupted run: its deterministic metrics by step, its last manifest, and what each rank wrote."""

    lines: dict[int, dict[str, Any]]
    manifest: dict[str, Any]
    calls: dict[int, list[tuple[str, str]]]
    step_seconds: float


def prepare(work: Path) -> Path:
    """Dataset and recipe below `work`, made once. Returns the recipe."""
    recipe = work / "tiny.yaml"
    if not recipe.exists():
        corpus = work / "corpus"
        corpus.mkdir(parents=True, exist_ok=True)
        write_recipe(work, build_dataset(write_corpus(corpus), work / "data"))
    return recipe


def reference(work: Path, setting: Setting) -> Reference:
    """Train without a kill, once, and note every call that writes."""
    run, notes = work / f"reference {setting.name}", work / f"calls {setting.name}"
    if not (notes / "done").exists():
        notes.mkdir(exist_ok=True)
        plan = {"world": setting.world, "rank": None, "root": str(run), "prefix": "", "record": str(notes / "rank")}
        process = launch(work, run, setting, plan)
        _, said = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, said
        (notes / "done").touch()
    calls = {
        rank: [(name, path) for _, name, path in map(json.loads, (notes / f"rank-{rank}").read_text().splitlines())]
        for rank in range(setting.world)
    }
    seconds = statistics.median(line["perf/step_seconds"] for line in read_metrics(run / "metrics.jsonl"))
    return Reference(curves(run), final_manifest(run), calls, seconds)


def launch(work: Path, run: Path, setting: Setting, plan: dict[str, Any] | None) -> subprocess.Popen[str]:
    """Start `lacuna train`, with faults as planned."""
    options = ["--run", str(run), "--processes", str(setting.world)]
    changes = [f"train.steps={STEPS}", f"checkpoint.every={EVERY}", f"checkpoint.keep={KEEP}"]
    changes += ["checkpoint.async=true"] if setting.background else []
    environment = ENVIRONMENT | {RUN_MARK: str(run)}
    environment["PYTHONPATH"] = os.pathsep.join([str(FAULTS), *filter(None, [environment.get("PYTHONPATH")])])
    if plan is not None:
        environment["LACUNA_FAULTS"] = json.dumps(plan)
    return subprocess.Popen(
        [*LACUNA, "train", str(prepare(work)), *options, *changes],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def choose_points(count: int, seed: int, references: dict[Setting, Reference]) -> list[Point]:
    """`count` points, half of them in steps and half inside saves, spread evenly over settings and places."""
    settings = list(references)
    points = []
    for number in range(count):
        source = random.Random(f"{seed} {number}")
        setting = settings[number // 2 % len(settings)]
        found = references[setting]
        points.append((_in_save if number % 2 else _in_step)(number, setting, found, source))
    return points


def _in_step(number: int, setting: Setting, found: Reference, source: random.Random) -> Point:
    """Some time after the line of a step was written; rank 0 keeps the time."""
    writes = [name for name, path in found.calls[0] if path == _STEPPING]
    lines = [call for call, name in enumerate(writes) if name == "write"]
    call, delay = source.choice(lines[:-1]), source.random() * found.step_seconds
    victims = source.choice([f"rank {source.randrange(setting.world)}", "ranks", "launcher"])
    return Point(number, "step", setting, 0, _STEPPING, call, "after", delay, victims)


def _in_save(number: int, setting: Setting, found: Reference, source: random.Random) -> Point:
    places = list(_PLACES)
    place = places[number // 2 % len(places)]
    rank = source.randrange(setting.world) if place in ("shard", "fsync") else 0
    saving = [(name, path) for name, path in found.calls[rank] if path.startswith(_SAVING)]
    numbered = [(i, f"{name} {kind_of(path)}") for i, (name, path) in enumerate(saving)]
    call, what = source.choice([(i, what) for i, what in numbered if what in _PLACES[place]])
    moment = source.choice(["before", "torn", "after"] if what.startswith("write") else ["before", "after"])
    victims = source.choice([f"rank {rank}", "ranks", "launcher"])
    return Point(number, place, setting, rank, _SAVING, call, moment, None, victims)


def kind_of(path: str) -> str:
    """What a path below a run is for."""
    parts = path.split("/")
    if parts[-1].endswith(".safetensors") and "removed" not in path:
        return "shard"
    if "MANIFEST" in parts[-1] and "removed" not in path:
        return "manifest"
    if "LATEST" in parts[-1]:
        return "hint"
    if path.endswith(".staging"):
        return "staging"
    return "root" if len(parts) == 1 else "old"


def curves(run: Path) -> dict[int, dict[str, Any]]:
    """What must not depend on kills, by step: all but times, speeds, and what is said of checkpoints and attempts."""
    varying = ("perf/", "data/wait", "run/", "checkpoint/", "time", "goodput/", "faults/", "health/", "system/")
    return {
        line["step"]: {key: value for key, value in line.items() if not key.startswith(varying)}
        for line in read_metrics(run / "metrics.jsonl")
    }


def final_manifest(run: Path) -> dict[str, Any]:
    """The manifest of the last checkpoint without its provenance: its digests are of every bit of state."""
    manifest = CheckpointManifest.read(run / f"checkpoints/step-{STEPS:08d}")
    return manifest.model_dump(mode="json", exclude={"provenance"})


def run_point(work: Path, point: Point, found: Reference) -> dict[str, Any]:
    """Kill a run at `point`, resume it and compare. Raises AssertionError if anything is not as promised."""
    run = work / f"point {point.number:02d}"
    shared = set(os.listdir("/dev/shm"))
    plan = {key: value for key, value in asdict(point).items() if key not in ("number", "place", "setting")}
    process = launch(work, run, point.setting, {**plan, "world": point.setting.world, "root": str(run)})
    _, said = process.communicate(timeout=SECONDS)
    assert process.returncode != 0, f"{point} was never reached: {said}"
    killed_at = max(curves(run), default=0) if (run / "metrics.jsonl").exists() else 0
    nothing_left(run, shared)
    entries = list_checkpoints(run / "checkpoints")
    assert all(entry.valid for entry in entries), f"{point} left a damaged checkpoint"
    resumed_from = entries[-1].step if entries else 0
    process = launch(work, run, point.setting, None)
    _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, f"{point}: {said}"
    lines = curves(run)
    assert lines == found.lines, f"{point}: metrics differ at {[s for s in lines if lines[s] != found.lines.get(s)]}"
    assert final_manifest(run) == found.manifest, f"{point}: weights or moments differ"
    lost = killed_at - resumed_from
    assert lost <= EVERY, f"{point}: {lost} steps were lost"
    nothing_left(run, shared)
    config = CheckpointConfig.parse({"every": EVERY, "async": point.setting.background}, "the proof")
    saved = [step for step in range(1, STEPS + 1) if config.is_due(step)]
    # killed after the last save: there is no next one to remove an old checkpoint
    kept = {"LATEST", *(f"step-{step:08d}" for step in saved[-KEEP - (resumed_from == STEPS) :])}
    left = set(os.listdir(run / "checkpoints"))
    assert left <= kept, f"{point} left {left - kept}"
    assert [name for name in os.listdir(run) if name.startswith(".")] == []
    return {"killed_at": killed_at, "resumed_from": resumed_from, "lost": lost}


def nothing_left(run: Path, shared: set[str]) -> None:
    """No process of the run lives on, and no shared memory that nobody uses is there since."""
    end = time.monotonic() + 30
    while left := processes_of(run):
        assert time.monotonic() < end, f"processes {left} of {run} live on"
        time.sleep(0.05)
    stale = [name for name in set(os.listdir("/dev/shm")) - shared if not _in_use(f"/dev/shm/{name}")]
    assert not stale, f"/dev/shm holds {stale}"


def processes_of(run: Path) -> list[tuple[int, str]]:
    """(number, name) of processes that have the run as an argument, or the mark in the environment they began with."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ", "name"]):
        facts = process.info  # a value is None where this user may not look, or the process is a zombie
        if str(run) in (facts["cmdline"] or []) or (facts["environ"] or {}).get(RUN_MARK) == str(run):
            found.append((process.pid, facts["name"]))
    return found


def _in_use(path: str) -> bool:
    """Whether a process has the file open or mapped (other programs of this machine make files there, too)."""
    if not os.path.exists(path):
        return True
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if path in (process / "maps").read_text():
                return True
            if any(os.readlink(handle) == path for handle in (process / "fd").iterdir()):
                return True
        except OSError:
            continue
    return False


def places_seen(points: Sequence[Point]) -> dict[str, int]:
    """How many points there are by place."""
    return {place: sum(point.place == place for point in points) for place in ("step", *_PLACES)}
