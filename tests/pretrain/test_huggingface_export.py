"""Exported weights: read by transformers itself (LLaMA) and by the reference model (LLaDA), with our own logits."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from data_pipeline.tokenizer import Tokenizer, train_tokenizer
from data_pipeline.tokenizer.piece_model import PieceTokenizer
from pretrain.config import RunConfig
from pretrain.interop.export import INDEX, Export, prepare_export
from runtime.errors import UserError
from tests.support import reference_model
from tests.support.checkpoints import Logical, publish, publish_run
from tests.support.models import fill_model, local_model
from tests.support.tiny import tiny_config

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

VOCABULARY = 420


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return PieceTokenizer(train_tokenizer([Path("pretrain/model.py").read_text()], 400))


def config_of(objective: str, kv_heads: int = 2) -> RunConfig:
    return tiny_config(objective, model__kv_heads=kv_heads, model__vocabulary=VOCABULARY, model__rope_theta=1000.0)


def exported(tmp_path: Path, tokenizer: Tokenizer, objective: str, **options: Any) -> tuple[Path, Logical, Export]:
    checkpoint, state = publish_run(tmp_path, config_of(objective))
    plan = prepare_export(checkpoint, tokenizer, None, **options)
    out = tmp_path / "exported"
    plan.write(out, show_progress=False)
    return out, state, plan


def tensors_of(out: Path) -> dict[str, torch.Tensor]:
    """By the index, as every reader of this layout does it."""
    places = json.loads((out / INDEX).read_text())["weight_map"]
    tensors = {}
    for name, file in places.items():
        with safe_open(out / file, framework="pt") as source:
            tensors[name] = source.get_tensor(name)
    return tensors


def our_logits(objective: str, state: Logical, ids: torch.Tensor) -> torch.Tensor:
    model = local_model(config_of(objective))
    fill_model(model, state["weight"])
    with torch.no_grad():
        return model.eval().logits(ids)


IDS = torch.randint(0, VOCABULARY, (2, 32), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 20_000])
def test_transformers_gives_our_logits(tmp_path: Path, tokenizer: Tokenizer, shard_bytes: int) -> None:
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    out, state, plan = exported(tmp_path, tokenizer, "autoregressive", shard_bytes=shard_bytes)
    assert len(list(out.glob("*.safetensors"))) == len(plan.shards) == (1 if shard_bytes > 1e9 else 15)
    theirs = AutoModelForCausalLM.from_pretrained(out)
    assert isinstance(theirs, LlamaForCausalLM)
    assert theirs.dtype == torch.float32
    assert theirs.config.rope_parameters["rope_theta"] == 1000.0
    assert (theirs.config.bos_token_id, theirs.generation_config.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)
    with torch.no_grad():
        logits = theirs(IDS).logits
    assert (logits - our_logits("autoregressive", state, IDS)).abs().max() <= 1e-5
    assert logits.abs().max() > 1


def test_the_reference_model_reads_llada_names_and_gives_our_logits(tmp_path: Path, tokenizer: Tokenizer) -> None:
    out, state, _ = exported(tmp_path, tokenizer, "masked")
    tensors = tensors_of(out)
    config = json.loads((out / "config.json").read_text())
    weights = {
        "embedding": tensors["model.transformer.wte.weight"],
        "norm": tensors["model.transformer.ln_f.weight"],
        "head": tensors["model.transformer.ff_out.weight"],
    }
    inner = {"attention_norm": "attn_norm", "feed_forward_norm": "ff_norm", "attention.output": "attn_out"}
    inner |= {f"attention.{n}": f"{n[0]}_proj" for n in ("query", "key", "value")}
    inner |= {"feed_forward.gate": "ff_proj", "feed_forward.up": "up_proj", "feed_forward.down": "ff_out"}
    for i in range(config["n_layers"]):
        block = f"model.transformer.blocks.{i}"
        weights |= {f"blocks.{i}.{name}": tensors[f"{block}.{theirs}.weight"] for name, theirs in inner.items()}
    assert len(weights) == len(tensors)
    shape = config_of("masked").model
    told = {"n_heads": shape.heads, "n_kv_heads": 2, "mlp_hidden_size": shape.ffn, "rope_theta": 1000.0}
    told |= {"model_type": "llada", "weight_tying": False, "mask_token_id": tokenizer.mask_id, "vocab_size": VOCABULARY}
    assert told.items() <= config.items()
    double = {name: weight.double() for name, weight in weights.items()}
    logits = reference_model.logits(double, shape, IDS, causal=False)
    assert (logits - our_logits("masked", state, IDS)).abs().max() <= 1e-5


def test_float32_keeps_every_bit_and_bfloat16_rounds(tmp_path: Path, tokenizer: Tokenizer) -> None:
    out, state, _ = exported(tmp_path, tokenizer, "masked")
    embedding = tensors_of(out)["model.transformer.wte.weight"]
    assert torch.equal(embedding, state["weight"]["embedding"])
    plan = prepare_export(tmp_path / "step-00000003", tokenizer, "llada", "bf16")
    plan.write(tmp_path / "half", show_progress=False)
    half = tensors_of(tmp_path / "half")
    assert torch.equal(half["model.transformer.wte.weight"], state["weight"]["embedding"].bfloat16())
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    total = json.loads((tmp_path / "half" / INDEX).read_text())["metadata"]["total_size"]
    assert total == plan.bytes == sum(tensor.nbytes for tensor in half.values())


def test_what_cannot_be_exported_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    checkpoint, state = publish_run(tmp_path, config_of("masked"))
    with pytest.raises(UserError, match=r"--format llama is not for objective masked .*: use --format llada"):
        prepare_export(checkpoint, tokenizer, "llama")
    large = PieceTokenizer(train_tokenizer([Path("pretrain/model.py").read_text()], 430))
    with pytest.raises(UserError, match="the tokenizer has 430 ids, the model 420"):
        prepare_export(checkpoint, large, None)
    nameless = publish(tmp_path / "step-00000004", state, 4, {})
    with pytest.raises(UserError, match="does not say its objective"):
        prepare_export(nameless, tokenizer, None)
    plan = prepare_export(checkpoint, tokenizer, None)
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match="taken exists already"):
        plan.write(tmp_path / "taken", show_progress=False)
    weights = checkpoint / "shard-00000.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 6] ^= 1  # the first third of the file are the weights
    weights.write_bytes(data)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"shard-00000.safetensors does not match its digest"):
        plan.write(tmp_path / "out", show_progress=False)
    assert sorted(tmp_path.iterdir()) == before  # neither the directory nor its staging
