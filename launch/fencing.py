"""The lease of an attempt, seen from its ranks: rank 0 holds it, all ranks know."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from pretrain.run_directory import RunDirectory
from runtime.errors import LacunaError
from runtime.lease import Fence, Lease, LeaseConfig

if TYPE_CHECKING:
    from parallel.mesh import Mesh

LAUNCHER = "LACUNA_LAUNCHER"
"""Process number of the launcher that started this worker and tells its errors. Not set under plain torchrun or
srun: there each rank tells its own errors, and rank 0 takes the lease."""
LAUNCHER_LEASE = "LACUNA_LAUNCHER_LEASE"
"""Token of the lease that the launcher has taken; rank 0 adopts it."""


@contextmanager
def fenced(directory: RunDirectory, config: LeaseConfig, mesh: Mesh, lease: Lease | None) -> Iterator[Fence]:
    """Hold the attempt's lease on rank 0 and keep it alive; every rank calls this.

    `lease` is given if this process holds it already. Raises UserError on all ranks if another process trains here.
    """
    failure: LacunaError | None = None
    with ExitStack() as stack:
        if mesh.rank == 0 and lease is None:
            try:
                lease = _take(directory, config, stack)
            except LacunaError as error:
                failure = error
        failure, token = mesh.gather((failure, lease.token if lease else 0))[0]
        if failure is not None:
            raise failure
        yield Fence(token, lease.check) if lease else Fence(token)


def _take(directory: RunDirectory, config: LeaseConfig, stack: ExitStack) -> Lease:
    token = os.environ.get(LAUNCHER_LEASE)
    if token is not None:
        lease = Lease.adopt(directory.root, int(token))
    else:
        lease = Lease.acquire(directory.root, config)
        stack.callback(lease.release)
    stack.enter_context(lease.kept(config.heartbeat))
    return lease
