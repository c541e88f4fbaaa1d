"""A micro-batch as the model sees it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class MicroBatch:
    """Inputs and the rows that count. Legend: B sequences, S positions, R counting rows.

    `inputs_BS` token ids. `rows_R` index of the row in the flattened [S, B] activations, its target, its weight
    in the loss and the bin of its noise level (0..LEVEL_BINS-1). `lengths_B` logical lengths if any sequence
    is shorter than S: positions beyond it neither attend nor count. `documents_BS` numbers of documents, of the whole
    sequence on every context rank, if positions see only those of the same number; it then says what padding is, too.
    """

    inputs_BS: torch.Tensor
    rows_R: torch.Tensor
    targets_R: torch.Tensor
    weights_R: torch.Tensor
    levels_R: torch.Tensor
    lengths_B: torch.Tensor | None
    documents_BS: torch.Tensor | None = None

    def to(self, device: torch.device) -> MicroBatch:
        """The same batch on another device."""
        if device == self.inputs_BS.device:
            return self
        moved = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, torch.Tensor)
        }
        return replace(self, **moved)
