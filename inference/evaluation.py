"""Held-out likelihood of a trained model: the masked-diffusion bound or the exact autoregressive one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from data_pipeline.config import DataConfig
from data_pipeline.dataset import TokenDataset
from data_pipeline.order import Permutation
from inference.bits_per_byte import bits_per_byte
from inference.likelihood import autoregressive_nll, masked_bound
from inference.trained_model import TrainedModel
from runtime.errors import UserError
from runtime.progress import ProgressBar

_ROWS = 32


@dataclass(frozen=True)
class HeldOut:
    """Likelihood of held-out windows: bits per byte and nats per token, each with its standard error over windows.

    `kind` is "upper bound" (masked diffusion, stratified l-form with `draws` draws a window) or "exact".
    """

    kind: str
    bits_per_byte: float
    standard_error: float
    nats_per_token: float
    windows: int
    tokens: int
    draws: int
    nats_standard_error: float


def evaluate(trained: TrainedModel, windows: int, draws: int, seed: int = 0, show_progress: bool = True) -> HeldOut:
    """Score `windows` windows of the validation split, the same ones for every model on the same data.

    Raises UserError if a dataset has no validation split.
    """
    length = trained.config.train.sequence_length
    tokens = torch.from_numpy(held_out_windows(trained.config.data, length, windows, seed))
    count = len(tokens)
    sizes = torch.from_numpy(trained.tokenizer.byte_lengths())[tokens].sum(1)
    masked = trained.config.objective.kind == "masked"
    nats: list[torch.Tensor] = []
    with ProgressBar("evaluate", count, visible=show_progress) as bar:
        for start in range(0, count, _ROWS):
            rows = tokens[start : start + _ROWS].to(trained.device)
            nats.append(
                _score(trained, rows, draws, seed, start)
                if masked
                else autoregressive_nll(trained.predict, rows, trained.tokenizer.bos_id, _ROWS)
            )
            bar.advance(len(rows))
    total = torch.cat(nats).cpu()
    value, error = bits_per_byte(total, sizes)
    kind = "upper bound" if masked else "exact"
    nats_error = float(total.std()) / length / count**0.5 if count > 1 else float("nan")
    mean = float(total.mean()) / length
    return HeldOut(kind, value, error, mean, count, count * length, draws if masked else 1, nats_error)


def held_out_windows(data: DataConfig, length: int, windows: int, seed: int) -> npt.NDArray[np.int64]:
    """At most `windows` windows of the validation splits, [windows, length]; sources of a mixture by their weights.

    Raises UserError naming a dataset whose validation split has no window, or if samples are not cut from the stream.
    """
    if data.packing != "stream":
        raise UserError(
            f"data.packing={data.packing}: held-out windows are cut from the stream: use data.packing=stream"
        )
    sources = data.sources()
    whole = sum(weight for _, weight in sources)
    chosen: list[npt.NDArray[np.int64]] = []
    for path, weight in sources:
        dataset = TokenDataset(path, "validation", data.remote)
        available = dataset.windows(length)
        if not available:
            raise UserError(
                f"{dataset.path}: its validation split has no window of {length} tokens: build with a larger validation"
            )
        order = Permutation(available, key=seed)
        count = min(max(1, round(windows * weight / whole)), available)
        chosen += [dataset.window(order(i), length).astype(np.int64) for i in range(count)]
    return np.stack(chosen)


def _score(trained: TrainedModel, rows: torch.Tensor, draws: int, seed: int, first: int) -> torch.Tensor:
    bound = masked_bound(
        trained.predict, rows, trained.tokenizer.mask_id, draws, seed, first_index=first, batch_rows=_ROWS
    )
    return bound.nats
