"""Tokenizer files as `transformers` reads them, from a SentencePiece model.

`tokenizer.model` is the model itself. `tokenizer.json` says the same to the tokenizers library, since the class that
reads SentencePiece models there puts a space before the text, which ours does not.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from sentencepiece import sentencepiece_model_pb2 as sentencepiece_proto

from data_pipeline.manifest import TOKENIZER
from data_pipeline.tokenizer import Tokenizer
from pretrain.interop.description import special_ids

_SPACE = "\u2581"
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # types of pieces in SentencePiece's protocol
_UNIGRAM = 1  # its type of model; 2 is BPE


def tokenizer_files(tokenizer: Tokenizer, layout: str, sequence_length: int) -> dict[str, Any]:
    """File name → content: bytes, or a value to be written as JSON.

    In the LLaMA layout BOS is put before a text, as the baseline is trained; the masked model's text has none.
    """
    generation = special_ids(tokenizer)
    if layout == "llada":
        generation["mask_token_id"] = tokenizer.mask_id
    if tokenizer.file_name != TOKENIZER:  # a tokenizer.json already
        return {tokenizer.file_name: tokenizer.model, "generation_config.json": generation}
    names = _names(tokenizer)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": sequence_length,
        "clean_up_tokenization_spaces": False,
        **names,
    }
    return {
        TOKENIZER: tokenizer.model,
        "tokenizer.json": fast_tokenizer(tokenizer, begins=layout == "llama"),
        "tokenizer_config.json": settings,
        "special_tokens_map.json": names,
        "generation_config.json": generation,
    }


def _names(tokenizer: Tokenizer) -> dict[str, str]:
    """What the special pieces are called."""
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id, "mask": tokenizer.mask_id}
    pieces = {f"{role}_token": tokenizer.piece(number) for role, number in ids.items()}
    return {"unk_token": _unknown(_proto(tokenizer).pieces), **pieces}


def _proto(tokenizer: Tokenizer) -> Any:
    proto = sentencepiece_proto.ModelProto()
    proto.ParseFromString(tokenizer.model)
    return proto


def _unknown(pieces: Iterable[Any]) -> str:
    return next(piece.piece for piece in pieces if piece.type == _UNKNOWN)


def fast_tokenizer(tokenizer: Tokenizer, begins: bool) -> dict[str, Any]:
    """The content of `tokenizer.json`; `begins`: texts begin with BOS."""
    proto = _proto(tokenizer)
    pieces = list(proto.pieces)
    replaced = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added(number, piece.piece, special=piece.type != _USER_DEFINED)
            for number, piece in enumerate(pieces)
            if piece.type in (_UNKNOWN, _CONTROL, _USER_DEFINED)
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
        "pre_tokenizer": None,
        "post_processor": _begin_with_bos(tokenizer) if begins else None,
        "decoder": {"type": "Sequence", "decoders": [replaced, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": _unigram(pieces) if proto.trainer_spec.model_type == _UNIGRAM else _bpe(pieces),
    }


def _added(number: int, content: str, special: bool) -> dict[str, Any]:
    sides = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": content, **sides, "special": special}


def _begin_with_bos(tokenizer: Tokenizer) -> dict[str, Any]:
    name = tokenizer.piece(tokenizer.bos_id)
    bos: dict[str, Any] = {"SpecialToken": {"id": name, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": kind}} for kind, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [bos, first],
        "pair": [bos, first, {"SpecialToken": {"id": name, "type_id": 1}}, second],
        "special_tokens": {name: {"id": name, "ids": [tokenizer.bos_id], "tokens": [name]}},
    }


def _bpe(pieces: list[Any]) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": _unknown(pieces),
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": {piece.piece: number for number, piece in enumerate(pieces)},
        "merges": [list(pair) for pair in _merges(pieces)],
    }


def _merges(pieces: list[Any]) -> Iterator[tuple[str, str]]:
    """Pairs in the order in which SentencePiece joins them: by score of what they make, best first."""
    scores = {piece.piece: piece.score for piece in pieces if piece.type == _NORMAL}
    for whole in sorted(scores, key=lambda text: -scores[text]):  # a stable sort: equal scores by id
        splits = ((whole[:cut], whole[cut:]) for cut in range(1, len(whole)))
        yield from (pair for pair in splits if pair[0] in scores and pair[1] in scores)


def _unigram(pieces: list[Any]) -> dict[str, Any]:
    lowest = min(piece.score for piece in pieces)
    normal = (_NORMAL, _USER_DEFINED)
    # only what text may become by its score; bytes and control pieces must never win against it
    scores = (piece.score if piece.type in normal else lowest - 1e6 for piece in pieces)
    vocabulary = [[piece.piece, score] for piece, score in zip(pieces, scores, strict=True)]
    unknown = next(itertools.compress(itertools.count(), (piece.type == _UNKNOWN for piece in pieces)))
    return {"type": "Unigram", "unk_id": unknown, "vocab": vocabulary, "byte_fallback": True}
