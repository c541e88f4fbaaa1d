"""SentencePiece models with byte fallback: an exact round trip, and ids that text can never forge."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import sentencepiece

from data_pipeline.manifest import TOKENIZER
from data_pipeline.tokenizer.base import SPACE, Tokenizer, encode_around_signs
from runtime.errors import UserError, one_line

NEEDED = {"pad": "<pad>", "bos": "<s>", "eos": "</s>", "mask": "<mask>"}
FOR_CHATS = {"header_start": "<|start_header_id|>", "header_end": "<|end_header_id|>", "turn_end": "<|eot_id|>"}
"""Control pieces of a trained vocabulary, named as in LLaDA's and Llama 3's chat template."""


class PieceTokenizer(Tokenizer):
    """A SentencePiece model."""

    file_name = TOKENIZER

    def __init__(self, model: bytes, special: Mapping[str, str | int] | None = None, where: str = "tokenizer") -> None:
        """`special`: names or ids of control pieces by role, where they are not those of a trained vocabulary.

        Raises UserError if `model` is not SentencePiece's, has no such pieces, or cannot give an exact round trip.
        """
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(model)
            table = self._piece_bytes()
        except (RuntimeError, UnicodeDecodeError) as error:
            raise UserError(
                f"{where} is not a SentencePiece model ({one_line(error)}): rebuild or restore it"
            ) from None
        byte_ids = [self._model.piece_to_id(f"<0x{value:02X}>") for value in range(256)]
        if not all(map(self._model.is_byte, byte_ids)):
            raise UserError(
                f"{where} has no byte pieces, so some text would be lost: let `lacuna data build` train one"
            )
        self._space_ids = np.array([byte_ids[value] for value in SPACE.encode()], dtype=np.int32)
        super().__init__(model, self._model.vocab_size(), self._roles(special or {}, where), table)
        self._check_round_trip(where)

    def _roles(self, special: Mapping[str, str | int], where: str) -> dict[str, int | None]:
        names: dict[str, str | int] = {**NEEDED, **FOR_CHATS, **special}
        found = {role: self._control(piece) for role, piece in names.items()}
        for role, piece in names.items():
            if found[role] is None and (role in NEEDED or role in special):
                raise UserError(
                    f"{where} has no control piece {piece!r}: name one under tokenizer.special.{role}, "
                    "or let `lacuna data build` train a tokenizer"
                )
        return found

    def _control(self, piece: str | int) -> int | None:
        """The id of a piece that no text becomes."""
        number: int = self._model.piece_to_id(piece) if isinstance(piece, str) else piece
        return number if 0 <= number < self._model.vocab_size() and self._model.is_control(number) else None

    def encode_arrays(self, texts: Sequence[str], threads: int = 1) -> list[npt.NDArray[Any]]:
        """Ids of each text as an int32 array; the result does not depend on `threads`."""

        def encode(pieces: list[str]) -> list[npt.NDArray[Any]]:
            found: list[npt.NDArray[Any]] = self._model.encode(pieces, num_threads=threads, return_type="numpy")
            return found

        try:
            return encode_around_signs(texts, self._space_ids, encode)
        except (TypeError, UnicodeEncodeError):  # a str that has no UTF-8
            raise UserError("the text holds a lone surrogate, which is no character: leave it out") from None

    def piece(self, number: int) -> str:
        """The vocabulary's own name of an id, as in `<mask>`, `<0x0A>` or `▁the`."""
        name: str = self._model.id_to_piece(int(number))
        return name

    def _piece_bytes(self) -> list[bytes]:
        model, table = self._model, []
        for number in range(model.vocab_size()):
            if model.is_control(number) or model.is_unknown(number):
                table.append(b"")
            elif model.is_byte(number):
                table.append(bytes([int(model.id_to_piece(number)[3:5], 16)]))
            else:
                table.append(model.id_to_piece(number).replace(SPACE, " ").encode())
        return table
