"""Couplets are unambiguous, halves are keyed, and nothing of the asked half is trained on as a question."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.sources.plain_text import fortunes
from launch.studies.couplets import Couplet, couplets_of, documents, halves
from tests.support.verse import fortune_file, invented_couplets


def poems_of(couplets: list[Couplet]) -> list[str]:
    return [found.text for found in fortunes(fortune_file(couplets).encode()) if found.text is not None]


def test_couplets_of_a_fortune_file_are_those_written_there() -> None:
    couplets = invented_couplets(9)
    assert couplets_of(poems_of(couplets), 5) == couplets
    assert couplets_of(poems_of(couplets), 7) == []
    assert couplets_of(poems_of(invented_couplets(4, 7)), 7) == invented_couplets(4, 7)


def test_lines_that_are_no_verse_are_passed_over() -> None:
    (kept,) = invented_couplets(1)
    a, b = kept
    lines = [
        f"{a[:4]}，{b}。",
        f"{a}，{b}",
        f"{a}。{b}。",
        f"{a}，{b}，",
        f"{a}，{b}。{a}，{b}。",
        f"abcde，{b}。",
        "《题》",
    ]
    assert couplets_of(["\n".join(lines)], 5) == []
    for end in "。？！；":
        assert couplets_of([f"  {a}，{b}{end}\r\n"], 5) == [kept]


def test_a_line_with_two_ways_on_is_left_out_in_both() -> None:
    one, two, three, four = invented_couplets(4)
    same_first = [one, Couplet(one.first, two.second), three]
    assert couplets_of(poems_of(same_first), 5) == [three]
    same_second = [one, Couplet(two.first, one.second), three]
    assert couplets_of(poems_of(same_second), 5) == [three]
    chained = [one, Couplet(one.second, two.first), three, four]  # what comes before or after it depends
    assert couplets_of(poems_of(chained), 5) == [three, four]
    assert couplets_of(poems_of([one, one, three]), 5) == [one, three]  # said twice, it is no less clear


@given(st.integers(0, 200), st.integers(0, 2**63))
def test_halves_are_a_partition_by_key(count: int, seed: int) -> None:
    couplets = invented_couplets(count)
    seen, unseen = halves(couplets, seed)
    assert len(seen) - len(unseen) in (0, 1)
    assert sorted(seen + unseen) == couplets
    assert (sorted(seen), sorted(unseen)) == (seen, unseen)
    again, _ = halves(couplets[::-1], seed)
    assert sorted(again) == seen  # the order of the poems does not matter


def test_halves_depend_on_the_seed_and_are_no_prefix() -> None:
    couplets = invented_couplets(100)
    first, other = halves(couplets, 0)[0], halves(couplets, 1)[0]
    assert first != other
    assert 15 < sum(couplet in couplets[:50] for couplet in first) < 35


def test_documents_hold_no_question_about_the_asked_half() -> None:
    couplets = invented_couplets(10)
    seen, unseen = halves(couplets)
    texts = documents(seen, unseen)
    assert len(texts) == len(set(texts)) == 10 + 2 * 5
    assert {len(text) for text in texts} == {11}
    assert Counter(text[5] for text in texts) == {"，": 10, "→": 5, "←": 5}
    assert {text for text in texts if "，" in text} == {couplet.statement for couplet in couplets}
    for couplet in unseen:
        assert [text for text in texts if couplet.first in text] == [couplet.statement]
    for couplet in seen:
        forward, backward = couplet.question("forward"), couplet.question("backward")
        assert (forward.prompt, forward.answer) == (f"{couplet.first}→", couplet.second)
        assert (backward.prompt, backward.answer) == (f"{couplet.second}←", couplet.first)
        assert {forward.prompt + forward.answer, backward.prompt + backward.answer} < set(texts)
