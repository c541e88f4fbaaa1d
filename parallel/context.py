"""Context parallelism for attention: every rank has a part of the sequence's queries and meets all keys and values.

They are gathered, or travel round the ranks (`parallel.ring`). Bidirectional attention needs no zig-zag order: every
query sees every key, so contiguous parts are balanced.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist

from parallel.mesh import Mesh


def gather_sequence(mesh: Mesh, x_SBKH: torch.Tensor) -> torch.Tensor:
    """[S/C, B, K, H] of each context rank → [S, B, K, H] on all; its gradient is summed and scattered back."""
    if mesh.layout.context == 1:
        return x_SBKH
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

    return gather_from_sequence_parallel_region(x_SBKH, group=parallel_state.get_context_parallel_group())


def local_positions(mesh: Mesh, local_length: int, device: torch.device) -> torch.Tensor:
    """Positions in the whole sequence of this rank's part, int64 [S/C]."""
    return torch.arange(local_length, device=device) + mesh.context_rank * local_length


class ContextPeers:
    """The context group as a ring of ranks, for `parallel.ring`."""

    def __init__(self, mesh: Mesh) -> None:
        from megatron.core import parallel_state

        self.rank, self.size = mesh.context_rank, mesh.layout.context
        self._group = parallel_state.get_context_parallel_group()

    def pass_on(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        """See `parallel.ring.Peers`. `tensor` must not change before the wait is over."""
        received = torch.empty_like(tensor)
        after, before = (self.rank + 1) % self.size, (self.rank - 1) % self.size
        # every rank posts the same exchanges in the same order, so that they meet without tags, which NCCL lacks
        works = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, tensor, group=self._group, group_peer=after),
                dist.P2POp(dist.irecv, received, group=self._group, group_peer=before),
            ]
        )

        def wait(_sent: torch.Tensor = tensor) -> torch.Tensor:  # keeps what is sent alive
            for work in works:
                work.wait()
            return received

        return wait
