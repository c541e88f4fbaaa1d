"""A few of the flips that `python -m tests.prove.flips` makes by the hundred."""

from pathlib import Path

from tests.prove.flips import KINDS, build_pair, prove, table


def test_no_flip_is_missed(tmp_path: Path) -> None:
    build_pair(tmp_path, 40_000)
    outcomes = list(prove(tmp_path, 4))
    assert [outcome.kind for outcome in outcomes] == list(KINDS)
    assert all(outcome.good for outcome in outcomes), table(outcomes)
    assert outcomes[0].named == 4
