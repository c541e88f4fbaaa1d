"""What a person reads: one line, and the nearest name."""

import pytest

from runtime.errors import LacunaError, PreflightError, Requeue, UserError, one_line, suggestion


def test_exit_codes_are_the_contract() -> None:
    assert [e.exit_code for e in (LacunaError, UserError, PreflightError, Requeue)] == [1, 2, 3, 75]
    assert issubclass(UserError, ValueError)


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("two\n  lines\r\nhere ", "two lines here"),
        ("", "ValueError"),
        ("bell \x07 and \x1b[2Jclear \x00", "bell \\x07 and \\x1b[2Jclear \\x00"),
        ("a lone \udcff and \u202e reversed", "a lone \\udcff and \\u202e reversed"),
        ("größer 漢字 ±", "größer 漢字 ±"),
    ],
)
def test_one_line_is_safe_for_a_terminal(message: str, line: str) -> None:
    assert one_line(ValueError(message)) == line


@pytest.mark.parametrize(
    ("name", "found"),
    [("stepz", " (did you mean 'steps'?)"), ("seeed", " (did you mean 'seed'?)"), ("xyz", ""), ("", "")],
)
def test_suggestion(name: str, found: str) -> None:
    assert suggestion(name, iter(["steps", "seed", "global_batch"])) == found
    assert suggestion(name, []) == ""
