"""What a step computes per token under a recipe's mask and layout: the FLOPs of HFU."""

from __future__ import annotations

from pretrain.config import RunConfig
from pretrain.flops import FlopCount, attended_positions, hardware_flops_per_token


def hardware_flops(config: RunConfig) -> FlopCount:
    """FLOPs per token of a step, recomputation and hidden pairs of positions included; the mean over ranks.

    Rows that fill up the head's last chunk are left out. A ring of context ranks keeps no scores, so `selective`
    recomputes nothing there.
    """
    layout, objective = config.parallel, config.objective
    ring = layout.context_exchange == "ring"
    recompute = "none" if ring and layout.recompute == "selective" else layout.recompute
    work = (config.model, config.train.sequence_length, objective.causal, objective.head_rows)
    return hardware_flops_per_token(*work, recompute, computed_positions(config))


def computed_positions(config: RunConfig) -> float:
    """Positions that attention computes for a token on average, hidden ones included.

    All of them where `pretrain.model.attention_mask` gives a mask: it is dense. A causal ring of c ranks computes its
    own part and the earlier ones, each whole: (c + 1)/2c of the sequence.
    """
    length, layout = config.train.sequence_length, config.parallel
    if not config.objective.causal or config.data.document_mask:
        return float(length)
    if layout.context > 1:
        ranks = layout.context
        return length * (ranks + 1) / (2 * ranks) if layout.context_exchange == "ring" else float(length)
    return attended_positions(length, causal=True)
