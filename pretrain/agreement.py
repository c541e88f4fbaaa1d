"""What all ranks agree on before a step is computed."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from parallel.mesh import Mesh
from pretrain.feed import StepBatch

_SIGNED = 1 << 63
_NANO = 1_000_000_000


@dataclass(frozen=True)
class Agreement:
    """What all ranks know of a step before they compute it: counting tokens, batch digest, whether to stop.

    `saving` are the sums of their votes on the save that is under way; `worked` are the seconds of each rank's own
    work in the step before. `waited`: the longest time, in seconds, that any rank has waited for its batch. `damaged`:
    whether any rank met damage in the step's data.
    """

    tokens: int
    digest: str
    stop: bool
    saving: tuple[int, int] = (0, 0)
    worked: tuple[float, ...] = field(default=(), compare=False)
    waited: float = field(default=0.0, compare=False)
    damaged: bool = False


def agree(
    mesh: Mesh,
    batch: StepBatch,
    stop: bool,
    votes: tuple[int, int] = (0, 0),
    worked: float = 0.0,
    waited: float = 0.0,
) -> Agreement:
    """One small sum over the world: counting tokens and digest words of each data rank, of all ranks stop requests,
    samples that they leave out and `votes`, and `worked` and `waited` seconds in a place for each rank.
    """
    signed = [(word + _SIGNED) % (2 * _SIGNED) - _SIGNED for word in batch.digest]
    share = torch.tensor([batch.tokens, *signed], dtype=torch.int64)
    if not mesh.speaks_for_data_rank:
        share.zero_()
    wishes = torch.tensor([int(stop), len(batch.quarantined), *votes], dtype=torch.int64)
    nanoseconds = torch.zeros(2 * mesh.world, dtype=torch.int64)
    nanoseconds[mesh.rank], nanoseconds[mesh.world + mesh.rank] = round(worked * _NANO), round(waited * _NANO)
    total = mesh.sum_all(torch.cat([share, wishes, nanoseconds])).tolist()
    tokens, low, high, stops, damaged, done, failed, *times = total
    digest = f"{high % (2 * _SIGNED):016x}{low % (2 * _SIGNED):016x}"
    seconds = tuple(time / _NANO for time in times)
    work, waits = seconds[: mesh.world], seconds[mesh.world :]
    return Agreement(tokens, digest, stops > 0, (done, failed), work, max(waits), damaged > 0)
