"""Learning a SentencePiece vocabulary."""

import io
import re
from collections.abc import Iterable, Iterator
from typing import Any

import sentencepiece

from data_pipeline.tokenizer.base import SPACE
from data_pipeline.tokenizer.piece_model import FOR_CHATS, NEEDED
from runtime.errors import UserError, one_line

_SENTENCE_CHARACTERS = 1000
_TRAINING_THREADS = 2  # a constant: the count is written into the model, and models must not differ by machine
_LITERAL_SPECIAL = re.compile(r"<(?:unk|s|/s|pad|mask|0x[0-9A-F]{2}|\|[a-z_]+(?:[0-9]+)?\|)>")


def train_tokenizer(
    texts: Iterable[str], vocabulary: int, model: str = "bpe", coverage: float = 0.9995, reserved: int = 0
) -> bytes:
    """Learn a SentencePiece model of `vocabulary` ids; a pure function of its arguments.

    `coverage`: share of the characters that get a piece of their own; `reserved`: special ids kept free.

    Raises UserError if the text is too small, or has too many different characters, for the vocabulary.
    """
    out = io.BytesIO()
    # a text without blanks would leave the space without a piece, and its sign would be spelt in bytes
    also: dict[str, Any] = {"required_chars": SPACE} if model == "char" else {}
    free = [f"<|reserved_{number}|>" for number in range(reserved)]
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts),
            model_writer=out,
            model_type=model,
            vocab_size=vocabulary,
            character_coverage=coverage,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            user_defined_symbols=["\n", "\t"],
            control_symbols=[NEEDED["mask"], *FOR_CHATS.values(), *free],
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            max_sentence_length=4 * _SENTENCE_CHARACTERS + 1,
            num_threads=_TRAINING_THREADS,
            **also,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(
            f"tokenizer.vocabulary: {vocabulary} does not fit the text ({_cause(error)}): change it or give more text"
        ) from None
    return out.getvalue()


def _cause(error: RuntimeError) -> str:
    return re.sub(r"^.*\] ", "", one_line(error))


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Lines of bounded length; literal names of special pieces are broken up, so that none is learned."""
    for text in texts:
        for line in text.split("\n"):
            for part in _LITERAL_SPECIAL.sub(_broken, line).split("\n"):
                for begin in range(0, len(part), _SENTENCE_CHARACTERS):
                    yield part[begin : begin + _SENTENCE_CHARACTERS]


def _broken(match: re.Match[str]) -> str:
    return match[0][:2] + "\n" + match[0][2:]
