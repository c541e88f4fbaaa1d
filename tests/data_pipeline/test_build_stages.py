"""What each stage does to one document, by hand-made documents just inside and just outside of every rule."""

import sys
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.fates import Fate
from data_pipeline.stages.chain import Chain
from data_pipeline.stages.config import C4, Language, Quality, Repetition, Scrub, StagesConfig
from data_pipeline.stages.language import LanguageStage
from data_pipeline.stages.n_grams import hash_words, n_grams, plain_words
from data_pipeline.stages.quality import apply_c4, judge_quality
from data_pipeline.stages.repetition import judge_repetition, repeated_parts, repeated_share, top_share
from data_pipeline.stages.scrub import scrub
from runtime.errors import UserError

GOOD = " ".join(["the quick brown foxes jump over lazy dogs and that have fun"] * 5)
OFF: dict[str, Any] = {
    "min_words": 0, "min_word_length": 0, "max_word_length": 99, "max_symbols": 9, "min_letter_words": 0,
    "min_stop_words": 0, "max_bullet_lines": 1, "max_ellipsis_lines": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "inside", "outside", "fate"),
    [
        ({"min_words": 3}, "a b c", "a b", Fate.TOO_SHORT),
        ({"max_words": 3}, "a b c", "a b c d", Fate.TOO_LONG),
        ({"min_word_length": 3}, "aaaa bb", "aaa bb", Fate.WORD_LENGTH),
        ({"max_word_length": 3}, "aaaa bb", "aaaa bbb", Fate.WORD_LENGTH),
        ({"max_symbols": 0.5}, "# a b c #", "# # a #", Fate.SYMBOLS),
        ({"max_symbols": 0.5}, "a... b c\u2026 d", "a... b\u2026 c", Fate.SYMBOLS),
        ({"max_digits": 0.5}, "ab12", "a123", Fate.DIGITS),
        ({"min_letter_words": 0.5}, "a 1 b 2", "a 1 2", Fate.FEW_LETTERS),
        ({"min_stop_words": 2}, "The cat and", "the the the", Fate.FEW_STOP_WORDS),
        ({"max_bullet_lines": 0.5}, "- a\nb\n\n", "- a\n* b\nc", Fate.BULLETS),
        ({"max_ellipsis_lines": 0.5}, "a...\nb", "a...\nb\u2026\nc", Fate.ELLIPSES),
    ],
)
def test_quality_rules_at_their_borders(rule: dict[str, Any], inside: str, outside: str, fate: Fate) -> None:
    rules = Quality(**{**OFF, **rule})
    assert judge_quality(inside, rules) == Fate.KEPT
    assert judge_quality(outside, rules) == fate


def test_the_published_thresholds_are_the_defaults() -> None:
    """Rae et al. 2021, appendix A.1.1 and table A1; Raffel et al. 2020, section 2.2."""
    quality = Quality()
    assert (quality.min_words, quality.max_words, quality.min_word_length, quality.max_word_length) == (
        50,
        100_000,
        3,
        10,
    )
    assert (quality.max_symbols, quality.max_bullet_lines, quality.max_ellipsis_lines) == (0.1, 0.9, 0.3)
    assert (quality.min_letter_words, quality.min_stop_words) == (0.8, 2)
    assert judge_quality(GOOD, quality) == Fate.KEPT
    repetition = Repetition()
    assert (repetition.lines, repetition.paragraphs) == (0.3, 0.3)
    assert (repetition.line_characters, repetition.paragraph_characters) == (0.2, 0.2)
    assert repetition.top_n_grams == {2: 0.2, 3: 0.18, 4: 0.16}
    assert repetition.repeated_n_grams == {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
    assert (C4().min_sentences, C4().min_line_words) == (3, 5)


def test_repeated_parts() -> None:
    assert repeated_parts(["aa", "b", "aa", "aa", "c"]) == (2 / 5, 4 / 8)
    assert repeated_parts([]) == (0, 0)


@given(st.lists(st.sampled_from(["a", "bb", "ccc", "d"]), max_size=40), st.integers(2, 5))
def test_n_gram_shares_equal_their_plain_definitions(words: list[str], n: int) -> None:
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    total = max(sum(map(len, words)), 1)
    covered: set[int] = set()
    for i, gram in enumerate(grams):
        if gram in grams[:i]:
            covered |= set(range(i, i + n))
    hashes, lengths = hash_words(words), np.array([len(word) for word in words], dtype=np.int64)
    assert repeated_share(hashes, lengths, n) == sum(len(words[i]) for i in covered) / total
    counts = Counter(grams)
    most = max(counts.values(), default=0)
    sizes = [most * sum(map(len, gram)) for gram, count in counts.items() if count == most]
    assert top_share(hashes, lengths, n) == (min(1, max(sizes) / total) if most > 1 else 0)


def test_repetition_rules() -> None:
    source = Random(0)
    distinct = [" ".join(source.choices("abcdefghijklmnopqrstuvwxyz", k=9)) + f" w{n}" for n in range(40)]
    plain = "\n".join(distinct)
    assert judge_repetition(plain, Repetition()) == Fate.KEPT
    assert judge_repetition("\n".join(distinct + distinct[:18]), Repetition()) == Fate.REPEATED_LINES
    assert judge_repetition("\n\n".join(distinct + distinct[:18]), Repetition()) == Fate.REPEATED_PARAGRAPHS
    assert judge_repetition(" ".join(["buy now"] * 10 + distinct[:2]), Repetition()) == Fate.FREQUENT_N_GRAM
    twice = distinct[:8]
    assert judge_repetition(" ".join(distinct + twice), Repetition()) == Fate.REPEATED_N_GRAMS
    assert judge_repetition("", Repetition()) == Fate.KEPT


def test_c4_removes_lines_and_drops_pages() -> None:
    page = (
        "Menu\nThis is a sentence of words. And here comes another one!\n"
        "This one does not end properly\nPlease enable Javascript to see this page.\nToo short.\n"
        'She said: "I like longer lines."'
    )
    kept = 'This is a sentence of words. And here comes another one!\nShe said: "I like longer lines."'
    assert apply_c4(page, C4()) == (kept, Fate.KEPT, 4)
    assert apply_c4(page, C4(min_sentences=4))[1] == Fate.FEW_SENTENCES
    assert apply_c4(page + " Lorem Ipsum dolor.", C4())[1] == Fate.PLACEHOLDER
    assert apply_c4(page + "{", C4())[1] == Fate.BRACES
    loose = C4(terminal_punctuation=False, javascript=False, min_line_words=0, min_sentences=0, braces=False)
    assert apply_c4(page + "{", loose) == (page + "{", Fate.KEPT, 0)
    assert apply_c4("\n \n" + page, C4())[2] == 4, "lines without text are not counted"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to jo.doe+x@mail.example.org, or not", ("write to [EMAIL], or not", 1, 0)),
        ("a@b and x@y.z1 and @name and a@b..de", ("a@b and x@y.z1 and @name and a@b..de", 0, 0)),
        ("from 8.8.8.8.", ("from [IP].", 0, 1)),
        ("home 192.168.0.1 and 127.0.0.1", ("home 192.168.0.1 and 127.0.0.1", 0, 0)),
        ("not 1.2.3.4.5, 300.1.1.1, v1.2.3.4 nor 8.8.8.8a", ("not 1.2.3.4.5, 300.1.1.1, v1.2.3.4 nor 8.8.8.8a", 0, 0)),
        ("dns 2001:4860:4860::8888 and ::1", ("dns [IP] and ::1", 0, 1)),
        ("std::vector<int>::size at 12:30:45", ("std::vector<int>::size at 12:30:45", 0, 0)),
    ],
)
def test_scrub(text: str, expected: tuple[str, int, int]) -> None:
    assert scrub(text, Scrub()) == expected
    assert scrub(expected[0], Scrub()) == (expected[0], 0, 0)
    assert scrub(text, Scrub(emails=False, addresses=False)) == (text, 0, 0)


@pytest.mark.parametrize(
    "hostile", ["a" * 300_000, "a." * 150_000 + "@", "1." * 150_000, ":" * 300_000, "a@" * 150_000]
)
def test_scrub_does_not_backtrack(hostile: str) -> None:
    """Quadratic time on 300 KB would pass the test's time limit by far."""
    text, emails, addresses = scrub(hostile, Scrub())
    assert (text, emails + addresses) == (hostile, 0)


def test_languages() -> None:
    stage = LanguageStage(Language(keep=["de", "en"], min_confidence=0.5))
    assert stage.judge("Das ist ein ganz gewöhnlicher Satz in deutscher Sprache.") == ("de", Fate.KEPT)
    assert stage.judge("This is an ordinary sentence of the English language.") == ("en", Fate.KEPT)
    assert stage.judge("Ceci est une phrase tout à fait ordinaire en langue française.") == ("fr", Fate.LANGUAGE)
    assert LanguageStage(Language()).judge("春眠不觉晓，处处闻啼鸟。") == ("zh", Fate.KEPT)
    with pytest.raises(UserError, match=r"'klingon' is not one of .*en"):
        LanguageStage(Language(keep=["klingon"]))


@pytest.mark.parametrize(("package", "stages"), [("py3langid", {"language": {}})])
def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, package: str, stages: dict[str, Any]) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        UserError, match=rf"needs the package {package}: install it with `pip install 'lacuna\[data\]'`"
    ):
        Chain(StagesConfig.parse(stages, "stages"))


def test_stages_in_their_order() -> None:
    chain = Chain(StagesConfig.parse({"normalise": "NFKC", "scrub": {}, "quality": {**OFF, "min_words": 2}}, "stages"))
    outcome = chain.apply("\ufb01ne \uff21@mail.example.com")
    assert outcome == ("fine [EMAIL]", Fate.KEPT, "", True, 0, 1, 0)
    assert chain.apply("one").fate == Fate.TOO_SHORT
    assert Chain(StagesConfig()).apply("\ufb01 \u2028 kept") == ("\ufb01 \u2028 kept", Fate.KEPT, "", False, 0, 0, 0)


def test_words_and_n_grams() -> None:
    assert plain_words("It's 汉字, NOT ひ-abc汉!") == ["it", "s", "汉", "字", "not", "ひ", "abc", "汉"]
    words = hash_words(["a", "b", "a", "b", "a"])
    grams = n_grams(words, 2)
    assert len(grams) == 4
    assert grams[0] == grams[2] != grams[1] == grams[3]
    assert len(n_grams(words, 6)) == 0
    assert (
        len({int(n_grams(hash_words(list(order)), 3)[0]) for order in ("abc", "acb", "bac", "bca", "cab", "cba")}) == 6
    )


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"normalise": "NFX"}, "stages.normalise"),
        ({"near_duplicates": {"threshold": 1}}, "stages.near_duplicates.threshold"),
        ({"near_duplicate": {}}, "did you mean"),
        ({"decontaminate": {"against": []}}, "stages.decontaminate.against"),
        ({"quality": {"max_digits": 2}}, "stages.quality.max_digits"),
    ],
)
def test_bad_stages(build_config: Any, stages: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        build_config(stages=stages)
