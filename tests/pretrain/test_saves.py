"""Checkpoints of a running attempt: in the background as in the foreground, and how many failures a run bears."""

import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from parallel.checkpoint import background, foreground
from parallel.checkpoint.catalogue import list_checkpoints
from parallel.checkpoint.store import LATEST, Progress, SaveError
from parallel.mesh import Mesh
from pretrain.build import build_engine
from pretrain.config import CheckpointConfig, RunConfig
from pretrain.guards import Guard, GuardConfig
from pretrain.loop import Hooks, train
from pretrain.saves import Saves
from runtime.deadline import Deadline, StopOrDeadline
from runtime.errors import LacunaError
from runtime.signals import StopRequest
from tests.support.feeds import whole_feed
from tests.support.simulated import single_process
from tests.support.tiny import tiny_config

pytestmark = pytest.mark.filterwarnings("ignore")  # the engines give many
BACKGROUND = pytest.mark.parametrize("in_background", [False, True])


def describe(step: int, guard: Guard) -> Progress:
    return Progress(step, step - guard.refused, step * 4, step * 64, {}, {}, guard.state())


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with single_process(tiny_config()) as alone:
        yield alone


def saving(**settings: Any) -> CheckpointConfig:
    return CheckpointConfig.parse({"keep": 100, **settings}, "test")


def saving_each(steps: int, in_background: bool, **settings: Any) -> CheckpointConfig:
    """A save after each `steps`, which in the background is half an interval."""
    return saving(every=steps * (1 + in_background), **{"async": in_background}, **settings)


def run(mesh: Mesh, root: Path, steps: int, settings: CheckpointConfig, stop_after: int | None = None) -> Any:
    """Train from the beginning. Returns the lines of metrics; an error is raised."""
    config = tiny_config().model_copy(update={"checkpoint": settings})
    engine, guard, lines, stop = build_engine(config, mesh), Guard(config.guard), {}, StopRequest()
    saves = Saves(settings, root, engine, describe, saved=0)

    def report(step: int, values: dict[str, Any]) -> None:
        lines[step] = values
        if step == stop_after:
            stop._note(15, None)  # as the signal handler does

    try:
        train(config, engine, whole_feed(config), range(steps), guard, Hooks(report, saves), stop)
    finally:
        saves.close()
        run.lines = lines  # type: ignore[attr-defined]
    return lines


def files_below(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def names(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir())


def test_a_background_run_publishes_the_same_bytes(mesh: Mesh, tmp_path: Path) -> None:
    """Although its training goes on while it writes; and it saves halfway through each interval, too."""
    before = set(threading.enumerate())
    waits = run(mesh, tmp_path / "waits", 7, saving(every=2))
    goes_on = run(mesh, tmp_path / "goes on", 7, saving(every=2, **{"async": True}))
    assert [n for n in names(tmp_path / "waits") if n != LATEST] == [f"step-{n:08d}" for n in (2, 4, 6, 7)]
    assert [n for n in names(tmp_path / "goes on") if n != LATEST] == [f"step-{n:08d}" for n in range(1, 8)]
    waited, went_on = files_below(tmp_path / "waits"), files_below(tmp_path / "goes on")
    assert waited == {path: content for path, content in went_on.items() if path in waited}
    assert [line["train/loss"] for line in waits.values()] == [line["train/loss"] for line in goes_on.values()]
    assert {t for t in threading.enumerate() if t.name.startswith("lacuna-checkpoint")} <= before


@BACKGROUND
def test_metrics_of_a_save(mesh: Mesh, tmp_path: Path, in_background: bool) -> None:
    lines = run(mesh, tmp_path, 7, saving_each(2, in_background))
    news = {step: {k: v for k, v in line.items() if k.startswith("checkpoint/")} for step, line in lines.items()}
    assert news[1] == news[2] == {}
    assert news[3]["checkpoint/blocked_seconds"] > 0
    told = [line for line in news.values() if "checkpoint/bytes" in line]
    assert len(told) >= 2
    size = sum(p.stat().st_size for p in (tmp_path / "step-00000002").glob("shard-*"))
    for line in told:
        assert line["checkpoint/bytes"] == size
        assert line["checkpoint/write_bytes_per_second"] > 0
    assert any("checkpoint/wait_seconds" in line for line in news.values()) == in_background
    assert not any("checkpoint/failures" in line for line in news.values())


@BACKGROUND
def test_a_stop_waits_for_the_writer(mesh: Mesh, tmp_path: Path, in_background: bool) -> None:
    lines = run(mesh, tmp_path, 50, saving_each(2, in_background), stop_after=3)
    assert list(lines) == [1, 2, 3]
    assert names(tmp_path) == [LATEST, "step-00000002", "step-00000003"]


@BACKGROUND
def test_a_time_limit_stops_and_saves_without_any_signal(mesh: Mesh, tmp_path: Path, in_background: bool) -> None:
    """On a clock by which each step takes 1000 s: after 8, another one and the reserve would be past the limit."""
    now, steps = 1000.0, []
    deadline = Deadline(10_000.0, 1500.0, lambda: now)
    settings = saving_each(5, in_background)
    config = tiny_config().model_copy(update={"checkpoint": settings})
    engine, guard = build_engine(config, mesh), Guard(config.guard)
    saves = Saves(settings, tmp_path, engine, describe, saved=0, note_save=deadline.note_save)

    def report(step: int, values: dict[str, Any]) -> None:
        nonlocal now
        steps.append(step)
        now += 1000

    stop = StopOrDeadline(StopRequest(), deadline)
    try:
        ended = train(config, engine, whole_feed(config), range(20), guard, Hooks(report, saves), stop)
    finally:
        saves.close()
    assert ended == (8, True)
    assert steps == list(range(1, 9))
    assert names(tmp_path) == [LATEST, "step-00000005", "step-00000008"]


@BACKGROUND
def test_a_diverging_run_waits_too_and_names_what_is_saved(mesh: Mesh, tmp_path: Path, in_background: bool) -> None:
    settings = saving_each(2, in_background)
    config = tiny_config().model_copy(
        update={"checkpoint": settings, "guard": GuardConfig(patience=1, spike=1e-9, minimum=2)}
    )
    engine = build_engine(config, mesh)
    saves = Saves(settings, tmp_path, engine, describe, saved=0)
    hooks = Hooks(lambda step, values: None, saves)
    try:
        with pytest.raises(LacunaError, match="the last good checkpoint is step 2:"):
            train(config, engine, whole_feed(config), range(50), Guard(config.guard), hooks, StopRequest())
    finally:
        saves.close()
    assert "step-00000002" in names(tmp_path)


class RottenDisk:
    """Flips a bit of a shard as soon as the checkpoint of one of `steps` is published, `times` times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: set[int], times: int = 1) -> None:
        self.left, real = times, os.rename

        def rename(source: Any, target: Any) -> None:
            real(source, target)
            path = Path(target)
            if self.left and path.name in {f"step-{step:08d}" for step in steps} and ".staging" in str(source):
                self.left -= 1
                shard = path / "shard-00000.safetensors"
                content = bytearray(shard.read_bytes())
                content[-1] ^= 1
                shard.write_bytes(content)

        monkeypatch.setattr(os, "rename", rename)


@BACKGROUND
def test_a_checkpoint_that_is_not_verified_is_not_the_last_good_one(
    mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_background: bool
) -> None:
    RottenDisk(monkeypatch, {4})
    engine, guard = build_engine(tiny_config(), mesh), Guard(GuardConfig())
    saves = Saves(saving(**{"async": in_background}), tmp_path, engine, describe, saved=0)
    try:
        for step, good in ((2, 2), (4, 2), (6, 6)):
            saves.begin(step, guard)
            saves.finish()
            assert saves.saved == good
            assert saves.metrics().get("checkpoint/failures") == (1 if step == 4 else None)
    finally:
        saves.close()
    assert [entry.step for entry in list_checkpoints(tmp_path) if not entry.valid] == [4]


@BACKGROUND
def test_the_last_checkpoint_is_saved_again_if_it_is_not_verified(
    mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_background: bool
) -> None:
    """A stop after a step whose checkpoint was damaged: the damaged one is kept aside."""
    RottenDisk(monkeypatch, {4})
    run(mesh, tmp_path, 50, saving_each(2, in_background), stop_after=4)
    assert [(entry.step, entry.valid) for entry in list_checkpoints(tmp_path)] == [(2, True), (4, True)]
    assert names(tmp_path) == [LATEST, "set-aside-0", "step-00000002", "step-00000004"]
    assert [entry.valid for entry in list_checkpoints(tmp_path / "set-aside-0")] == [False]


@BACKGROUND
def test_a_last_checkpoint_that_is_never_verified_ends_the_run_with_an_error(
    mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_background: bool
) -> None:
    RottenDisk(monkeypatch, {4}, times=2)
    with pytest.raises(SaveError, match="checkpoint of step 4 is published, but rank 0 could not verify"):
        run(mesh, tmp_path, 50, saving_each(2, in_background), stop_after=4)


@BACKGROUND
def test_a_checkpoint_whose_elders_stay_is_good(
    mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_background: bool
) -> None:
    def refuse(paths: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for module in (background, foreground):
        monkeypatch.setattr(module, "remove_checkpoints", refuse)
    engine, guard = build_engine(tiny_config(), mesh), Guard(GuardConfig())
    saves = Saves(saving(**{"async": in_background}), tmp_path, engine, describe, saved=0)
    try:
        saves.begin(2, guard)
        saves.finish()
    finally:
        saves.close()
    assert saves.saved == 2
    assert saves.metrics()["checkpoint/failures"] == 1


@BACKGROUND
def test_a_slow_disk_holds_training_back(
    mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_background: bool
) -> None:
    """At no time is more work unsaved than an interval; speeds leave the wait out."""
    real = os.fsync

    def fsync(file: int) -> None:
        time.sleep(0.02)
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    every, config = 3, tiny_config()
    settings = saving(every=every, **{"async": in_background})
    engine, guard, at_risk, speeds = build_engine(config, mesh), Guard(config.guard), [], []
    saves = Saves(settings, tmp_path, engine, describe, saved=0)

    def report(step: int, values: dict[str, Any]) -> None:
        at_risk.append(step - saves.saved)
        speeds.append(values["perf/step_seconds"])

    config = config.model_copy(update={"checkpoint": settings})
    start = time.perf_counter()
    try:
        train(config, engine, whole_feed(config), range(12), guard, Hooks(report, saves), StopRequest())
    finally:
        saves.close()
    seconds = time.perf_counter() - start
    assert max(at_risk) == every
    assert sum(speeds) + saves.stalled_seconds < seconds


@pytest.mark.parametrize("in_background", [False, True])
@pytest.mark.parametrize("every", [1, 2, 3, 4, 7])
def test_what_is_due_is_what_is_counted(every: int, in_background: bool) -> None:
    settings = saving(every=every, **{"async": in_background})
    for steps in range(1, 30):
        due = [step for step in range(1, steps + 1) if settings.is_due(step)]
        assert settings.written(steps) == len({*due, steps})
        assert set(range(every, steps + 1, every)) <= set(due)
        assert len(due) <= steps // every * (1 + in_background) + in_background


class BadDisk:
    """Writes to shards of these steps fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
        self.steps, real = steps, os.write

        def write(file: int, content: Any) -> int:
            path = os.readlink(f"/proc/self/fd/{file}")
            if any(f".step-{step:08d}" in path for step in self.steps):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(file, content)

        monkeypatch.setattr(os, "write", write)


@BACKGROUND
def test_failures_are_counted_and_the_run_goes_on(
    mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_background: bool
) -> None:
    """Two in a row, twice: never three."""
    BadDisk(monkeypatch, {2, 4, 8, 10})
    lines = run(mesh, tmp_path, 13, saving_each(2, in_background))
    assert [n for n in names(tmp_path) if n != LATEST] == [f"step-{n:08d}" for n in (6, 12, 13)]
    counts = [line["checkpoint/failures"] for line in lines.values() if "checkpoint/failures" in line]
    told = {2, 4} if in_background else {1, 2, 3, 4}  # in the background at the latest when the next one begins
    assert told <= set(counts) <= {1, 2, 3, 4}
    assert counts == sorted(set(counts))


@BACKGROUND
def test_too_many_failures_in_a_row_end_the_run(
    mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_background: bool
) -> None:
    BadDisk(monkeypatch, {4, 6})
    with pytest.raises(SaveError, match=r"^checkpoint of step 6 not saved: .*free some room, earlier ones are intact$"):
        run(mesh, tmp_path, 50, saving_each(2, in_background, max_failures=2))
    assert names(tmp_path) == [LATEST, "step-00000002"]
    assert max(run.lines) in ((6, 7) if in_background else (6,))  # type: ignore[attr-defined]


@BACKGROUND
def test_the_last_save_must_succeed(
    mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_background: bool
) -> None:
    BadDisk(monkeypatch, {5})
    with pytest.raises(SaveError, match="checkpoint of step 5 not saved"):
        run(mesh, tmp_path, 5, saving_each(2, in_background))
    assert names(tmp_path) == [LATEST, "step-00000002", "step-00000004"]


def test_a_save_that_failed_at_the_last_moment_is_tried_again(
    mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop is asked for right after a save began that will fail."""
    disk = BadDisk(monkeypatch, {4})
    config = tiny_config()
    engine, guard = build_engine(config, mesh), Guard(config.guard)
    saves = Saves(saving(**{"async": True}), tmp_path, engine, describe, saved=2)
    try:
        saves.begin(4, guard)
        news = saves._background.finish()  # type: ignore[union-attr]
        assert news is not None
        assert "step 4 not saved" in news.failure
        disk.steps = set()
        saves.conclude(4, guard)
    finally:
        saves.close()
    assert saves.saved == 4
    assert names(tmp_path) == [LATEST, "step-00000004"]


def test_the_key_is_async(mesh: Mesh) -> None:
    settings = saving(**{"async": True}, permanent_every=10)
    assert settings.in_background
    assert settings.model_dump()["async"] is True
    whole = tiny_config().model_copy(update={"checkpoint": settings})
    assert whole.model_dump(mode="json")["checkpoint"]["async"] is True
    assert RunConfig.parse(whole.model_dump(mode="json"), "again") == whole
    assert '"async":true' in whole.model_dump_json()
