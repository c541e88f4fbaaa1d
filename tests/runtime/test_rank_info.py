"""Who a process is, from what torchrun or Slurm say, and from what is no place at all."""

from collections.abc import Mapping

import pytest

from runtime.environment import RankInfo, describe_machine
from runtime.errors import UserError

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "TORCHELASTIC_RESTART_COUNT": "2"}
SLURM = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "3", "SLURM_RESTART_COUNT": "1"}


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, RankInfo(0, 1, 0, 0)),
        (TORCHRUN, RankInfo(5, 8, 1, 2)),
        (SLURM, RankInfo(3, 4, 3, 1)),
        ({**SLURM, **TORCHRUN}, RankInfo(5, 8, 1, 3)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, RankInfo()),
        ({"SLURM_PROCID": "0"}, RankInfo()),
        ({"RANK": "", "WORLD_SIZE": "", "SLURM_RESTART_COUNT": ""}, RankInfo()),
    ],
    ids=["nothing", "torchrun", "slurm", "torchrun inside slurm", "one", "batch shell", "empty"],
)
def test_places(variables: Mapping[str, str], place: RankInfo) -> None:
    assert RankInfo.from_environment(variables) == place
    assert place.is_first == (place.rank == 0)


@pytest.mark.parametrize("value", ["-1", "1.0", "one", " 1", "0x1", "٣", "²", "9" * 5000, "\x1b[2J"])
@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT"])
def test_hostile_values_are_named(name: str, value: str) -> None:
    with pytest.raises(UserError, match=f"environment variable {name}=.* is not a whole number") as raised:
        RankInfo.from_environment({**TORCHRUN, name: value})
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(("rank", "world"), [("8", "8"), ("0", "0"), ("9", "8")])
def test_a_rank_outside_the_world(rank: str, world: str) -> None:
    with pytest.raises(UserError, match=f"RANK={rank} and WORLD_SIZE={world} do not fit together"):
        RankInfo.from_environment({"RANK": rank, "WORLD_SIZE": world})


@pytest.mark.parametrize("left", ["RANK", "WORLD_SIZE"])
def test_half_of_torchruns_variables_is_no_single_process(left: str) -> None:
    """Otherwise two such processes would each train alone into one run directory."""
    with pytest.raises(UserError, match="only one of RANK and WORLD_SIZE"):
        RankInfo.from_environment({left: TORCHRUN[left]})


def test_the_machine_is_described_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    facts = describe_machine()
    assert set(facts) == {"host", "system", "python", "cores", "packages"}
    assert "hunter2" not in str(facts)
    assert "missing" not in str(facts["packages"])
