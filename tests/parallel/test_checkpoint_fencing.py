"""A save whose attempt is no longer the run's, at whatever moment that comes, publishes nothing on any rank."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from plain_state import plain_state, progress, save, values

from parallel.checkpoint.catalogue import verify_checkpoint
from parallel.checkpoint.store import LATEST, save_checkpoint, staging_directory, sweep
from runtime.lease import Fence, LeaseLost
from tests.support.threads import run_ranks


@dataclass
class Countdown:
    """A lease that is lost at the n-th look."""

    looks: int

    def check(self) -> None:
        self.looks -= 1
        if self.looks < 0:
            raise LeaseLost("taken over")


@pytest.mark.parametrize("looks", [0, 1])
def test_a_lease_lost_before_or_during_a_save(tmp_path: Path, looks: int) -> None:
    save(tmp_path, 3)
    lease = Countdown(looks)

    def save_four(mesh: object) -> Path:
        fence = Fence(7, lease.check) if mesh.rank == 0 else Fence(7)  # type: ignore[attr-defined]
        return save_checkpoint(tmp_path, plain_state(mesh, values(4)), progress(4), fence=fence)  # type: ignore[arg-type]

    results = run_ranks(2, save_four)
    assert [type(result) for result in results] == [LeaseLost] * 2
    assert lease.looks == -1  # there is no third look
    assert sorted(p.name for p in tmp_path.iterdir()) == [LATEST, "step-00000003"]
    assert (tmp_path / LATEST).read_text() == "step-00000003\n"


def test_an_orphan_in_the_middle_of_a_save_does_not_touch_its_heirs(tmp_path: Path) -> None:
    """The heir saves the same step while the orphan sleeps right before its last look."""
    heir: list[Path] = []

    def sleep() -> None:
        if (staging_directory(tmp_path, 4, 1) / "MANIFEST.json").exists():
            heir.append(save(tmp_path, 4, ranks=1, seed=9))
            raise LeaseLost("taken over")

    (result,) = run_ranks(
        1,
        lambda mesh: save_checkpoint(tmp_path, plain_state(mesh, values(4)), progress(4), fence=Fence(1, sleep)),
    )
    assert isinstance(result, LeaseLost)
    assert sorted(p.name for p in tmp_path.iterdir()) == [LATEST, "step-00000004"]
    verify_checkpoint(heir[0])
    alone = save(tmp_path / "alone", 4, ranks=1, seed=9)
    assert {p.name: p.read_bytes() for p in heir[0].iterdir()} == {p.name: p.read_bytes() for p in alone.iterdir()}


def test_the_next_save_sweeps_what_killed_ones_left(tmp_path: Path) -> None:
    save(tmp_path, 3)
    for name in (".step-00000004.1.staging", ".step-00000002.77.removed", ".step-00000009.staging"):
        (tmp_path / name / "deeper").mkdir(parents=True)
    for name in (f".{LATEST}.12.tmp", ".notes.12.tmp"):
        (tmp_path / name).write_text("mine")
    sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".notes.12.tmp", LATEST, "step-00000003"]
