"""Invented verse: couplets of five characters that no poet wrote, as a fortune file."""

from launch.studies.couplets import Couplet

_FIRST = 0x4E00


def invented_couplets(count: int, characters: int = 5) -> list[Couplet]:
    """Couplets of characters in the order of their code points, none of them twice."""
    lines = [
        "".join(chr(_FIRST + number * characters + place) for place in range(characters)) for number in range(2 * count)
    ]
    return [Couplet(*lines[2 * number : 2 * number + 2]) for number in range(count)]


def fortune_file(couplets: list[Couplet]) -> str:
    """A poem of two couplets each, with a title and an author in colours, as the fortune package has them."""
    poems = [couplets[start : start + 2] for start in range(0, len(couplets), 2)]
    verses = ["\n".join(f"{one.first}，{one.second}。" for one in poem) for poem in poems]
    return "\n%\n".join(f"\x1b[32m《题》\x1b[m\n\x1b[33m作者：某某\x1b[m\n{verse}" for verse in verses) + "\n%\n"
