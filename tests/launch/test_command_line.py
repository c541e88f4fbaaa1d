"""The command itself: quick to answer, one line for a slip of the finger."""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

from tests.support.command_line import ENVIRONMENT, LACUNA, refusal

Here = Callable[..., "CompletedProcess[str]"]
HEAVY = ("torch", "megatron", "deepspeed", "mlflow", "pyarrow", "numpy", "pydantic")


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import json, sys\n"
        "from launch.cli import main\n"
        "sys.argv = ['lacuna', '--help']\n"
        "try: main()\n"
        "except SystemExit as end: code = end.code\n"
        "print(json.dumps([code, list(sys.modules)]), file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=ENVIRONMENT)
    code, modules = json.loads(result.stderr)
    assert code == 0
    assert not set(HEAVY) & set(modules)
    for command_name in ("train", "plan", "demo", "sample", "evaluate", "data", "checkpoint", "config", "track"):
        assert f" {command_name} " in result.stdout


def test_help_takes_less_than_half_a_second_of_processor_time() -> None:
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*LACUNA, "--help"], stdout=subprocess.DEVNULL, check=True, timeout=60, env=ENVIRONMENT)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert min(seconds) < 0.5


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["train"], "Missing argument 'recipe'.: see `lacuna train --help`"),
        (["train", "demo", "--foo"], "No such option: --foo: see `lacuna train --help`"),
        (["traim"], "No such command 'traim'"),
        (["data", "verify"], "Missing argument 'path'"),
        (["train", "demo", "--processes", "0"], "Invalid value for '--processes'"),
        (["train", "demo", "--until", "soon"], "Invalid value for '--until'"),
        (["sample", "nowhere", "--length", "0"], "Invalid value for '--length'"),
    ],
)
def test_a_slip_of_the_finger_is_one_line(here: Here, arguments: list[str], line: str) -> None:
    assert refusal(here(*arguments)).startswith(line)


@pytest.mark.parametrize("arguments", [[], ["data"], ["checkpoint"]])
def test_no_command_shows_the_help(here: Here, arguments: list[str]) -> None:
    result = here(*arguments)
    assert result.returncode == 2
    assert "--help" in result.stdout + result.stderr


def test_debug_shows_the_traceback() -> None:
    command = [*LACUNA, "--debug", "config", "show", "nothing"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=ENVIRONMENT)
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "UserError" in result.stderr
