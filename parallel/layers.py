"""Building blocks of a model that is cut over tensor ranks.

With one tensor rank they are plain torch modules; with more they are megatron-core's tensor-parallel layers.
Shapes: S sequence (S/T with sequence parallelism), B batch, D width, F features, V vocabulary, T tensor ranks.
Every weight says which logical tensor it holds (see `parallel.logical`).
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from parallel.layout import chunk_rows, padded_vocabulary
from parallel.logical import Block, Rectangle, annotate, rows_block, whole_block
from parallel.mesh import Mesh
from parallel.vocab_loss import chunked_vocab_loss


def _no_initialisation(_weight: torch.Tensor) -> None:
    """Weights are initialised by logical name, not by layer: see `pretrain.initialise`."""


class PlainLinear(nn.Module):
    """y = x·Wᵀ without bias, on one tensor rank."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., inputs] → [..., outputs]."""
        return F.linear(x, self.weight)


class _FirstOutput(nn.Module):
    """A megatron linear layer returns (output, bias); the model wants the output."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    @property
    def weight(self) -> nn.Parameter:
        """This rank's shard."""
        return self.layer.weight  # type: ignore[return-value]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[0]


def column_linear(mesh: Mesh, config: Any, inputs: int, parts: dict[str, int]) -> nn.Module:
    """Fused matrices `parts` (logical name → output features), each cut by rows over tensor ranks.

    x [S, B, inputs] → [S, B, Σ parts / T], the parts of this rank one after the other.
    """
    ranks = mesh.layout.tensor
    outputs = sum(parts.values())
    layer = PlainLinear(inputs, outputs) if ranks == 1 else _megatron_column(config, inputs, outputs)
    blocks: list[Block] = []
    local = 0
    for name, features in parts.items():
        share = features // ranks
        blocks.append(rows_block(name, features, inputs, mesh.tensor_rank * share, share, local))
        local += share
    annotate(layer.weight, blocks)
    _mark_sharded(layer.weight, mesh, dim=0)
    return layer


def row_linear(mesh: Mesh, config: Any, inputs: int, outputs: int, name: str) -> nn.Module:
    """Matrix `name` cut by columns over tensor ranks: x [S, B, inputs / T] → [S, B, outputs], summed over ranks."""
    ranks = mesh.layout.tensor
    layer = PlainLinear(inputs, outputs) if ranks == 1 else _megatron_row(config, inputs, outputs)
    share = inputs // ranks
    box = Rectangle((0, 0), (outputs, share))
    annotate(layer.weight, [Block(name, (outputs, inputs), (0, mesh.tensor_rank * share), box)])
    _mark_sharded(layer.weight, mesh, dim=1)
    return layer


class Embedding(nn.Module):
    """Token embedding, cut by vocabulary: ids [B, S] → [S, B, D] ([S/T, B, D] with sequence parallelism).

    The vocabulary is padded to a multiple of the tensor ranks; the padding is no part of the logical tensor.
    """

    def __init__(self, mesh: Mesh, config: Any, name: str, vocabulary: int, width: int) -> None:
        super().__init__()
        padded = padded_vocabulary(vocabulary, mesh.layout.tensor)
        self._scattered = mesh.layout.sequence
        if mesh.layout.tensor == 1:
            self.table: nn.Module = nn.Embedding(padded, width, _weight=torch.empty(padded, width))
        else:
            from megatron.core import tensor_parallel

            self.table = tensor_parallel.VocabParallelEmbedding(
                padded, width, init_method=_no_initialisation, config=config, reduce_scatter_embeddings=self._scattered
            )
        annotate_vocabulary(self.table.weight, mesh, name, vocabulary, width)  # type: ignore[arg-type]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """int64 [B, S] → [S, B, D]."""
        x = self.table(ids)
        return x if self._scattered else x.transpose(0, 1).contiguous()


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dim, computed in float32 (Zhang & Sennrich 2019, eq. 4)."""

    def __init__(self, mesh: Mesh, name: str, width: int, epsilon: float) -> None:
        super().__init__()
        self._epsilon = epsilon
        self.weight = nn.Parameter(torch.empty(width))
        self.weight.sequence_parallel = mesh.layout.sequence  # type: ignore[attr-defined]
        annotate(self.weight, [whole_block(name, (width,))])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] → [..., D]."""
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self._epsilon)
        return (wide * scale).to(x.dtype) * self.weight


def annotate_vocabulary(weight: nn.Parameter, mesh: Mesh, name: str, vocabulary: int, width: int) -> int:
    """Say which rows of logical matrix `name` [vocabulary, width] this rank's padded shard holds; returns how many."""
    share = padded_vocabulary(vocabulary, mesh.layout.tensor) // mesh.layout.tensor
    first = mesh.tensor_rank * share
    count = max(0, min(share, vocabulary - first))
    annotate(weight, [rows_block(name, vocabulary, width, first, count, 0)])
    _mark_sharded(weight, mesh, dim=0)
    return count


def _mark_sharded(weight: nn.Parameter, mesh: Mesh, dim: int) -> None:
    """Tell the engines that tensor ranks hold different parts: their gradient norms count each element once."""
    if mesh.layout.tensor > 1:
        weight.tensor_model_parallel = True  # type: ignore[attr-defined]
        weight.partition_dim = dim  # type: ignore[attr-defined]
        weight.partition_stride = 1  # type: ignore[attr-defined]


def _megatron_column(config: Any, inputs: int, outputs: int) -> _FirstOutput:
    from megatron.core import tensor_parallel

    return _FirstOutput(
        tensor_parallel.ColumnParallelLinear(
            inputs,
            outputs,
            config=config,
            init_method=_no_initialisation,
            bias=False,
            gather_output=False,
            skip_bias_add=True,
        )
    )


def _megatron_row(config: Any, inputs: int, outputs: int) -> _FirstOutput:
    from megatron.core import tensor_parallel

    return _FirstOutput(
        tensor_parallel.RowParallelLinear(
            inputs,
            outputs,
            config=config,
            init_method=_no_initialisation,
            bias=False,
            input_is_parallel=True,
            skip_bias_add=True,
        )
    )


class VocabularyHead(nn.Module):
    """Output projection, cut by vocabulary, with the loss on the rows that count (`parallel.vocab_loss`)."""

    def __init__(self, mesh: Mesh, name: str, vocabulary: int, width: int, head_chunk: int) -> None:
        super().__init__()
        self._mesh = mesh
        self._head_chunk = head_chunk
        rows = padded_vocabulary(vocabulary, mesh.layout.tensor) // mesh.layout.tensor
        self.weight = nn.Parameter(torch.empty(rows, width))
        self._local_vocabulary = annotate_vocabulary(self.weight, mesh, name, vocabulary, width)

    def forward(
        self, x_SBD: torch.Tensor, rows_R: torch.Tensor, targets_R: torch.Tensor, weights_R: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Weighted loss sum (nats, scalar) and cross-entropy per row [R]; `rows_R` index the flattened [S, B]."""
        layout = self._mesh.layout
        # all positions of the micro-batch, so that the chunk does not depend on how many rows count
        positions = x_SBD.shape[0] * x_SBD.shape[1] * (layout.tensor if layout.sequence else 1)
        chunk = chunk_rows(self._head_chunk, positions)
        if layout.tensor == 1:
            hidden_RD = x_SBD.flatten(0, 1)[rows_R]
        else:
            from megatron.core import tensor_parallel

            if layout.sequence:
                whole = tensor_parallel.gather_from_sequence_parallel_region(x_SBD, tensor_parallel_output_grad=True)
                hidden_RD = whole.flatten(0, 1)[rows_R]
            else:
                hidden_RD = tensor_parallel.copy_to_tensor_model_parallel_region(x_SBD.flatten(0, 1)[rows_R])
        return chunked_vocab_loss(
            self._mesh, hidden_RD, self.weight, targets_R, weights_R, chunk, self._local_vocabulary
        )

    def logits(self, x_SBD: torch.Tensor) -> torch.Tensor:
        """Float32 logits [S, B, V]; one tensor rank only."""
        assert self._mesh.layout.tensor == 1, "logits are for inference on one tensor rank"
        return F.linear(x_SBD, self.weight).float()
