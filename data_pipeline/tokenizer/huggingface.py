"""Hugging Face tokenizers: byte-level BPE, or BPE with byte fallback, from a `tokenizer.json`."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.config import SPECIAL_ROLES as ROLES
from data_pipeline.tokenizer.base import SPACE, Tokenizer, encode_around_signs
from runtime.errors import UserError, one_line

_IN_UTF8 = [value for value in range(256) if not 0xC0 <= value <= 0xC1 and value < 0xF5]
_COMMON = {
    "mask": ("<mask>", "<|mdm_mask|>", "<|mask|>", "[MASK]"),
    "bos": ("<s>", "<|startoftext|>", "<|begin_of_text|>", "<bos>"),
    "eos": ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>"),
    "pad": ("<pad>", "<|pad|>", "[PAD]"),
    "header_start": ("<|start_header_id|>",),
    "header_end": ("<|end_header_id|>",),
    "turn_end": ("<|eot_id|>",),
}


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library whose pieces are bytes."""

    file_name = "tokenizer.json"

    def __init__(self, model: bytes, special: Mapping[str, str | int] | None = None, where: str = "tokenizer") -> None:
        """Raises UserError if the library is missing, the file is not its own, or no exact round trip is possible."""
        try:
            import tokenizers
        except ImportError:
            raise UserError(
                f"{where} needs the package tokenizers: install it with `pip install 'lacuna[data]'`"
            ) from None
        try:
            self._model = tokenizers.Tokenizer.from_str(model.decode())
            decoder = json.dumps(json.loads(model).get("decoder"))
        except Exception as error:  # the library raises plain Exception
            reason = one_line(error)
            raise UserError(f"{where} is not a Hugging Face tokenizer ({reason}): rebuild or restore it") from None
        self._model.encode_special_tokens = True  # text that spells a special token is plain text
        self._model.no_padding()
        self._model.no_truncation()
        size = self._model.get_vocab_size(with_added_tokens=True)
        table = _piece_bytes(self._model, size, decoder)
        if table is None or not {bytes([value]) for value in _IN_UTF8} <= set(table):
            raise UserError(
                f"{where} is neither byte-level nor has byte pieces, so some text would be lost: use another"
            )
        spelt = [self._model.token_to_id(f"<0x{value:02X}>") for value in SPACE.encode()]
        self._sign = None if '"ByteLevel"' in decoder else np.array(spelt, dtype=np.int32)
        super().__init__(model, size, self._roles(special or {}, where), table)
        self._check_round_trip(where)

    def _roles(self, special: Mapping[str, str | int], where: str) -> dict[str, int | None]:
        tokens = self._model.get_added_tokens_decoder().items()
        added = {str(token): number for number, token in tokens if token.special}  # text can spell the others
        found: dict[str, int | None] = {}
        for role in ROLES:
            names = (special[role],) if role in special else _COMMON[role]
            found[role] = next(
                (n if isinstance(n, int) else added[n] for n in names if n in added or isinstance(n, int)), None
            )
            if found[role] is None and (role in special or role in ROLES[:4]):
                wanted = repr(special[role]) if role in special else f"for {role}"
                raise UserError(f"{where} has no special added token {wanted}: name one under tokenizer.special.{role}")
        return found

    def encode_arrays(self, texts: Sequence[str], threads: int = 1) -> list[npt.NDArray[Any]]:
        """Ids of each text as an int32 array; the library chooses its threads."""
        try:
            return self._encode(texts) if self._sign is None else encode_around_signs(texts, self._sign, self._encode)
        except (TypeError, UnicodeEncodeError):
            raise UserError("the text holds a lone surrogate, which is no character: leave it out") from None

    def _encode(self, texts: Sequence[str]) -> list[npt.NDArray[Any]]:
        encoded = self._model.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(one.ids, dtype=np.int32) for one in encoded]

    def piece(self, number: int) -> str:
        """The vocabulary's own name of an id."""
        return self._model.id_to_token(int(number)) or ""


def _piece_bytes(model: Any, size: int, decoder: str) -> list[bytes] | None:
    """Bytes of each id; empty for added special tokens, None if the pieces are not bytes."""
    added = model.get_added_tokens_decoder()
    letters = {letter: value for value, letter in _byte_letters().items()}
    table = []
    for number in range(size):
        piece: str | None = model.id_to_token(number)
        if piece is None or (number in added and added[number].special):
            table.append(b"")
        elif number in added:
            table.append(piece.encode())
        elif '"ByteLevel"' in decoder:
            table.append(bytes(letters[letter] for letter in piece if letter in letters))
        elif '"ByteFallback"' in decoder:
            raw = piece.startswith("<0x") and piece.endswith(">") and len(piece) == 6
            table.append(bytes([int(piece[3:5], 16)]) if raw else piece.replace(SPACE, " ").encode())
        else:
            return None
    return table


def _byte_letters() -> dict[int, str]:
    """The printable letter that byte-level tokenizers write for each byte (GPT-2's table)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [value for value in range(256) if value not in plain]
    return {value: chr(value) for value in plain} | {value: chr(256 + n) for n, value in enumerate(others)}
