"""What every tokenizer offers, whatever library encodes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.config import SPECIAL_ROLES as ROLES
from data_pipeline.files import FileInfo
from data_pipeline.manifest import MANIFEST, TOKENIZER, TokenizerInfo
from runtime.errors import UserError
from runtime.files import digest_bytes, read_json

FILE_NAMES = (TOKENIZER, "tokenizer.json")
SPACE = "\u2581"
"""How SentencePiece, and what follows it, writes a space."""


class Tokenizer(ABC):
    """Text to ids and back: `decode(encode(text)) == text` for every valid str.

    Special ids (pad, bos, eos, mask and those of chats) stand for no text, and no text is encoded to one.
    """

    file_name: str
    """What its file is called in a dataset."""

    def __init__(self, model: bytes, vocabulary: int, special: Mapping[str, int | None], table: list[bytes]) -> None:
        """`special` maps the roles of `ROLES` to ids; `table` holds the bytes that each id stands for."""
        self.model, self.vocabulary = model, vocabulary
        self.digest = digest_bytes(model)
        self._special = {role: special.get(role) for role in ROLES}
        self._bytes_of = table
        for role in ROLES[:4]:
            assert self._special[role] is not None, f"a tokenizer has a {role} id"

    def _id(self, role: str) -> int:
        number = self._special[role]
        assert number is not None
        return number

    @property
    def mask_id(self) -> int:
        """Stands for a masked token."""
        return self._id("mask")

    @property
    def bos_id(self) -> int:
        """Begins a stream."""
        return self._id("bos")

    @property
    def eos_id(self) -> int:
        """Ends a document."""
        return self._id("eos")

    @property
    def pad_id(self) -> int:
        """Fills what is no text."""
        return self._id("pad")

    @property
    def special_ids(self) -> dict[str, str | int]:
        """Role to id; `load` takes it where no manifest stands beside the file."""
        return {role: number for role, number in self._special.items() if number is not None}

    def chat_ids(self) -> tuple[int, int, int]:
        """Ids of header start, header end and turn end. Raises UserError if the tokenizer has none."""
        ids = [self._special[role] for role in ROLES[4:]]
        if None in ids:
            raise UserError("the tokenizer has no special ids for chats: train one with `lacuna data build`")
        return ids[0], ids[1], ids[2]  # type: ignore[return-value]

    @staticmethod
    def load(path: str | Path, special: Mapping[str, str | int] | None = None) -> "Tokenizer":
        """Read a tokenizer's file, or the one in a dataset directory. Raises UserError naming the file.

        A tokenizer's file does not say what its special tokens are for: for each role `special` does, else the
        manifest beside it, else their names if these are common ones.
        """
        from data_pipeline.tokenizer.huggingface import HuggingFaceTokenizer
        from data_pipeline.tokenizer.piece_model import PieceTokenizer

        file = Path(path)
        if file.is_dir():
            file = next((file / name for name in FILE_NAMES if (file / name).is_file()), file / FILE_NAMES[0])
        try:
            model = file.read_bytes()
        except OSError as error:
            raise UserError(f"{file} cannot be read ({error.strerror}): check the tokenizer's path") from None
        named = {**_ids_beside(file), **(special or {})}
        if model.lstrip()[:1] != b"{":
            return PieceTokenizer(model, named, str(file))
        return HuggingFaceTokenizer(model, named, str(file))

    def info(self, file: FileInfo) -> TokenizerInfo:
        """What a manifest says of this tokenizer, whose model stands in `file`."""
        ids = {f"{role}_id": number for role, number in self._special.items()}
        return TokenizerInfo.model_validate({"file": file, "vocabulary": self.vocabulary, **ids})

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, no BOS or EOS. Raises UserError for a lone surrogate, which is not text."""
        return self.encode_batch([text])[0]

    @abstractmethod
    def encode_arrays(self, texts: Sequence[str], threads: int = 1) -> list[npt.NDArray[Any]]:
        """Ids of each text as an integer array; the result does not depend on `threads`."""

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """Ids of each text; the result does not depend on `threads`."""
        return [array.tolist() for array in self.encode_arrays(texts, threads)]

    def encode_documents(self, texts: Sequence[str], dtype: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """Ids of all texts one after the other, each closed by EOS, as `dtype`; and how many each has, EOS included."""
        arrays = self.encode_arrays(texts)
        lengths = np.array([array.size + 1 for array in arrays], dtype=np.int64)
        ids = np.empty(int(lengths.sum()), dtype=dtype)
        begin = 0
        for array in arrays:
            end = begin + array.size
            ids[begin:end] = array
            ids[end] = self.eos_id
            begin = end + 1
        return ids, lengths

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`. Special ids give nothing; a character cut in two gives U+FFFD."""
        return b"".join([self._bytes_of[i] for i in ids]).decode(errors="replace")

    @abstractmethod
    def piece(self, number: int) -> str:
        """The vocabulary's own name of an id, as in `<mask>`, `<0x0A>` or `▁the`."""

    def byte_lengths(self) -> npt.NDArray[np.int64]:
        """UTF-8 bytes that each id stands for, shape [vocabulary]; 0 for special ids."""
        return np.array([len(piece) for piece in self._bytes_of], dtype=np.int64)

    def _check_round_trip(self, where: str) -> None:
        sample = "  a  b \r\n\t\ufb01\u2581\u2028\0 e\u0301\U0001f600 <mask></s><0x41>"
        if any(self.decode(self.encode(text)) != text for text in (sample, "a ")):  # some put a space before a letter
            raise UserError(
                f"{where} changes the text it encodes (normalisation or a dummy prefix): "
                "let `lacuna data build` train one"
            )


def encode_around_signs(
    texts: Sequence[str],
    spelt: npt.NDArray[np.int32],
    encode: Callable[[list[str]], list[npt.NDArray[Any]]],
) -> list[npt.NDArray[Any]]:
    """`encode(texts)`, but a literal U+2581, which `encode` reads as a space, gives the ids `spelt` of its bytes."""
    cut = {number: text.split(SPACE) for number, text in enumerate(texts) if SPACE in text}
    arrays = encode(["" if number in cut else text for number, text in enumerate(texts)] if cut else list(texts))
    for number, parts in cut.items():
        arrays[number] = np.concatenate([array for part in encode(parts) for array in (spelt, part)][1:])
    return arrays


def _ids_beside(file: Path) -> dict[str, str | int]:
    """Special ids as the manifest beside a dataset's tokenizer gives them."""
    manifest = file.with_name(MANIFEST)
    if not manifest.is_file():
        return {}
    values = read_json(manifest)
    ids = values.get("tokenizer", {}) if isinstance(values, dict) else {}
    return {role: ids[f"{role}_id"] for role in ROLES if isinstance(ids.get(f"{role}_id"), int)}
