"""Texts that the tests build datasets of."""

import random

PROSE = "the sea fills every lacuna of an old manuscript with 12 blue words"
WORDS = [*PROSE.split(" "), "\n\tdef f(x):", "**"]
HOSTILE = [
    "a literal \u2581 and \u2581\u2581 double",
    "<mask> <s></s> <pad> <unk> <0x41>",
    "nul \0 cr \r\n u2028 \u2028 \u2029 \x85",
    "emoji \U0001f600\U0001f469\u200d\U0001f52c 汉字 \ufeffbom",
]


def documents(count: int, seed: int) -> list[str]:
    """Texts of 1 to 60 words."""
    source = random.Random(seed)
    return [" ".join(source.choices(WORDS, k=source.randint(1, 60))) + f" {n}" for n in range(count)]
