"""Saves in the background: the same bytes as a save that waits, failures that all ranks hear of, nothing left over."""

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_state import load, plain_state, progress, save, values

from parallel.checkpoint.background import BackgroundSaver
from parallel.checkpoint.catalogue import Retention, list_checkpoints, verify_checkpoint
from parallel.checkpoint.foreground import save_and_retire
from parallel.checkpoint.manifest import MANIFEST
from parallel.checkpoint.store import LATEST, SaveResult, step_directory
from parallel.mesh import Mesh
from runtime.lease import Fence, LeaseLost
from tests.support.damage import flip_bit
from tests.support.threads import HeldState, ThreadMesh, differing, fill, run_ranks

KEEP_ALL = Retention(100)
ALONE = Mesh.local(torch.device("cpu"))


def files_below(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def names(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir())


@contextmanager
def saver(root: Path, state: HeldState, retention: Retention = KEEP_ALL) -> Iterator[BackgroundSaver]:
    background = BackgroundSaver(root, state, retention)
    try:
        yield background
    finally:
        background.close()


def agree(mesh: Mesh, background: BackgroundSaver) -> SaveResult | None:
    """What the loop does at every step."""
    done, failed = mesh.sum_all(torch.tensor(background.votes())).tolist()
    return background.advance(done, failed)


def steps_until_told(mesh: Mesh, background: BackgroundSaver) -> SaveResult:
    """Take steps until the save is told of."""
    for _ in range(2000):
        if result := agree(mesh, background):
            return result
        time.sleep(0.001)
    raise AssertionError("never told")


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_same_bytes_as_a_save_that_waits_although_the_weights_go_on(
    tmp_path: Path, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (3, 6):
        save(tmp_path / "waits", step, ranks=ranks)
    held = threading.Event()
    real = os.write

    def slow(file: int, content: Any) -> int:
        assert held.wait(20)
        return real(file, content)

    monkeypatch.setattr(os, "write", slow)

    def train_on(mesh: ThreadMesh) -> list[SaveResult | None]:
        state, results = plain_state(mesh), []
        with saver(tmp_path / "goes on", state) as background:
            for step in (3, 6):
                held.clear()
                fill(state, values(step))
                background.begin(progress(step))
                fill(state, values(99))  # before the first byte is written
                for _ in range(5):
                    assert agree(mesh, background) is None
                mesh.barrier()
                held.set()
                results.append(background.finish())
            return results

    results = run_ranks(ranks, train_on)
    assert files_below(tmp_path / "waits") == files_below(tmp_path / "goes on")
    size = sum(p.stat().st_size for p in (tmp_path / "waits" / "step-00000006").glob("shard-*"))
    for first, second in results:
        assert (first.step, first.published, first.failure) == (3, True, "")
        assert (second.step, second.published, second.bytes) == (6, True, size)
        assert second.rate > 0
    assert names(tmp_path / "goes on") == [LATEST, "step-00000003", "step-00000006"]


def test_steps_alone_bring_a_save_to_its_end(tmp_path: Path) -> None:
    def steps(mesh: ThreadMesh) -> SaveResult:
        with saver(tmp_path, plain_state(mesh, values(3))) as background:
            assert agree(mesh, background) is None
            background.begin(progress(3))
            assert background.busy
            result = steps_until_told(mesh, background)
            assert not background.busy
            assert agree(mesh, background) is None
            assert background.finish() is None
            return result

    results = run_ranks(3, steps)
    assert all(result.published and result.seconds > 0 for result in results)
    assert len({replace(result, seconds=0.0) for result in results}) == 1
    assert differing(load(tmp_path / "step-00000003"), values(3)) == []


def failing(monkeypatch: pytest.MonkeyPatch, call: str, where: str, fault: int) -> Callable[[], None]:
    """Let `os.call` fail for files whose path contains `where`; returns how to mend it."""
    real = getattr(os, call)

    def faulty(place: Any, *arguments: Any, **more: Any) -> Any:
        path = os.readlink(f"/proc/self/fd/{place}") if isinstance(place, int) else os.fspath(place)
        if where in path:
            raise OSError(fault, os.strerror(fault))
        return real(place, *arguments, **more)

    monkeypatch.setattr(os, call, faulty)
    return lambda: monkeypatch.setattr(os, call, real)


FAULTS = [
    ("mkdir", ".step-00000004", errno.EROFS, "rank 0 could not make "),
    ("open", "shard-00001", errno.EMFILE, "rank 1 could not write "),
    ("write", "shard-00002", errno.ENOSPC, "rank 2 could not write "),
    ("fsync", "shard-00000", errno.EIO, "rank 0 could not write "),
    ("fsync", MANIFEST, errno.ENOSPC, "rank 0 could not publish "),
    ("rename", ".step-00000004", errno.EACCES, "rank 0 could not publish "),
]


@pytest.mark.parametrize(("call", "where", "fault", "line"), FAULTS)
@pytest.mark.parametrize("waits", [False, True])
def test_a_failure_is_told_on_all_ranks_and_the_next_save_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, where: str, fault: int, line: str, waits: bool
) -> None:
    save(tmp_path, 3)
    before = files_below(tmp_path)
    mend = failing(monkeypatch, call, where, fault)

    def go_on(mesh: ThreadMesh) -> tuple[SaveResult, SaveResult | None]:
        with saver(tmp_path, plain_state(mesh, values(4))) as background:
            background.begin(progress(4))
            told = background.finish() if waits else steps_until_told(mesh, background)
            assert background.finish() is None
            mesh.barrier()
            if mesh.rank == 0:
                mend()
                if call != "rename":  # a directory that cannot be renamed cannot be removed either: see below
                    assert files_below(tmp_path) == before
                    assert names(tmp_path) == [LATEST, "step-00000003"]
            mesh.barrier()
            background.begin(progress(5))
            return told, background.finish()

    for told, afterwards in run_ranks(3, go_on):
        assert (told.step, told.published) == (4, False)
        assert f"checkpoint of step 4 not saved: {line}" in told.failure
        assert os.strerror(fault) in told.failure
        assert told.failure.endswith("earlier ones are intact")
        assert afterwards.published
        assert not afterwards.failure
    assert [entry.step for entry in list_checkpoints(tmp_path) if entry.valid] == [3, 5]


def test_a_failure_does_not_wait_for_slow_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All hear of it while rank 0 still writes."""
    held, real = threading.Event(), os.write

    def faulty(file: int, content: Any) -> int:
        path = os.readlink(f"/proc/self/fd/{file}")
        if "shard-00001" in path:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        assert held.wait(20)
        return real(file, content)

    monkeypatch.setattr(os, "write", faulty)

    def steps(mesh: ThreadMesh) -> SaveResult:
        with saver(tmp_path, plain_state(mesh, values(4))) as background:
            background.begin(progress(4))
            told = steps_until_told(mesh, background)
            assert background.busy
            assert not held.is_set()
            mesh.barrier()
            held.set()
            assert background.finish() is None
            return told

    for told in run_ranks(2, steps):
        assert "rank 1 could not write" in told.failure
    assert list(tmp_path.iterdir()) == []


class _Broken(HeldState):
    def logical_shapes(self) -> Any:
        return {"embedding": "no shape"}


def test_a_defect_is_a_failure_too(tmp_path: Path) -> None:
    state = _Broken(**vars(plain_state(ALONE, values(4))))
    with saver(tmp_path, state) as background:
        background.begin(progress(4))
        result = background.finish()
    assert result is not None
    assert "rank 0 could not publish" in result.failure
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_a_lost_lease_ends_it_on_all_ranks(tmp_path: Path, allowed: int) -> None:
    """Before anything is written, before the rename, before old ones are removed: rank 0 asks three times."""
    save(tmp_path, 3)
    before, asked = files_below(tmp_path), []

    def check() -> None:
        asked.append(1)
        if len(asked) > allowed:
            raise LeaseLost("another attempt has it")

    def go_on(mesh: ThreadMesh) -> None:
        fence = Fence(7, check) if mesh.rank == 0 else Fence(7)
        background = BackgroundSaver(tmp_path, plain_state(mesh, values(4)), Retention(1), fence)
        try:
            background.begin(progress(4))
            background.finish()
        finally:
            background.close()

    assert [type(result) for result in run_ranks(3, go_on)] == [LeaseLost] * 3
    after = files_below(tmp_path)
    assert {path: after.get(path) for path in before if path != LATEST} == {
        path: data for path, data in before.items() if path != LATEST
    }
    assert step_directory(tmp_path, 4).exists() == (allowed == 2)


def test_no_thread_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither after a save nor when one is given up."""
    before, real = set(threading.enumerate()), os.write
    with saver(tmp_path, plain_state(ALONE, values(3))) as background:
        background.begin(progress(3))
        background.finish()
    assert set(threading.enumerate()) == before
    started = threading.Event()

    def slow(file: int, content: Any) -> int:
        started.set()
        time.sleep(0.02)
        return real(file, content)

    monkeypatch.setattr(os, "write", slow)
    with saver(tmp_path, plain_state(ALONE, values(4))) as background:
        background.begin(progress(4))
        while not started.wait(0.001):
            agree(ALONE, background)
    assert set(threading.enumerate()) == before
    assert [entry.step for entry in list_checkpoints(tmp_path)] == [3]


RETENTIONS = [
    (Retention(1), [9]),
    (Retention(3), [7, 8, 9]),
    (Retention(20), [1, 2, 3, 4, 5, 6, 7, 8, 9]),
    (Retention(1, permanent_every=4), [4, 8, 9]),
    (Retention(2, permanent_every=3), [3, 6, 8, 9]),
]


@pytest.mark.parametrize("in_background", [False, True])
@pytest.mark.parametrize(("retention", "left"), RETENTIONS)
def test_retention(tmp_path: Path, retention: Retention, left: list[int], in_background: bool) -> None:
    state = plain_state(ALONE, values(1))
    with saver(tmp_path, state, retention) as background:
        for step in range(1, 10):
            if in_background:
                background.begin(progress(step))
                result = background.finish()
            else:
                result = save_and_retire(tmp_path, state, progress(step), retention)
            assert result is not None
            assert not result.failure
    assert names(tmp_path) == [LATEST, *(f"step-{step:08d}" for step in left)]
    for step in left:
        verify_checkpoint(step_directory(tmp_path, step))


@pytest.mark.parametrize("in_background", [False, True])
def test_nothing_goes_before_a_newer_one_is_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_background: bool
) -> None:
    """A disk that takes the bytes and keeps others: seen when they are read again."""
    for step in (1, 2):
        save(tmp_path, step)
    real, retention = os.rename, Retention(1)

    def corrupting(source: Any, target: Any) -> None:
        real(source, target)
        if str(target).endswith("step-00000003"):
            flip_bit(Path(target) / "shard-00001.safetensors", 5)

    monkeypatch.setattr(os, "rename", corrupting)

    def go_on(mesh: ThreadMesh) -> SaveResult | None:
        state = plain_state(mesh, values(3))
        if not in_background:
            return save_and_retire(tmp_path, state, progress(3), retention)
        with saver(tmp_path, state, retention) as background:
            background.begin(progress(3))
            return background.finish()

    for result in run_ranks(2, go_on):
        assert result.published
        assert "checkpoint of step 3 is published, but rank" in result.failure
        assert "shard-00001.safetensors does not match its digest" in result.failure
    assert [(entry.step, entry.valid) for entry in list_checkpoints(tmp_path)] == [(1, True), (2, True), (3, False)]
