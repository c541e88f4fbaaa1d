"""The tokenizer files say to `transformers` what SentencePiece says to us."""

import json
from pathlib import Path

import pytest

from data_pipeline.tokenizer import Tokenizer, train_tokenizer
from data_pipeline.tokenizer.piece_model import PieceTokenizer
from pretrain.interop.tokenizer_files import fast_tokenizer, tokenizer_files

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

CORPUS = [path.read_text(encoding="utf-8") for path in sorted(Path("pretrain").glob("*.py"))]
TEXTS = [
    "",
    " ",
    "def f(x):\n    return x + 1\n",
    "  a  b \r\n\t\ufb01\u2028\0 \n\n\n\n",
    "Grüße, 世界 🎉 1234567890 1 23\n",
    "aaaaaaa bbbbbb aaabbbaaabbb <0x0A> <unk",
    *CORPUS[:4],
]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def ours(request: pytest.FixtureRequest) -> Tokenizer:
    return PieceTokenizer(train_tokenizer(CORPUS, 420, request.param))


def written(tokenizer: Tokenizer, layout: str, directory: Path) -> Path:
    for name, content in tokenizer_files(tokenizer, layout, 64).items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (directory / name).write_bytes(data)
    return directory


def test_transformers_encodes_and_decodes_as_we_do(ours: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    theirs = AutoTokenizer.from_pretrained(written(ours, "llama", tmp_path))
    assert len(theirs) == ours.vocabulary
    ids = (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id, theirs.mask_token_id)
    assert ids == (ours.pad_id, ours.bos_id, ours.eos_id, ours.mask_id)
    for text in TEXTS:
        encoded = theirs(text)["input_ids"]
        assert encoded == [ours.bos_id, *ours.encode(text)], text
        assert theirs.decode(encoded, skip_special_tokens=True) == text


def test_the_masked_models_text_has_no_bos(ours: Tokenizer) -> None:
    from tokenizers import Tokenizer as FastTokenizer

    assert fast_tokenizer(ours, begins=False)["post_processor"] is None
    theirs = FastTokenizer.from_str(json.dumps(fast_tokenizer(ours, begins=False)))
    assert theirs.encode("a b").ids == ours.encode("a b")
    # what differs: their text can forge control ids and spaces, ours cannot
    assert ours.mask_id in theirs.encode("<mask>").ids
    assert ours.mask_id not in ours.encode("<mask>")
    assert theirs.encode("a\u2581b").ids == theirs.encode("a b").ids
    assert ours.encode("a\u2581b") != ours.encode("a b")


def test_the_llama_class_puts_a_space_before_the_text(tmp_path: Path) -> None:
    """Why `tokenizer.json` is written: the class for SentencePiece files of LLaMA does not give our ids."""
    from transformers import LlamaTokenizer

    ours = PieceTokenizer(train_tokenizer(CORPUS, 420))
    theirs = LlamaTokenizer.from_pretrained(written(ours, "llama", tmp_path))
    assert theirs("def f")["input_ids"] == [ours.bos_id, *ours.encode(" def f")]
