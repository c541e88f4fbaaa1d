"""All that watches over a rank while it trains, put together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from parallel.mesh import Mesh
from parallel.waiting import PeerWaits
from pretrain.config import RunConfig
from pretrain.health.health import Health
from pretrain.health.signs import SignBoard
from pretrain.health.stragglers import Stragglers
from pretrain.health.traces import Traces
from pretrain.health.watchdog import Watchdog
from pretrain.run_directory import RunDirectory
from runtime.errors import Hang


@contextmanager
def attended(
    config: RunConfig, directory: RunDirectory, mesh: Mesh, attempt: int, token: int, end: Callable[[Hang], None]
) -> Iterator[Health]:
    """Watch over this rank; every rank calls this. `token`: the lease's. `end`: see `Watchdog`."""
    roles = mesh.gather((mesh.pipeline_rank, mesh.context_rank))
    board = SignBoard(directory.signs(attempt, token), mesh.world)

    def name_of(rank: int) -> str:
        sign = board.sign(rank)
        return f"rank {rank} on {sign.host}" if sign else f"rank {rank}"

    traces = Traces(directory, mesh.rank, config.profile)
    with PeerWaits() as waits:
        stragglers = Stragglers(roles) if mesh.rank == 0 else None
        health = Health(lambda: waits.seconds, stragglers, traces, name_of)
        watchdog = Watchdog(
            config.watchdog, board, mesh.rank, health.phases, lambda: waits.waiting, end, traces.look_for_request
        )
        with watchdog:
            yield health
            traces.close()
