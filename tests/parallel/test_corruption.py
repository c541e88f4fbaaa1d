"""A part of the corruption proof: see tests/prove/corruption.py for the whole."""

from pathlib import Path

from tests.prove.corruption import BEGIN, DAMAGES, END, Verdict, damage_of, prove, report
from tests.support.simulated import needs_cpu


@needs_cpu
def test_twenty_damages_are_refused_named_and_answered(tmp_path: Path) -> None:
    verdicts = list(prove(range(20), tmp_path, ["megatron tp2 pp2", "deepspeed dp2 zero3"]))
    assert [verdict for verdict in verdicts if not verdict.sound] == []
    assert len({verdict.kind for verdict in verdicts}) >= 6
    assert len({verdict.source for verdict in verdicts}) == 2
    assert "| **all** | 20 | 20 | 20 | 20 | 20 | 0 |" in report(verdicts, 1.0)


def test_a_silent_damage_would_be_counted() -> None:
    verdict = Verdict(DAMAGES[0].kind, "a", "b", "MANIFEST.json", True, True, True, True)
    assert not verdict.sound
    assert "| **all** | 1 | 1 | 0 | 1 | 1 | 1 |" in report([verdict], 1.0)


def test_two_hundred_numbers_deal_every_kind_its_share() -> None:
    kinds = [damage_of(number).kind for number in range(200)]
    assert {damage.kind: damage.share for damage in DAMAGES} == {kind: kinds.count(kind) for kind in kinds}


def test_the_page_has_its_markers() -> None:
    text = (Path(__file__).parents[2] / "docs/reliability.md").read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1
