"""Couplets of classical verse, and the statements and questions that are made of them.

A statement is `first，second`. A question is a line and a sign: `first→` asks which line comes next, `second←` which
comes before. Both are as long as a statement, so that nothing but the sign tells them apart.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from data_pipeline.order import derive_key
from inference.answers import Question

STATEMENT, NEXT, BEFORE = "，", "→", "←"
Direction = Literal["forward", "backward"]
DIRECTIONS: Sequence[Direction] = ("forward", "backward")
_CHARACTER = r"[\u3400-\u9fff]"


class Couplet(NamedTuple):
    """Two lines of equal length, the second of which follows on the first."""

    first: str
    second: str

    @property
    def statement(self) -> str:
        """The couplet as it is written."""
        return self.first + STATEMENT + self.second

    def question(self, direction: Direction) -> Question:
        """Which line comes next (forward) or before (backward)."""
        if direction == "forward":
            return Question(self.first + NEXT, self.second)
        return Question(self.second + BEFORE, self.first)


def couplets_of(poems: Iterable[str], characters: int) -> list[Couplet]:
    """The couplets of `characters` Chinese characters a line, in their order, each once.

    A verse is two such lines on a line of the poem, with `，` between them and `。？！；` at the end. Only couplets
    both of whose lines stand in no other couplet are kept: a question then has one right answer.
    """
    verse = re.compile(rf"({_CHARACTER}{{{characters}}})，({_CHARACTER}{{{characters}}})[。？！；]")
    matches = (verse.fullmatch(line.strip()) for poem in poems for line in poem.splitlines())
    found = list(dict.fromkeys(Couplet(match[1], match[2]) for match in matches if match))
    times = Counter(line for couplet in found for line in couplet)
    return [couplet for couplet in found if all(times[line] == 1 for line in couplet)]


def halves(couplets: Sequence[Couplet], seed: int = 0) -> tuple[list[Couplet], list[Couplet]]:
    """Couplets whose questions are trained on, and those whose questions are only asked, chosen by a keyed hash.

    The second half is the smaller one if their number is odd. Both keep the order of `couplets`.
    """
    ranked = sorted(couplets, key=lambda couplet: derive_key(seed, "asked", *couplet))
    seen = set(ranked[: -(-len(ranked) // 2)])
    return [c for c in couplets if c in seen], [c for c in couplets if c not in seen]


def documents(seen: Sequence[Couplet], unseen: Sequence[Couplet]) -> list[str]:
    """What is trained on: a statement of every couplet, and of the seen ones the questions with their answers."""
    statements = [couplet.statement for couplet in (*seen, *unseen)]
    asked = [couplet.question(direction) for couplet in seen for direction in DIRECTIONS]
    return statements + [question.prompt + question.answer for question in asked]
