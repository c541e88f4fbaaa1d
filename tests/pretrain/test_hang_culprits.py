"""Who is to blame for a hang: every situation that a few ranks can be in."""

from dataclasses import replace

import pytest

from pretrain.health.culprit import find_culprits, pronounce
from pretrain.health.signs import Sign

READY = Sign(0, "node1", "m", 1, 1, phase="step", step=7, count=30, seconds=3.0, waiting=True, answered=True)


def signs(**changed: dict[str, object]) -> dict[int, Sign]:
    """Four ranks in the same collective, `r2={...}` changing one."""
    found = {rank: replace(READY, rank=rank, host=f"node{rank + 1}") for rank in range(4)}
    for name, change in changed.items():
        rank = int(name[1:])
        found[rank] = replace(found[rank], **change)  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize(
    ("changed", "culprits"),
    [
        ({"r2": {"waiting": False}}, [2]),
        ({"r2": {"answered": False}}, [2]),
        ({"r2": {"answered": False}, "r1": {"waiting": False}, "r0": {"count": 5}}, [2]),
        ({"r1": {"count": 29, "phase": "save", "waiting": False}}, [1]),
        ({"r1": {"count": 29, "phase": "collective"}, "r3": {"waiting": False}}, [1]),
        ({"r0": {"count": 29}, "r1": {"count": 29, "waiting": False}}, [1]),
        ({"r0": {"waiting": False}, "r3": {"waiting": False}}, [0, 3]),
        ({}, []),
    ],
)
def test_culprits(changed: dict[str, dict[str, object]], culprits: list[int]) -> None:
    assert find_culprits(signs(**changed), 4) == culprits


def test_a_rank_without_a_sign_is_to_blame() -> None:
    found = signs()
    del found[1]
    assert find_culprits(found, 4) == [1]
    line = pronounce(found, 4, 0, lambda sign: "").message
    assert line == "rank 1 (it never gave a sign of life) hangs; rank 0 waited 3 s in step of step 7"


def test_the_line_names_rank_node_phase_and_state() -> None:
    verdict = pronounce(signs(r2={"answered": False, "phase": "data", "step": 8}), 4, 0, lambda sign: "stopped")
    assert verdict.ranks == (2,)
    assert verdict.message.startswith("rank 2 on node3 (no sign of life, stopped, last seen in data of step 8) hangs; ")
    mine = pronounce(signs(r1={"phase": "save", "count": 29, "waiting": False}), 4, 1, lambda sign: "").message
    assert mine == "rank 1 on node2 (in save of step 7 for 3 s) hangs"
    nobody = pronounce(signs(), 4, 2, lambda sign: "").message
    assert nobody.startswith("all 4 ranks wait for each other in step of step 7 for 3 s: a collective hangs")


def test_many_culprits_are_not_all_spelt_out() -> None:
    found = {rank: replace(READY, rank=rank, answered=False) for rank in range(20)} | {0: READY}
    line = pronounce(found, 20, 0, lambda sign: "").message
    assert ", and 11 more ranks hang; " in line
