"""`python -m launch.slurm.health RUN ATTEMPT [--measure]`, on every node before the ranks start: is the node fit?

A node reports into the attempt's logs; one that cannot even do that is known by the lack of its report. With
`--measure`, for which there must be as many processes as ranks, `lacuna doctor`'s measurements follow.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.config import RemoteConfig
from launch.doctor.examine import examine
from launch.doctor.local import Subject, look_at_data, machine_problems
from launch.slurm.record import read_submission
from pretrain.run_directory import RunDirectory
from runtime.environment import RankInfo, describe_machine, node_name
from runtime.errors import LacunaError, PreflightError, one_line
from runtime.files import digest_file, read_json, write_json
from runtime.settings import read_yaml

_PATIENCE = 120.0


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
    """Those of `nodes` that reported a fault, or nothing, or were measured as bad, each with the reason."""
    measured = _measured(directory, attempt)
    reasons: dict[str, str] = dict(read_json(measured)["exclude"]) if measured.exists() else {}
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
    subject = Subject(data=submission.data if submission else [], remote=_remote(directory))
    yield from (problem.text for problem in [*look_at_data(subject)[1], *machine_problems()])


def _remote(directory: RunDirectory) -> RemoteConfig:
    """How the run's data in an object store is reached."""
    data = read_yaml(directory.config).get("data")
    return RemoteConfig.parse(data.get("remote", {}) if isinstance(data, dict) else {}, str(directory.config))


def _sight(directory: RunDirectory) -> dict[str, Any]:
    machine = describe_machine()
    return {"config": digest_file(directory.config), "packages": {**_dictionary(machine["packages"])}} | {
        "python": machine["python"]
    }


def _dictionary(value: object) -> dict[str, str]:
    assert isinstance(value, dict)
    return value


def _measure(directory: RunDirectory, attempt: int, rank: RankInfo) -> dict[str, str]:
    """Nodes that are bad in comparison, each with the reason. Raises PreflightError if the ranks do not meet."""
    diagnosis = examine(Subject(), rank, _PATIENCE)
    if rank.is_first:
        write_json(_measured(directory, attempt), diagnosis.as_dict())
    return dict(diagnosis.exclude)


def _measured(directory: RunDirectory, attempt: int) -> Path:
    return directory.logs(attempt) / "doctor.json"


def _expected(directory: RunDirectory, attempt: int) -> Path:
    return directory.logs(attempt) / "first-node.json"


def _report(directory: RunDirectory, attempt: int, node: str) -> Path:
    return directory.logs(attempt) / f"node-{node}.json"


def main(arguments: list[str]) -> int:
    """Entry point; returns the exit code."""
    root, attempt, *options = arguments
    measures = "--measure" in options
    # without measurements there is one process a node, and only it speaks
    rank = RankInfo.from_environment() if measures else RankInfo()
    node, faults, well = node_name(), [], True
    if rank.local_rank == 0:
        faults = check_node(Path(root), int(attempt), node)
    if measures:
        try:
            bad = _measure(RunDirectory(Path(root)), int(attempt), rank)
        except LacunaError as error:
            faults.append(one_line(error))
        else:
            well = not bad
            faults += [bad[node]] if node in bad and rank.local_rank == 0 else []
    for fault in faults:
        print(f"lacuna: {node} {fault}", file=sys.stderr)
    return 0 if well and not faults else PreflightError.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
