"""Rules about words and lines of a document, see `data_pipeline.stages.config` for their sources."""

import re
from collections.abc import Iterator
from itertools import chain

from data_pipeline.fates import Fate
from data_pipeline.stages.config import C4, Quality

_BULLETS = (
    "\u2022",
    "\u2023",
    "\u25b6",
    "\u25c0",
    "\u25e6",
    "\u25a0",
    "\u25a1",
    "\u25aa",
    "\u25ab",
    "\u2013",
    "-",
    "*",
)
_ELLIPSES = ("...", "\u2026")
_STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}
_TERMINAL = (".", "!", "?", '"', "\u201d", "\u2019", "\u3002", "\uff01", "\uff1f")
_SENTENCE_END = re.compile(r"[.!?\u3002\uff01\uff1f]+[\"'\u201d\u2019)\]]*(?=\s|$)")


def judge_quality(text: str, rules: Quality) -> Fate:
    """The first rule that a document breaks, or KEPT."""
    words = text.split()
    if len(words) < rules.min_words:
        return Fate.TOO_SHORT
    if len(words) > rules.max_words:
        return Fate.TOO_LONG
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    broken = (fate for fate, breaks in chain(_word_rules(text, words, rules), _line_rules(lines, rules)) if breaks)
    return next(broken, Fate.KEPT)


def _word_rules(text: str, words: list[str], rules: Quality) -> Iterator[tuple[Fate, bool]]:
    count = max(len(words), 1)
    yield Fate.WORD_LENGTH, not rules.min_word_length <= sum(map(len, words)) / count <= rules.max_word_length
    ellipses = sum(text.count(sign) for sign in _ELLIPSES)
    yield Fate.SYMBOLS, max(text.count("#"), ellipses) > rules.max_symbols * count
    if rules.max_digits < 1:
        yield Fate.DIGITS, sum(map(str.isdigit, text)) > rules.max_digits * len(text)
    yield Fate.FEW_LETTERS, sum(any(map(str.isalpha, word)) for word in words) < rules.min_letter_words * len(words)
    stop_words = _STOP_WORDS.intersection(word.lower() for word in words)
    yield Fate.FEW_STOP_WORDS, len(stop_words) < rules.min_stop_words


def _line_rules(lines: list[str], rules: Quality) -> Iterator[tuple[Fate, bool]]:
    bullets, ellipses = (sum(map(test, lines)) for test in (_begins_with_bullet, _ends_with_ellipsis))
    yield Fate.BULLETS, bullets > rules.max_bullet_lines * len(lines)
    yield Fate.ELLIPSES, ellipses > rules.max_ellipsis_lines * len(lines)


def _begins_with_bullet(line: str) -> bool:
    return line.startswith(_BULLETS)


def _ends_with_ellipsis(line: str) -> bool:
    return line.endswith(_ELLIPSES)


def apply_c4(text: str, rules: C4) -> tuple[str, Fate, int]:
    """The document without the lines that break a rule, the first rule about pages that it breaks, or KEPT, and how
    many lines with text were cut."""
    if rules.placeholder and "lorem ipsum" in text.lower():
        return text, Fate.PLACEHOLDER, 0
    if rules.braces and "{" in text:
        return text, Fate.BRACES, 0
    lines = text.split("\n")
    kept = [line for line in lines if _stays(line, rules)]
    cut = sum(map(_has_text, lines)) - sum(map(_has_text, kept))
    text = "\n".join(kept)
    sentences = len(_SENTENCE_END.findall(text))
    return text, Fate.KEPT if sentences >= rules.min_sentences else Fate.FEW_SENTENCES, cut


def _has_text(line: str) -> bool:
    return bool(line.strip())


def _stays(line: str, rules: C4) -> bool:
    if rules.terminal_punctuation and not line.rstrip().endswith(_TERMINAL):
        return False
    if rules.javascript and "javascript" in line.lower():
        return False
    return len(line.split()) >= rules.min_line_words
