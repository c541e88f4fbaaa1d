"""A disk that fails during saves: training goes on, and what was published stays valid."""

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from parallel.mesh import close_process_group
from runtime.environment import RankInfo
from tests.support.disk_faults import FailingCalls, Found, clean_losses, run_trial
from tests.support.simulated import needs_cpu

pytestmark = [needs_cpu, pytest.mark.filterwarnings("ignore")]  # the engines give many


@pytest.fixture(autouse=True)
def _process_group() -> Iterator[None]:
    close_process_group()
    yield
    close_process_group()


@pytest.mark.parametrize(("background", "stride"), [(False, 5), (True, 7)])
def test_calls_of_a_save_that_fail(tmp_path: Path, background: bool, stride: int) -> None:
    """Each fifth call or so; the proof of all is `make prove-disk`."""
    trial = run_trial(
        tmp_path, RankInfo(), background, lambda root, mesh: FailingCalls(root, mesh, stride, [errno.EIO])
    )
    assert trial.losses == clean_losses(RankInfo(), len(trial.losses))
    assert len(trial.found) >= 2 * 8
    assert all(found.met for found in trial.found)  # each fault was met
    assert {found.fault for found in trial.found} == {"EIO", "ENOSPC and on"}

    def of(call: str) -> list[Found]:
        return [found for found in trial.found if found.met == call]

    assert of("write shard")
    assert all(found.told and not found.published for found in of("write shard"))
