"""One rank's part of an examination: alone, under torchrun or under srun."""

from __future__ import annotations

import datetime
import os
import socket
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from launch.doctor.diagnose import diagnose
from launch.doctor.local import (
    Subject,
    import_problems,
    look_at_data,
    machine_problems,
    run_problems,
    tracking_problems,
    versions,
)
from launch.doctor.report import Diagnosis, Problem, RankReport
from launch.slurm.client import call
from runtime.environment import RankInfo, node_name
from runtime.errors import PreflightError, one_line


def examine(subject: Subject, rank: RankInfo, patience: float) -> Diagnosis:
    """Look, measure together with the other ranks, and judge; every rank comes to the same diagnosis.

    Raises PreflightError if the others do not come within `patience` seconds.
    """
    problems = import_problems(all_of_them=rank.local_rank == 0)
    if not any(problem.text.startswith("cannot import torch:") for problem in problems):
        return _together(subject, rank, patience, problems)
    # without torch there is no meeting the others: they will miss this rank
    return diagnose([_report(subject, rank, problems, 0.0, 0.0)], [])


def _together(subject: Subject, rank: RankInfo, patience: float, problems: list[Problem]) -> Diagnosis:
    from launch.doctor.measure import measure

    with _joined(rank, patience):
        measured = measure(rank, _gather(rank, node_name()))
        report = _report(subject, rank, problems, measured.gemm, measured.clock)
        return diagnose(_gather(rank, report), measured.bandwidths)


def _report(subject: Subject, rank: RankInfo, problems: list[Problem], gemm: float, clock: float) -> RankReport:
    """What is the same for all of a node is looked at by one rank of it."""
    found, (digests, unreadable) = list(problems), look_at_data(subject)
    if rank.local_rank == 0:
        found += [*machine_problems(), *run_problems(subject), *unreadable]
    if rank.is_first:
        found += tracking_problems(subject)
    return RankReport(rank.rank, node_name(), tuple(found), versions(), digests, gemm, clock)


def _gather(rank: RankInfo, value: Any) -> list[Any]:
    if rank.world == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * rank.world
    dist.all_gather_object(values, value)
    return values


@contextmanager
def _joined(rank: RankInfo, patience: float) -> Iterator[None]:
    """A process group of all ranks, if there are several."""
    if rank.world == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    name_meeting_point(os.environ)
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(rank.local_rank)
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            rank=rank.rank,
            world_size=rank.world,
            timeout=datetime.timedelta(seconds=patience),
        )
    except (dist.DistError, RuntimeError, ValueError) as error:
        raise PreflightError(
            f"{node_name()}: not all {rank.world} ranks have met within {patience:g} s ({one_line(error):.200})"
        ) from None
    try:
        yield
    except dist.DistError as error:
        raise PreflightError(f"{node_name()}: lost the other ranks ({one_line(error):.200})") from None
    finally:
        dist.destroy_process_group()


def name_meeting_point(variables: MutableMapping[str, str]) -> None:
    """Set MASTER_ADDR and MASTER_PORT for a Slurm step whose script has not. Raises PreflightError outside of one."""
    if variables.get("MASTER_ADDR") and variables.get("MASTER_PORT"):
        return
    listed = variables.get("SLURM_STEP_NODELIST") or variables.get("SLURM_JOB_NODELIST")
    if not listed:
        raise PreflightError("MASTER_ADDR and MASTER_PORT are not set: start with torchrun, srun or --processes")
    first = call("scontrol", "show", "hostnames", listed).split()[0]
    try:
        socket.getaddrinfo(first, None)
    except OSError:
        words = call("scontrol", "show", "node", first).split()
        first = next((word.partition("=")[2] for word in words if word.startswith("NodeAddr=")), first)
    job, step = int(variables.get("SLURM_JOB_ID") or 0), int(variables.get("SLURM_STEP_ID") or 0)
    variables.update({"MASTER_ADDR": first, "MASTER_PORT": str(20000 + (7 * job + step) % 20000)})
