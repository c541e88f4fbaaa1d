"""A SentencePiece vocabulary with an exact round trip, and ids that text can never forge."""

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sentencepiece

from data_pipeline.manifest import TOKENIZER, FileInfo, TokenizerInfo
from runtime.errors import UserError, one_line
from runtime.files import digest_bytes

_SPACE = "\u2581"  # SentencePiece's own sign for a space
_SENTENCE_CHARACTERS = 1000
_TRAINING_THREADS = 2  # a constant: the count is written into the model, and models must not differ by machine
_LITERAL_SPECIAL = re.compile(r"<(?:unk|s|/s|pad|mask|0x[0-9A-F]{2})>")


class Tokenizer:
    """Text to ids and back: `decode(encode(text)) == text` for every valid str.

    Control ids (pad, bos, eos, mask) stand for no text, and no text is encoded to one.
    """

    def __init__(self, model: bytes, where: str = "tokenizer") -> None:
        """Raises UserError if `model` is not SentencePiece's, or cannot give an exact round trip."""
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(model)
            self._bytes_of = self._piece_bytes()
        except (RuntimeError, UnicodeDecodeError) as error:
            raise UserError(
                f"{where} is not a SentencePiece model ({one_line(error)}): rebuild or restore it"
            ) from None
        self.model = model
        self.digest = digest_bytes(model)
        self.vocabulary: int = self._model.vocab_size()
        byte_pieces = [f"<0x{value:02X}>" for value in range(256)]
        self._byte_ids: list[int] = [self._model.piece_to_id(piece) for piece in byte_pieces]
        if not all(map(self._model.is_byte, self._byte_ids)):
            raise UserError(
                f"{where} has no byte pieces, so some text would be lost: let `lacuna data build` train one"
            )
        self._space_ids = [self._byte_ids[value] for value in _SPACE.encode()]
        self.pad_id, self.bos_id, self.eos_id, self.mask_id = (
            self._control(piece, where) for piece in ("<pad>", "<s>", "</s>", "<mask>")
        )
        self._check_round_trip(where)

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a model file, or the one in a dataset directory. Raises UserError naming the file."""
        file = Path(path)
        if file.is_dir():
            file = file / TOKENIZER
        try:
            model = file.read_bytes()
        except OSError as error:
            raise UserError(f"{file} cannot be read ({error.strerror}): check the tokenizer's path") from None
        return cls(model, str(file))

    def _control(self, piece: str, where: str) -> int:
        number: int = self._model.piece_to_id(piece)
        if not self._model.is_control(number):
            raise UserError(f"{where} has no control piece {piece}: let `lacuna data build` train one")
        return number

    def _check_round_trip(self, where: str) -> None:
        sample = "  a  b \r\n\t\ufb01\u2581\u2028\0 "
        if self.decode(self.encode(sample)) != sample:
            raise UserError(
                f"{where} changes the text it encodes (normalisation or a dummy prefix): "
                "let `lacuna data build` train one"
            )

    def info(self, file: FileInfo) -> TokenizerInfo:
        """What a manifest says of this tokenizer, whose model stands in `file`."""
        return TokenizerInfo(
            file=file,
            vocabulary=self.vocabulary,
            pad_id=self.pad_id,
            bos_id=self.bos_id,
            eos_id=self.eos_id,
            mask_id=self.mask_id,
        )

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, no BOS or EOS. Raises UserError for a lone surrogate, which is not text."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """Ids of each text; the result does not depend on `threads`."""
        # A literal U+2581 would be read as a space: texts are cut there and its bytes put in between.
        cut = [text.split(_SPACE) for text in texts]
        try:
            encoded: Iterator[list[int]] = iter(
                self._model.encode([part for parts in cut for part in parts], num_threads=threads)
            )
        except TypeError:  # SentencePiece's word for a str that has no UTF-8
            raise UserError("the text holds a lone surrogate, which is no character: leave it out") from None
        results = []
        for parts in cut:
            ids = list(next(encoded))
            for _ in parts[1:]:
                ids += self._space_ids
                ids += next(encoded)
            results.append(ids)
        return results

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`. Control ids give nothing; a character cut in two gives U+FFFD."""
        return b"".join([self._bytes_of[i] for i in ids]).decode(errors="replace")

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
                table.append(model.id_to_piece(number).replace(_SPACE, " ").encode())
        return table

    def byte_lengths(self) -> npt.NDArray[np.int64]:
        """UTF-8 bytes that each id stands for, shape [vocabulary]; 0 for control ids."""
        return np.array([len(piece) for piece in self._bytes_of], dtype=np.int64)


def train_tokenizer(texts: Iterable[str], vocabulary: int, model: str = "bpe") -> bytes:
    """Learn a SentencePiece model of `vocabulary` ids; a pure function of its arguments.

    Raises UserError if the text is too small, or has too many different characters, for `vocabulary`.
    """
    out = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts),
            model_writer=out,
            model_type=model,
            vocab_size=vocabulary,
            character_coverage=0.9995,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            user_defined_symbols=["\n", "\t"],
            control_symbols=["<mask>"],
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            max_sentence_length=4 * _SENTENCE_CHARACTERS + 1,
            num_threads=_TRAINING_THREADS,
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
