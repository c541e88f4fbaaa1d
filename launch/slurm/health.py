"""`python -m launch.slurm.health RUN ATTEMPT`, once on every node before the ranks start: is the node fit?

A node reports into the attempt's logs; one that cannot even do that is known by the lack of its report.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from launch.slurm.record import read_submission
from pretrain.run_directory import RunDirectory
from runtime.environment import describe_machine
from runtime.errors import PreflightError, UserError
from runtime.files import digest_file, read_json, write_json


def note_expectations(directory: RunDirectory, attempt: int) -> None:
    """Note what the first node sees, for the others to compare."""
    write_json(_expected(directory, attempt), _sight(directory))


def check_node(root: Path, attempt: int, node: str) -> list[str]:
    """Check the node this process runs on and write its report. Returns its faults, one line each."""
    directory = RunDirectory(root)
    faults = list(_faults(directory, attempt))
    write_json(_report(directory, attempt, node), {"node": node, "faults": faults})
    return faults


def unfit_nodes(directory: RunDirectory, attempt: int, nodes: Sequence[str]) -> dict[str, str]:
    """Those of `nodes` that reported a fault, or nothing, each with the reason."""
    reasons: dict[str, str] = {}
    for node in nodes:
        path = _report(directory, attempt, node)
        faults = read_json(path)["faults"] if path.exists() else ["the health check did not report"]
        if faults:
            reasons[node] = "; ".join(faults)
    return reasons


def _faults(directory: RunDirectory, attempt: int) -> Iterator[str]:
    expected, here = read_json(_expected(directory, attempt)), _sight(directory)
    if here["config"] != expected["config"]:
        yield f"sees another {directory.config} than the first node"
    for package, version in expected["packages"].items():
        if here["packages"].get(package) != version:
            yield f"has {package} {here['packages'].get(package)}, the first node has {version}"
    submission = read_submission(directory)
    for path in submission.data if submission else []:
        try:
            read_json(Path(path) / "manifest.json")
        except UserError as error:
            yield f"data: {error}"
    folder = os.environ.get("TMPDIR")
    try:
        if folder:
            Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(1 << 20))
            probe.flush()
    except OSError as error:
        yield f"temporary files: {error}"


def _sight(directory: RunDirectory) -> dict[str, Any]:
    machine = describe_machine()
    return {"config": digest_file(directory.config), "packages": {**_dictionary(machine["packages"])}} | {
        "python": machine["python"]
    }


def _dictionary(value: object) -> dict[str, str]:
    assert isinstance(value, dict)
    return value


def _expected(directory: RunDirectory, attempt: int) -> Path:
    return directory.logs(attempt) / "first-node.json"


def _report(directory: RunDirectory, attempt: int, node: str) -> Path:
    return directory.logs(attempt) / f"node-{node}.json"


def main(arguments: list[str]) -> int:
    """Entry point; returns the exit code."""
    node = os.environ.get("SLURMD_NODENAME", "unknown")
    faults = check_node(Path(arguments[0]), int(arguments[1]), node)
    for fault in faults:
        print(f"lacuna: {node} {fault}", file=sys.stderr)
    return PreflightError.exit_code if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
