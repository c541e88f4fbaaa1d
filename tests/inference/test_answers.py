"""Exact answers of models whose every logit is known, and Wilson's interval against its definition."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy.stats import binomtest

from inference.answers import Question, answered_exactly, wilson_interval
from runtime.errors import UserError

PAD, BOS, EOS, MASK = 0, 1, 2, 3
LETTERS = "abcdefgh"
VOCABULARY = 4 + len(LETTERS)


class Letters:
    """A tokenizer of eight letters."""

    pad_id, bos_id, eos_id, mask_id = PAD, BOS, EOS, MASK

    def encode(self, text: str) -> list[int]:
        return [4 + LETTERS.index(letter) for letter in text]


@dataclass
class Known:
    """Prefers at each place what `texts` have there, by the first text that agrees with what is visible."""

    texts: list[str]
    kind: str
    window: int = 12

    def __post_init__(self) -> None:
        self.tokenizer, self.device = Letters(), torch.device("cpu")
        train, objective = SimpleNamespace(sequence_length=self.window), SimpleNamespace(kind=self.kind)
        self.config = SimpleNamespace(train=train, objective=objective)
        self.widths: set[int] = set()

    def predict(self, ids_BL: torch.Tensor) -> torch.Tensor:
        self.widths.add(ids_BL.shape[1])
        logits = torch.zeros(*ids_BL.shape, VOCABULARY)
        for row, ids in enumerate(ids_BL.tolist()):
            shown = ids[1:] if self.kind == "autoregressive" else ids
            for text in self.texts:
                whole = [*self.tokenizer.encode(text), EOS]
                if all(a in (MASK, b) for a, b in zip(shown, whole, strict=False)):
                    for place in range(min(len(ids), len(whole))):
                        logits[row, place, whole[place]] = 5.0 + place
                    logits[row, :, PAD] = 90.0  # never to be chosen
                    logits[row, :, MASK] = 99.0
                    break
        return logits


def asked(model: Any, *questions: tuple[str, str]) -> list[bool]:
    return answered_exactly(model, [Question(*question) for question in questions])


@pytest.mark.parametrize("kind", ["masked", "autoregressive"])
def test_only_the_whole_answer_and_its_end_are_right(kind: str) -> None:
    model = Known(["abcd", "efgh", "hgab"], kind)
    assert asked(model, ("ab", "cd"), ("ab", "ce"), ("ef", "gh"), ("hg", "ab")) == [True, False, True, True]
    assert asked(model, ("ab", "c")) == [False]  # it would go on
    assert asked(model, ("a", "bcd"), ("ab", "cd"), ("abc", "d"), ("e", "fgh")) == [True] * 4
    assert asked(model) == []


def test_the_masked_model_is_asked_at_full_length_and_the_baseline_token_by_token() -> None:
    model = Known(["abcd"], "masked")
    assert asked(model, ("ab", "cd")) == [True]
    assert model.widths == {5}
    model = Known(["abcd"], "autoregressive")
    assert asked(model, ("ab", "cd")) == [True]
    assert model.widths == {3, 4, 5}


def test_many_questions_keep_their_places() -> None:
    model = Known(["abcd", "efgh"], "masked")
    questions = [("ab", "cd"), ("ef", "ab"), ("abc", "d")] * 100
    assert asked(model, *questions) == [True, False, True] * 100


def test_questions_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match=r"question 1 and its answer have 5 tokens, the model's window has 4"):
        asked(Known(["abcd"], "masked", window=4), ("a", "b"), ("ab", "cd"))


@pytest.mark.parametrize(("hits", "trials"), [(0, 1), (1, 1), (0, 329), (329, 329), (3, 10), (270, 329)])
def test_wilson_interval(hits: int, trials: int) -> None:
    low, high = wilson_interval(hits, trials)
    expected = binomtest(hits, trials).proportion_ci(0.95, method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-7)


def test_nothing_asked_says_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
