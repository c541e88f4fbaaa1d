"""Errors a person reads: one line that names the key, file or rank, and the mend."""

import difflib
from collections.abc import Iterable


class LacunaError(Exception):
    """An error with a message for people; `exit_code` is the process's exit status."""

    exit_code = 1


class UserError(LacunaError, ValueError):
    """Something the user can mend: a key, a file, a combination of options. Exit code 2."""

    exit_code = 2


class PreflightError(LacunaError):
    """A machine or service is not fit for the run. Exit code 3."""

    exit_code = 3


class ProofFailed(LacunaError):
    """What was to be proved is not so; the message names the first contradiction. Exit code 3."""

    exit_code = 3


class Requeue(LacunaError):
    """The run stopped early on request, saved its state and wants to be started again. Exit code 75."""

    exit_code = 75


class Hang(LacunaError):
    """A rank hung, and all ranks were ended; the run wants to be started again. Exit code 76."""

    exit_code = 76


def suggestion(name: str, known: Iterable[str], section: str = "") -> str:
    """Return ` (did you mean 'section.x'?)` for the nearest of `known`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {f'{section}.{close[0]}'.lstrip('.')!r}?)" if close else ""


def one_line(error: BaseException) -> str:
    """The message of `error` on a single line, safe for a terminal and a log: control characters are spelt out."""
    text = " ".join((str(error) or type(error).__name__).split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
