"""Bits per byte: a likelihood that can be compared between tokenizers."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from runtime.errors import UserError


class BitsPerByte(NamedTuple):
    """A ratio and its standard error, both in bits per byte."""

    value: float
    standard_error: float


def bits_per_byte(nats: torch.Tensor | Sequence[float], sizes: torch.Tensor | Sequence[int]) -> BitsPerByte:
    """Bits per byte of n windows from their nats [n] and their sizes in bytes of UTF-8 [n].

    The ratio estimator Σ nats / (ln 2 · Σ bytes) with its standard error by the delta method, windows taken
    as independent: √(n/(n−1) · Σ (nats_i − R·bytes_i)²) / Σ bytes / ln 2, R = Σ nats / Σ bytes (Cochran,
    Sampling Techniques, §6.4). Noise of Monte-Carlo estimates is part of it. NaN for a single window.
    Raises UserError if the lists differ in length, or are without a byte.
    """
    nats_n = torch.as_tensor(nats, dtype=torch.float64).cpu()
    bytes_n = torch.as_tensor(sizes, dtype=torch.float64).cpu()
    if nats_n.shape != bytes_n.shape or nats_n.ndim != 1:
        shapes = f"{tuple(nats_n.shape)} likelihoods, {tuple(bytes_n.shape)} sizes"
        raise UserError(f"bits per byte: {shapes}: give one of each a window")
    windows, total = len(nats_n), float(bytes_n.sum())
    if total <= 0 or bool((bytes_n < 0).any()):
        raise UserError("bits per byte: the windows hold no bytes: give the sizes of their texts in bytes")
    ratio = float(nats_n.sum()) / total
    if windows == 1:
        return BitsPerByte(ratio / math.log(2), math.nan)
    residuals_n = nats_n - ratio * bytes_n
    error = math.sqrt(windows / (windows - 1) * float(residuals_n.square().sum())) / total
    return BitsPerByte(ratio / math.log(2), error / math.log(2))
