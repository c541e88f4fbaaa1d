"""Any text comes back exactly, and no text can name a special id."""

from pathlib import Path
from random import Random

import numpy as np
import pytest
import sentencepiece
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sample_texts import HOSTILE, documents

from data_pipeline.tokenizer import Tokenizer, train_tokenizer
from data_pipeline.tokenizer.piece_model import PieceTokenizer
from runtime.errors import UserError

SPECIALS = ["<mask>", "<s>", "</s>", "<pad>", "<unk>", "<0x41>", "<0x0A>"]
AWKWARD = [
    "\u2581",
    " ",
    "  ",
    "\0",
    "\r",
    "\n",
    "\t",
    "\u2028",
    "\ufb01",
    "e\u0301",
    "\U0001f600",
    "\ufeff",
    "\u2585",
    " \u2047 ",
]
texts = st.lists(st.one_of(st.text(), st.sampled_from(SPECIALS + AWKWARD)), max_size=8).map("".join)
any_text = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(text=texts)
@example("")
@example("".join(HOSTILE))
@example("\u2581" * 3)
@example(" \u2581 ")
@any_text
def test_exact_round_trip(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    specials = {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id, 0}
    assert not specials & set(ids)
    assert tokenizer.byte_lengths()[np.array(ids, dtype=np.int64)].sum() == len(text.encode())


def test_every_block_of_unicode(tokenizer: Tokenizer) -> None:
    blocks = [range(code, code + 0x1000, 7) for code in range(0, 0x110000, 0x1000)]
    texts = ["".join(chr(c) for c in block if not 0xD800 <= c < 0xE000) for block in blocks]
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(texts)] == texts


def test_special_ids_are_distinct_and_stand_for_no_text(tokenizer: Tokenizer) -> None:
    specials = [tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id]
    assert len(set(specials)) == 4
    assert tokenizer.decode([tokenizer.mask_id, *tokenizer.encode("a b"), tokenizer.eos_id]) == "a b"
    assert [tokenizer.piece(i) for i in specials] == ["<pad>", "<s>", "</s>", "<mask>"]
    assert tokenizer.byte_lengths()[specials].tolist() == [0, 0, 0, 0]
    assert tokenizer.byte_lengths().shape == (tokenizer.vocabulary,)


def test_a_character_cut_in_two_is_replaced(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("\U0001f600")
    assert tokenizer.decode(ids[:-1]) == "\ufffd"


def test_batch_does_not_depend_on_threads(tokenizer: Tokenizer) -> None:
    texts = [*documents(50, 9), *HOSTILE, ""]
    assert tokenizer.encode_batch(texts, threads=4) == [tokenizer.encode(text) for text in texts]


def test_lone_surrogate(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="surrogate"):
        tokenizer.encode("a\ud800")


def test_training_is_repeatable() -> None:
    assert train_tokenizer(documents(300, 1), 306) == train_tokenizer(iter(documents(300, 1)), 306)


def test_newline_tab_and_digits_stand_alone(tokenizer: Tokenizer) -> None:
    pieces = [tokenizer.piece(i) for i in range(tokenizer.vocabulary)]
    assert [p for p in pieces if "\n" in p] == ["\n"]
    assert [p for p in pieces if "\t" in p] == ["\t"]
    assert not [
        p for p in pieces if len(p.strip("\u2581")) > 1 and any(c.isdigit() for c in p) and not p.startswith("<0x")
    ]


@pytest.mark.parametrize(("model", "vocabulary"), [("bpe", 400), ("unigram", 310)])
def test_a_corpus_full_of_special_names_and_long_lines(model: str, vocabulary: int) -> None:
    hostile = [special * 50 + " " for special in SPECIALS] * 20 + ["x\0y", "\u2585" * 10, "word " * 5000]
    made = PieceTokenizer(train_tokenizer([*documents(200, 2), *hostile], vocabulary, model))
    for special in SPECIALS:
        assert made.decode(made.encode(special)) == special
        assert len(made.encode(special)) > 1


@pytest.mark.parametrize(
    ("texts", "vocabulary"),
    [(["too little"], 5000), ([], 300), (["".join(map(chr, range(0x4E00, 0x5200)))], 300)],
)
def test_a_vocabulary_that_does_not_fit(texts: list[str], vocabulary: int) -> None:
    with pytest.raises(UserError, match=r"^tokenizer\.vocabulary: \d+ does not fit the text") as caught:
        train_tokenizer(texts, vocabulary)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_tokenizer(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"gone\.model cannot be read"):
        Tokenizer.load(tmp_path / "gone.model")
    with pytest.raises(UserError, match=r"tokenizer\.model cannot be read"):
        Tokenizer.load(tmp_path)
    for data in (b"", b"not a model", tokenizer.model[: len(tokenizer.model) // 2], bytes(1000)):
        (tmp_path / "bad.model").write_bytes(data)
        with pytest.raises(UserError, match=r"bad\.model"):
            Tokenizer.load(tmp_path / "bad.model")


def test_a_damaged_model_is_refused_or_still_exact(tokenizer: Tokenizer) -> None:
    source = Random(3)
    for _ in range(60):
        data = bytearray(tokenizer.model)
        data[source.randrange(len(data))] ^= 1 << source.randrange(8)
        try:
            damaged = PieceTokenizer(bytes(data))
        except UserError:
            continue
        assert damaged.digest != tokenizer.digest
        assert [damaged.decode(damaged.encode(text)) for text in HOSTILE] == HOSTILE


def test_models_that_change_text_are_refused(tmp_path: Path) -> None:
    common = {
        "vocab_size": 400,
        "control_symbols": ["<mask>"],
        "pad_id": 3,
        "minloglevel": 2,
        "model_type": "bpe",
    }
    for name, options, problem in (
        ("plain", {"byte_fallback": False}, "byte pieces"),
        ("dummy", {"byte_fallback": True}, "changes the text"),
        ("nomask", {"byte_fallback": True, "control_symbols": []}, "no control piece '<mask>'"),
    ):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(documents(300, 4)),
            model_prefix=str(tmp_path / name),
            hard_vocab_limit=False,
            **{**common, **options, "model_type": "unigram"},
        )
        with pytest.raises(UserError, match=problem):
            Tokenizer.load(tmp_path / f"{name}.model")


def test_a_vocabulary_of_characters() -> None:
    """A piece for each character and the space, though no text has one; others are spelt in bytes."""
    texts = ["红豆生南国，春来发几枝", "愿君多采撷，此物最相思"]
    made = PieceTokenizer(train_tokenizer(texts, 1000, "char", 1.0))
    characters = set("".join(texts))
    special, blanks = 4 + 1 + 3, 2 + 1  # mask and those of chats beside SentencePiece's own; line feed, tab, space
    assert made.vocabulary == 256 + special + blanks + len(characters)
    for text in texts:
        assert [made.piece(i) for i in made.encode(text)] == list(text)
    assert made.decode(made.encode("红 blue\n豆")) == "红 blue\n豆"
    assert len(made.encode("x")) == 1  # a byte
