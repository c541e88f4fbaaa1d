"""Context parallelism for attention: every rank has a part of the sequence's queries and all of its keys and values.

Bidirectional attention needs no zig-zag order: every query sees every key, so contiguous parts are balanced.
"""

from __future__ import annotations

import torch

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
