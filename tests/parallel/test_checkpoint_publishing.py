"""A checkpoint is published whole or not at all, and never over another; what the catalogue says and removes."""

import errno
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_state import SHAPES, load, plain_state, progress, save, values

from parallel.checkpoint.catalogue import (
    list_checkpoints,
    newest_checkpoint,
    previous_valid,
    prune_checkpoints,
    verify_checkpoint,
)
from parallel.checkpoint.manifest import MANIFEST, CheckpointManifest
from parallel.checkpoint.reader import BlockReader
from parallel.checkpoint.store import LATEST, SaveError, save_checkpoint, step_directory
from parallel.engines.base import KINDS, Fragment
from parallel.logical import Rectangle
from parallel.mesh import Mesh
from runtime.errors import UserError
from tests.support.damage import flip_bit
from tests.support.threads import HeldState, differing, run_ranks


def files_below(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_every_box_of_every_tensor_is_what_was_saved(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 1, ranks=3)
    reader = BlockReader(checkpoint, verify_checkpoint(checkpoint))
    truth = values(1)
    for kind in KINDS:
        for name in SHAPES:
            assert torch.equal(reader.read(kind, name), truth[kind][name])
    rows, columns = SHAPES["blocks.0.gate"]
    for first in range(rows):
        for last in range(first + 1, rows + 1):
            for left, right in ((0, columns), (2, 3), (1, 6)):
                box = Rectangle((first, left), (last - first, right - left))
                view = torch.full(box.size, torch.nan)
                reader.read_into("exp_avg", "blocks.0.gate", box, view)
                assert torch.equal(view, truth["exp_avg"]["blocks.0.gate"][box.slices])


def test_names_of_directories_hint_and_files(tmp_path: Path) -> None:
    assert step_directory(tmp_path, 42) == tmp_path / "step-00000042"
    save(tmp_path, 42)
    assert sorted(files_below(tmp_path)) == [
        LATEST,
        f"step-00000042/{MANIFEST}",
        "step-00000042/shard-00000.safetensors",
        "step-00000042/shard-00001.safetensors",
    ]
    assert (tmp_path / LATEST).read_text() == "step-00000042\n"


def test_a_stale_staging_directory_does_not_disturb(tmp_path: Path) -> None:
    stale = tmp_path / ".step-00000003.staging"
    (stale / "deeper").mkdir(parents=True)
    (stale / "shard-00007.safetensors").write_bytes(b"half")
    (tmp_path / ".step-00000002.staging").mkdir()
    assert newest_checkpoint(tmp_path) is None
    assert list_checkpoints(tmp_path) == []
    checkpoint = save(tmp_path, 3)
    assert not stale.exists()
    assert sorted(p.name for p in checkpoint.iterdir()) == [
        MANIFEST,
        "shard-00000.safetensors",
        "shard-00001.safetensors",
    ]
    assert [entry.path for entry in list_checkpoints(tmp_path)] == [checkpoint]


def test_a_published_checkpoint_is_never_overwritten(tmp_path: Path) -> None:
    """All ranks learn of it, none waits for ever, and nothing is left behind."""
    save(tmp_path, 3)
    before = files_below(tmp_path)
    results = run_ranks(2, lambda mesh: save_checkpoint(tmp_path, plain_state(mesh, values(4)), progress(3)))
    assert [type(result) for result in results] == [SaveError] * 2
    assert all("step-00000003 exists already" in str(result) for result in results)
    assert files_below(tmp_path) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == [LATEST, "step-00000003"]


class _BadDisk(HeldState):
    """Its rank cannot write."""

    fault: int

    def fragments(self) -> Iterator[Fragment]:
        raise OSError(self.fault, os.strerror(self.fault))


@pytest.mark.parametrize(
    ("fault", "mend"),
    [
        (errno.ENOSPC, "No space left on device; free some room, earlier ones are intact"),
        (errno.EDQUOT, "Disk quota exceeded; free some room or have the quota raised, earlier ones are intact"),
        (
            errno.EIO,
            "Input/output error; look into the system's log for the fault of the disk, earlier ones are intact",
        ),
        (errno.EROFS, "Read-only file system; mount the file system for writing, earlier ones are intact"),
        (errno.ESTALE, "Stale file handle; look after the file system, earlier ones are intact"),
    ],
)
def test_a_bad_disk_on_one_rank_is_told_by_all_and_publishes_nothing(tmp_path: Path, fault: int, mend: str) -> None:
    save(tmp_path, 3)
    before = files_below(tmp_path)

    def save_four(mesh: Any) -> Path:
        state = plain_state(mesh, values(4))
        if mesh.rank == 1:
            state = _BadDisk(**vars(state))
            state.fault = fault
        return save_checkpoint(tmp_path, state, progress(4))

    results = run_ranks(3, save_four)
    assert [type(result) for result in results] == [SaveError] * 3
    for result in results:
        assert "checkpoint of step 4 not saved: rank 1 could not write" in str(result)
        assert str(result).endswith(mend)
    assert files_below(tmp_path) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == [LATEST, "step-00000003"]
    assert save(tmp_path, 4).name == "step-00000004"  # once there is room again


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The kernel refuses to let files of this process grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("place", ["header of the shard", "values of the shard", "manifest"])
def test_a_kernel_that_refuses_to_write(tmp_path: Path, place: str) -> None:
    local, small_chunks = Mesh.local(torch.device("cpu")), 8
    checkpoint = save_checkpoint(tmp_path, plain_state(local, values(3)), progress(3), small_chunks)
    before = files_below(tmp_path)
    shard = (checkpoint / "shard-00000.safetensors").stat().st_size
    manifest = (checkpoint / MANIFEST).stat().st_size
    assert manifest > shard + 200  # else the limit cannot stand between them
    size = {"header of the shard": 100, "values of the shard": shard - 100, "manifest": shard + 100}[place]
    state = plain_state(local, values(4))
    with largest_file(size), pytest.raises(UserError, match=r"step 4 not saved: .*File too large; have the limit"):
        save_checkpoint(tmp_path, state, progress(4), small_chunks)
    assert files_below(tmp_path) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == [LATEST, "step-00000003"]


def test_saving_the_same_state_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    one, other = save(tmp_path / "a", 3), save(tmp_path / "b", 3)
    assert files_below(one) == files_below(other)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Checkpoints of steps 1, 2, 3, 10 and things that are none."""
    for step in (10, 1, 3, 2):
        save(tmp_path, step, ranks=1)
    (tmp_path / "step-00000099").write_text("a file")
    (tmp_path / "step-later").mkdir()
    (tmp_path / ".step-00000077.staging").mkdir()
    (tmp_path / "notes").mkdir()
    return tmp_path


def steps_below(root: Path) -> list[int]:
    return sorted(int(p.name[5:]) for p in root.iterdir() if p.is_dir() and p.name[5:].isdecimal())


def damage(root: Path, step: int) -> None:
    flip_bit(step_directory(root, step) / "shard-00000.safetensors", step)


def test_list_is_by_age_and_shows_faults(run: Path) -> None:
    damage(run, 2)
    (step_directory(run, 3) / MANIFEST).unlink()
    entries = list_checkpoints(run)
    assert [entry.step for entry in entries] == [1, 2, 3, 10]
    assert [entry.valid for entry in entries] == [True, False, False, True]
    assert "step-00000002/shard-00000.safetensors does not match its digest" in entries[1].fault
    assert "step-00000003/MANIFEST.json does not exist" in entries[2].fault
    assert newest_checkpoint(run) == entries[3].path
    assert previous_valid(run, entries[3].path) == entries[0].path
    assert previous_valid(run, entries[0].path) is None


def test_no_checkpoints_no_entries(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "absent"):
        assert list_checkpoints(root) == []
        assert newest_checkpoint(root) is None
        assert prune_checkpoints(root, 1) == []


@pytest.mark.parametrize(("keep", "left"), [(1, [10]), (2, [3, 10]), (4, [1, 2, 3, 10]), (9, [1, 2, 3, 10])])
def test_prune_keeps_the_newest(run: Path, keep: int, left: list[int]) -> None:
    gone = prune_checkpoints(run, keep, dry_run=True)
    assert steps_below(run) == [1, 2, 3, 10]
    assert prune_checkpoints(run, keep) == gone
    assert steps_below(run) == left
    assert [path.name for path in gone] == [f"step-{step:08d}" for step in (1, 2, 3, 10) if step not in left]
    assert (run / "step-00000099").is_file()
    assert (run / "step-later").is_dir()
    assert differing(load(step_directory(run, 10)), values(10)) == []


def test_prune_removes_nothing_while_the_newest_is_damaged(run: Path) -> None:
    damage(run, 10)
    with pytest.raises(UserError, match=r"step-00000010/shard-00000\.safetensors does not match its digest"):
        prune_checkpoints(run, 2)
    assert steps_below(run) == [1, 2, 3, 10]


def test_prune_removes_damaged_old_ones(run: Path) -> None:
    damage(run, 1)
    prune_checkpoints(run, 1)
    assert steps_below(run) == [10]


def test_numbers_decide_what_is_newest_not_spelling(run: Path) -> None:
    """A copy whose name lacks the zeros sorts behind every other by letters."""
    shutil.copytree(step_directory(run, 2), run / "step-2")
    assert [entry.step for entry in list_checkpoints(run)] == [1, 2, 2, 3, 10]
    assert newest_checkpoint(run) == step_directory(run, 10)
    prune_checkpoints(run, 1)
    assert steps_below(run) == [10]


def test_the_manifest_says_which_step_a_directory_is(run: Path) -> None:
    os.rename(step_directory(run, 3), step_directory(run, 30))
    assert CheckpointManifest.read(step_directory(run, 30)).step == 3
    faults = {entry.step: entry.fault for entry in list_checkpoints(run)}
    assert "holds step 3" in faults[30]
    with pytest.raises(UserError, match="holds step 3"):
        prune_checkpoints(run, 1)
