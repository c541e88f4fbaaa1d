"""Tokenizers of the `tokenizers` library, and foreign SentencePiece models: exact, with the ids that were named."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tokenizers as library
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sample_texts import HOSTILE, documents

from data_pipeline.append import append_sources
from data_pipeline.build import Means, build_dataset
from data_pipeline.combine import merge_datasets
from data_pipeline.config import BuildConfig
from data_pipeline.dataset import TokenDataset
from data_pipeline.manifest import DatasetManifest
from data_pipeline.tokenizer import Tokenizer, train_tokenizer
from data_pipeline.tokenizer.huggingface import HuggingFaceTokenizer
from data_pipeline.tokenizer.piece_model import PieceTokenizer
from data_pipeline.verify import verify_dataset
from pretrain.interop.tokenizer_files import fast_tokenizer, tokenizer_files
from runtime.errors import UserError

Config = Callable[..., BuildConfig]
OWN = {"mask": "[HIDE]", "bos": "[GO]", "eos": "[STOP]", "pad": "[FILL]"}
COMMON = ["<|mdm_mask|>", "<|startoftext|>", "<|endoftext|>", "<|pad|>", "<|start_header_id|>", "<|end_header_id|>"]
CHATS = [*COMMON, "<|eot_id|>"]


def byte_level(special: list[str], alphabet: bool = True, **parts: Any) -> bytes:
    """A byte-level BPE as GPT-2's; keywords replace parts of it."""
    made = library.Tokenizer(library.models.BPE())
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = library.decoders.ByteLevel()
    letters = library.pre_tokenizers.ByteLevel.alphabet() if alphabet else []
    trainer = library.trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=letters, show_progress=False
    )
    made.train_from_iterator(documents(200, 1), trainer)
    for name, part in parts.items():
        setattr(made, name, part)
    return made.to_str().encode()


@pytest.fixture(scope="module")
def pieces() -> PieceTokenizer:
    return PieceTokenizer(train_tokenizer(documents(300, 1), 320, reserved=5))


@pytest.fixture(scope="module", params=["byte_level", "byte_pieces"])
def tokenizer(request: pytest.FixtureRequest, pieces: PieceTokenizer) -> HuggingFaceTokenizer:
    if request.param == "byte_level":
        return HuggingFaceTokenizer(byte_level(CHATS))
    return HuggingFaceTokenizer(json.dumps(fast_tokenizer(pieces, begins=False)).encode())


SPELT = [*CHATS, *OWN.values(), "<mask>", "<s>", "</s>", "<pad>", "<unk>", "<0x41>", "\u2581", "\u0120", "  ", "\0"]
any_text = st.lists(st.one_of(st.text(), st.sampled_from(SPELT)), max_size=8).map("".join)


@given(text=any_text)
@example("")
@example("".join(HOSTILE))
@example("".join(SPELT))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_exact_round_trip_and_no_text_is_special(tokenizer: HuggingFaceTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(tokenizer.special_ids.values()) & set(ids)
    assert tokenizer.byte_lengths()[np.array(ids, dtype=np.int64)].sum() == len(text.encode())


def test_it_says_what_sentencepiece_says(pieces: PieceTokenizer) -> None:
    """The same vocabulary in the form of both libraries."""
    theirs = HuggingFaceTokenizer(json.dumps(fast_tokenizer(pieces, begins=False)).encode())
    texts = [*documents(100, 5), *HOSTILE, "", "\u2581"]
    assert theirs.encode_batch(texts) == pieces.encode_batch(texts)
    assert theirs.special_ids == pieces.special_ids
    assert (theirs.vocabulary, theirs.byte_lengths().tolist()) == (pieces.vocabulary, pieces.byte_lengths().tolist())


def test_reserved_ids_are_free(pieces: PieceTokenizer) -> None:
    names = [f"<|reserved_{number}|>" for number in range(5)]
    ids = [pieces.piece(number) for number in range(pieces.vocabulary)]
    free = {ids.index(name) for name in names}
    assert not free & set(pieces.special_ids.values())
    assert not free & set(pieces.encode("".join(names) * 3))
    assert pieces.byte_lengths()[sorted(free)].sum() == 0
    assert "<|reserved_5|>" not in ids


def test_names_of_special_tokens(tmp_path: Path) -> None:
    common, own = HuggingFaceTokenizer(byte_level(CHATS)), byte_level([*COMMON, *OWN.values()])
    assert list(common.special_ids) == ["mask", "bos", "eos", "pad", "header_start", "header_end", "turn_end"]
    assert [common.piece(int(n)) for n in common.special_ids.values()] == [*CHATS]
    named = HuggingFaceTokenizer(own, OWN)
    assert {role: named.piece(int(n)) for role, n in named.special_ids.items()} == {
        **OWN,
        "header_start": "<|start_header_id|>",
        "header_end": "<|end_header_id|>",
    }
    with pytest.raises(UserError, match="no special ids for chats"):
        named.chat_ids()
    with pytest.raises(UserError, match=r"no special added token '\[GONE\]': name one under tokenizer\.special\.eos"):
        HuggingFaceTokenizer(own, {**OWN, "eos": "[GONE]"})
    with pytest.raises(UserError, match=r"no special added token for mask"):
        HuggingFaceTokenizer(byte_level(["<s>", "</s>", "<pad>"]))


def test_a_token_that_text_can_spell_is_no_special_one() -> None:
    made = library.Tokenizer.from_str(byte_level(["<s>", "</s>", "<pad>"]).decode())
    made.add_tokens(["<mask>", "plain"])
    with pytest.raises(UserError, match=r"no special added token '<mask>'"):
        HuggingFaceTokenizer(made.to_str().encode(), {"mask": "<mask>"})
    made.add_special_tokens(["<|mdm_mask|>"])
    found = HuggingFaceTokenizer(made.to_str().encode())
    assert found.decode(found.encode("a plain <mask> b")) == "a plain <mask> b"


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"{}", "is not a Hugging Face tokenizer"),
        (b'{"broken', "is not a Hugging Face tokenizer"),
        (byte_level(CHATS, alphabet=False), "some text would be lost"),
        (byte_level(CHATS, decoder=library.decoders.WordPiece()), "some text would be lost"),
        (byte_level(CHATS, normalizer=library.normalizers.NFKC()), "changes the text"),
        (byte_level(CHATS, pre_tokenizer=library.pre_tokenizers.ByteLevel()), "changes the text"),
    ],
)
def test_tokenizers_that_lose_text_are_refused(tmp_path: Path, data: bytes, problem: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(UserError, match=rf"tokenizer\.json .*{problem}") as caught:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_lone_surrogates(tokenizer: HuggingFaceTokenizer) -> None:
    with pytest.raises(UserError, match="surrogate"):
        tokenizer.encode("a\ud800")


def ends(path: Path) -> set[int]:
    """The last id of every document."""
    found = set()
    for split in ("train", "validation"):
        for shard in TokenDataset(path, split).shards:
            stream = np.concatenate([shard.batch(b) for b in range(len(shard.info.batches))])
            found |= set(stream[np.array(shard.documents()[0]) - 1].tolist())
    return found


def test_a_dataset_keeps_the_ids_that_were_named(build_config: Config, tmp_path: Path) -> None:
    """Names that are nowhere common, beside common ones that mean something else here."""
    (tmp_path / "tokenizer.json").write_bytes(byte_level([*COMMON, *OWN.values()]))
    (tmp_path / "more.jsonl").write_text("\n".join(json.dumps({"text": f"{text} more"}) for text in documents(40, 9)))
    source = {"kind": "jsonl", "name": "more", "licence": "MIT", "glob": f"{tmp_path}/more.jsonl"}
    own = {"kind": "existing", "path": str(tmp_path), "special": OWN}
    out = tmp_path / "out"
    manifest = build_dataset(build_config(tokenizer=own), out, show_progress=False)
    tokenizer = Tokenizer.load(out)
    assert [tokenizer.piece(int(tokenizer.special_ids[role])) for role in OWN] == list(OWN.values())
    assert ends(out) == {manifest.tokenizer.eos_id}
    kept = {"kind": "existing", "path": str(out)}
    for other in ({**own, "special": {}}, {**kept, "special": {"eos": "<|endoftext|>"}}):
        with pytest.raises(UserError, match=r"tokenizer\.special: .* leave it out and give .*out as tokenizer\.path"):
            append_sources(out, build_config(sources=[source], tokenizer=other), Means(show_progress=False))
    append_sources(out, build_config(sources=[source], tokenizer=kept), Means(show_progress=False))
    assert ends(out) == {manifest.tokenizer.eos_id}
    assert DatasetManifest.load(out).tokenizer == manifest.tokenizer
    assert verify_dataset(out, progress=False).ok
    changed = {**own, "special": {**OWN, "eos": "<|endoftext|>"}}
    build_dataset(build_config(sources=[source], tokenizer=changed), tmp_path / "changed", show_progress=False)
    with pytest.raises(UserError, match="has other special ids than"):
        merge_datasets([out, tmp_path / "changed"], tmp_path / "merged", progress=False)
    assert "merged" not in os.listdir(tmp_path)


def foreign_model(path: Path) -> None:
    """A SentencePiece model whose control pieces have other names."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(documents(300, 4)), model_prefix=str(path), vocab_size=330, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False,
        control_symbols=[OWN["mask"], OWN["pad"]], bos_piece=OWN["bos"], eos_piece=OWN["eos"], unk_piece="[WHAT]",
        user_defined_symbols=["\n", "\t"], minloglevel=2,
    )  # fmt: skip


def test_a_sentencepiece_model_with_other_names(build_config: Config, tmp_path: Path) -> None:
    foreign_model(tmp_path / "foreign")
    file = tmp_path / "foreign.model"
    with pytest.raises(UserError, match=r"no control piece '<pad>': name one under tokenizer\.special\.pad"):
        Tokenizer.load(file)
    for name in ("gone", "the", "\n"):
        with pytest.raises(UserError, match=r"no control piece .*: name one under tokenizer\.special\.mask"):
            Tokenizer.load(file, {**OWN, "mask": name})
    tokenizer = Tokenizer.load(file, OWN)
    assert {role: tokenizer.piece(int(number)) for role, number in tokenizer.special_ids.items()} == OWN
    config = build_config(tokenizer={"kind": "existing", "path": str(file), "special": OWN})
    manifest = build_dataset(config, tmp_path / "out", show_progress=False)
    assert ends(tmp_path / "out") == {tokenizer.eos_id} == {manifest.tokenizer.eos_id}
    assert Tokenizer.load(tmp_path / "out").special_ids == tokenizer.special_ids
    written = tokenizer_files(tokenizer, "llama", 64)
    assert written["special_tokens_map.json"] == {
        "unk_token": "[WHAT]", **{f"{role}_token": OWN[role] for role in ("bos", "eos", "pad", "mask")}
    }  # fmt: skip
    theirs = library.Tokenizer.from_str(json.dumps(written["tokenizer.json"]))
    assert theirs.encode("a b").ids == [tokenizer.bos_id, *tokenizer.encode("a b")]
