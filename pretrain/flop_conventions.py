"""Ways to count the FLOPs of a training run, each with a name, so that no figure stands without one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pretrain.flops import forward_flops_per_token, six_nd, training_flops_per_token
from pretrain.shape import ModelShape

ConventionName = Literal["computed", "exact", "6nd", "6nd_printed", "6nd_total", "eth", "palm"]


@dataclass(frozen=True)
class Training:
    """What the FLOPs of a training token depend on: shape, sequence length, causal or not, share of head rows."""

    shape: ModelShape
    sequence_length: int
    causal: bool
    head_rows: float


@dataclass(frozen=True)
class Convention:
    """A rule for training FLOPs per token: what it counts, in words, and the rule."""

    name: ConventionName
    counts: str
    per_token: Callable[[Training], float]


def _computed(run: Training) -> float:
    return training_flops_per_token(run.shape, run.sequence_length, run.causal, run.head_rows).total


def _exact(run: Training) -> float:
    return training_flops_per_token(run.shape, run.sequence_length, run.causal).total


def _rule(run: Training) -> float:
    return six_nd(run.shape.parameters().non_embedding_matrices, 1)


def _rule_printed(run: Training) -> float:
    return six_nd(round(run.shape.parameters().non_embedding_matrices, -7), 1)


def _rule_total(run: Training) -> float:
    return six_nd(run.shape.parameters().total, 1)


def _eth(run: Training) -> float:
    return _rule(run) + 12.0 * run.shape.layers * run.shape.width * run.sequence_length


def _palm(run: Training) -> float:
    attention = forward_flops_per_token(run.shape, run.sequence_length, causal=False).attention
    return _rule_total(run) + 3 * attention


CONVENTIONS: dict[str, Convention] = {
    convention.name: convention
    for convention in (
        Convention("computed", "every matrix product of a step, head on the rows that count; MFU uses it", _computed),
        Convention("exact", "every matrix product, head on every position", _exact),
        Convention("6nd", "6·N·D, N the layers' matrices (LLaDA, SMDM)", _rule),
        Convention("6nd_printed", "6·N·D with N in hundredths of a billion, as LLaDA prints it", _rule_printed),
        Convention("6nd_total", "6·N·D, N all parameters (Chinchilla)", _rule_total),
        Convention("eth", "6·N·D and bidirectional attention, no head (arXiv 2512.10858)", _eth),
        Convention("palm", "6·N·D, N all parameters, and full attention (PaLM's MFU)", _palm),
    )
}
