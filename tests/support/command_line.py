"""The product as its users start it: a process, its exit code, and its two streams."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from runtime.files import digest_file

LACUNA = [sys.executable, "-m", "launch.cli"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def lacuna(*arguments: str | Path, timeout: float = 240, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `lacuna ARGUMENTS…` to its end, with further environment variables."""
    command = [*LACUNA, *map(str, arguments)]
    environment = ENVIRONMENT | variables
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=timeout, env=environment, stdin=subprocess.DEVNULL
    )


def succeeded(result: subprocess.CompletedProcess[str]) -> str:
    """Standard output of a command that must have ended well."""
    assert result.returncode == 0, result.stderr
    return result.stdout


def refusal(result: subprocess.CompletedProcess[str], code: int = 2) -> str:
    """The one line on standard error of a command that must have been refused."""
    assert result.returncode == code, result.stdout + result.stderr
    assert result.stderr.startswith("lacuna: "), result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr.removeprefix("lacuna: ").rstrip("\n")


def contents(directory: Path) -> dict[str, str]:
    """Digest of every file below `directory`, by path: equal before and after means that nothing was changed."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): digest_file(path) for path in files}
