"""Questions with one right answer, asked of a trained model of either family, and how sure a share of hits is."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch

from inference.autoregressive_sampler import sample_autoregressive
from inference.sampler import SamplerConfig, sample
from inference.trained_model import TrainedModel
from runtime.errors import UserError

_ROWS = 128


class Question(NamedTuple):
    """A prompt, and the text that must follow on it up to the document's end."""

    prompt: str
    answer: str


def answered_exactly(trained: TrainedModel, questions: Sequence[Question]) -> list[bool]:
    """Whether the model continues each prompt by exactly the answer and EOS, sampled greedily.

    A masked model unmasks by low confidence (LLaDA, 2502.09992, Alg. 5), one token a pass; it is told how long the
    answer is, since it fills a given number of places. An autoregressive one goes from left to right.
    Raises UserError if a question with its answer is longer than the window that was trained.
    """
    tokenizer, window = trained.tokenizer, trained.config.train.sequence_length
    groups: dict[tuple[int, int], list[tuple[int, list[int], list[int]]]] = defaultdict(list)
    for number, question in enumerate(questions):
        prompt, answer = tokenizer.encode(question.prompt), [*tokenizer.encode(question.answer), tokenizer.eos_id]
        if len(prompt) + len(answer) > window:
            raise UserError(
                f"question {number} and its answer have {len(prompt) + len(answer)} tokens, the model's window has "
                f"{window}: ask shorter ones"
            )
        groups[len(prompt), len(answer)].append((number, prompt, answer))
    right = [False] * len(questions)
    for (_, length), asked in groups.items():
        for start in range(0, len(asked), _ROWS):
            rows = asked[start : start + _ROWS]
            said = _continue(trained, [prompt for _, prompt, _ in rows], length)
            for (number, _, answer), found in zip(rows, said, strict=True):
                right[number] = found == answer
    return right


def _continue(trained: TrainedModel, prompts: list[list[int]], length: int) -> list[list[int]]:
    """The `length` ids after each prompt, most probable ones first."""
    tokenizer = trained.tokenizer
    prompt_BP = torch.tensor(prompts, dtype=torch.int64, device=trained.device)
    forbidden = (tokenizer.pad_id, tokenizer.bos_id, tokenizer.mask_id)
    if trained.config.objective.kind == "masked":
        settings = SamplerConfig(length=length)
        result = sample(trained.predict, prompt_BP, settings, tokenizer.mask_id, 0, forbidden_ids=forbidden)
    else:
        result = sample_autoregressive(
            trained.predict, prompt_BP, length, tokenizer.bos_id, 0, forbidden_ids=forbidden
        )  # fmt: skip
    found: list[list[int]] = result.tokens[:, prompt_BP.shape[1] :].tolist()
    return found


def wilson_interval(hits: int, asked: int, z: float = 1.959964) -> tuple[float, float]:
    """The interval of a share of `hits` in `asked` independent trials (Wilson 1927); `z` = 1.96 is 95 %.

    It does not collapse at 0 and 1. Nothing asked says nothing: (0, 1).
    """
    assert 0 <= hits <= asked
    if not asked:
        return 0.0, 1.0
    share, weight = hits / asked, z * z / asked
    middle = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / asked + weight / (4 * asked))
    return max(0.0, middle - half), min(1.0, middle + half)
