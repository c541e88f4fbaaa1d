"""Text from a trained model of either family."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from inference.autoregressive_sampler import sample_autoregressive
from inference.sampler import SamplerConfig, sample
from inference.trained_model import TrainedModel
from inference.unmasking_view import render_unmasking
from runtime.errors import UserError


@dataclass(frozen=True)
class Generated:
    """Sampled text, the forward pass that revealed each token, and lines that show how it appeared."""

    text: str
    revealed_at: list[int]
    forwards: int
    frames: list[str]


def generate(trained: TrainedModel, prompt: str, settings: SamplerConfig, seed: int, frames: int = 6) -> Generated:
    """Continue `prompt` by `settings.length` tokens. Raises UserError if that exceeds the trained window."""
    tokenizer = trained.tokenizer
    window = trained.config.train.sequence_length
    ids = tokenizer.encode(prompt)
    if len(ids) + settings.length > window:
        raise UserError(
            f"prompt ({len(ids)} tokens) and --length {settings.length} exceed the model's {window} tokens: "
            f"use --length {max(1, window - len(ids))} or a shorter prompt"
        )
    prompt_BP = torch.tensor([ids], dtype=torch.int64, device=trained.device)
    forbidden = (tokenizer.pad_id, tokenizer.bos_id, tokenizer.mask_id)
    if trained.config.objective.kind == "masked":
        result = sample(trained.predict, prompt_BP, settings, tokenizer.mask_id, seed, forbidden_ids=forbidden)
    else:
        result = sample_autoregressive(
            trained.predict, prompt_BP, settings.length, tokenizer.bos_id, seed,
            temperature=settings.temperature, forbidden_ids=forbidden,
        )  # fmt: skip
    text = tokenizer.decode(result.tokens[0].tolist())
    lines = render_unmasking(result, lambda token: tokenizer.decode([token]), frames)
    return Generated(text, result.revealed_at[0].tolist(), result.forwards, lines)
