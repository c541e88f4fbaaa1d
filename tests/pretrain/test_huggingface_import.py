"""Imported weights: every bit of the files, in the right places, or one line that names what does not fit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from data_pipeline.tokenizer import Tokenizer, train_tokenizer
from data_pipeline.tokenizer.piece_model import PieceTokenizer
from parallel.checkpoint.catalogue import verify_checkpoint
from parallel.checkpoint.reader import BlockReader
from pretrain.config import RunConfig
from pretrain.interop.export import prepare_export
from pretrain.interop.importer import Import, prepare_import
from pretrain.session import run_identity
from runtime.errors import UserError
from tests.support.checkpoints import Logical, publish_run
from tests.support.models import fill_model, local_model
from tests.support.tiny import tiny_config

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

VOCABULARY = 410
SINGLE = "model-00001-of-00001.safetensors"


def config_of(objective: str, **changes: Any) -> RunConfig:
    return tiny_config(objective, model__kv_heads=2, **{"model__vocabulary": VOCABULARY, **changes})


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return PieceTokenizer(train_tokenizer([Path("pretrain/model.py").read_text()], 400))


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> dict[str, tuple[Path, Logical]]:
    """Objective → directory and the state it was exported from."""
    found = {}
    for objective in ("masked", "autoregressive"):
        root = tmp_path_factory.mktemp(objective)
        checkpoint, state = publish_run(root, config_of(objective))
        prepare_export(checkpoint, tokenizer, None, shard_bytes=150_000).write(root / "hf", show_progress=False)
        found[objective] = (root / "hf", state)
    return found


@pytest.fixture
def llama(exports: dict[str, tuple[Path, Logical]], tmp_path: Path) -> Path:
    """A copy in one file that a test may change."""
    tensors = {}
    copy = Path(shutil.copytree(exports["autoregressive"][0], tmp_path / "llama"))
    for file in copy.glob("*.safetensors"):
        tensors |= load_file(file)
        file.unlink()
    (copy / "model.safetensors.index.json").unlink()
    save_file(tensors, copy / "model.safetensors")
    return copy


def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    values = load_file(path) if path.suffix == ".safetensors" else json.loads(path.read_text())
    edit(values)
    if path.suffix == ".safetensors":
        save_file(values, path)
    else:
        path.write_text(json.dumps(values))


def written(plan: Import, root: Path) -> Logical:
    """What the published checkpoint holds."""
    final = root / "step-00000000"
    plan.write(final, run_identity(plan.config, "data"), show_progress=False)
    manifest = verify_checkpoint(final)
    assert (manifest.step, manifest.updates, manifest.samples, manifest.tokens) == (0, 0, 0, 0)
    assert manifest.identity["objective.kind"] == plan.config.objective.kind
    reader = BlockReader(final, manifest)
    return {kind: {n: reader.read(kind, n) for n in manifest.shapes} for kind in manifest.blocks}


@pytest.mark.parametrize("source", ["masked", "autoregressive"])
@pytest.mark.parametrize("target", ["masked", "autoregressive"])
def test_every_bit_arrives_whatever_the_recipes_objective(
    exports: dict[str, tuple[Path, Logical]], tokenizer: Tokenizer, tmp_path: Path, source: str, target: str
) -> None:
    """LLaMA weights become the start of the bidirectional model, too."""
    directory, state = exports[source]
    plan = prepare_import(directory, config_of(target), tokenizer, None)
    assert plan.summary() == {
        "format": {"masked": "llada", "autoregressive": "llama"}[source],
        "dtypes": ["fp32"],
        "tensors": len(state["weight"]),
        "new_rows": 0,
        "tied_head_copied": False,
        "tokenizer_compared": True,
    }
    assert plan.notes() == []
    found = written(plan, tmp_path)
    assert found["weight"].keys() == state["weight"].keys()
    assert all(torch.equal(found["weight"][name], weight) for name, weight in state["weight"].items())
    assert not any(moment.any() for kind in ("exp_avg", "exp_avg_sq") for moment in found[kind].values())


@pytest.mark.parametrize(("dtype", "name"), [(torch.bfloat16, "bf16"), (torch.float16, "fp16")])
@pytest.mark.parametrize("tied", [False, True])
def test_what_transformers_itself_saves_is_read(
    tokenizer: Tokenizer, tmp_path: Path, dtype: torch.dtype, name: str, tied: bool
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = config_of("autoregressive")
    shape = config.model
    torch.manual_seed(3)
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.width,
            intermediate_size=shape.ffn,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            rope_parameters={"rope_theta": shape.rope_theta, "rope_type": "default"},
            rms_norm_eps=shape.norm_epsilon,
            tie_word_embeddings=tied,
        )
    ).to(dtype)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="60KB")
    plan = prepare_import(tmp_path / "theirs", config, tokenizer, None)
    assert (plan.tied, plan.files.dtypes) == (tied, {name})
    assert [note for note in plan.notes() if "begins as a copy of the embedding" in note] == plan.notes()[: int(tied)]
    assert "was not compared" in plan.notes()[-1]
    model = local_model(config)
    fill_model(model, written(plan, tmp_path)["weight"])
    ids = torch.randint(0, shape.vocabulary, (2, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        again = LlamaForCausalLM.from_pretrained(tmp_path / "theirs", dtype=torch.float32)
        assert (again(ids).logits - model.eval().logits(ids)).abs().max() <= 1e-5


def test_new_rows_begin_as_the_mean(llama: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A foreign vocabulary has no mask token: the recipe's vocabulary is longer."""
    config = config_of("masked", model__vocabulary=VOCABULARY + 3)
    with pytest.raises(UserError, match=r"set model.vocabulary=410, or begin .* with --new-rows mean"):
        prepare_import(llama, config, tokenizer, None)
    plan = prepare_import(llama, config, tokenizer, "mean")
    assert plan.new_rows == 3
    assert "3 new rows" in plan.notes()[0]
    found = written(plan, tmp_path)["weight"]
    theirs = load_file(llama / "model.safetensors")
    for ours, name in (("embedding", "model.embed_tokens.weight"), ("head", "lm_head.weight")):
        assert torch.equal(found[ours][:VOCABULARY], theirs[name])
        mean = theirs[name].double().mean(0).float()
        assert torch.equal(found[ours][VOCABULARY:], mean.expand(3, -1))


def test_weights_that_do_not_fit_are_named(llama: Path, tokenizer: Tokenizer) -> None:
    def refused(match: str, **changes: Any) -> None:
        with pytest.raises(UserError, match=match):
            prepare_import(llama, config_of("autoregressive", **changes), tokenizer, None)

    refused(r"num_hidden_layers is 2, the recipe has model.layers=3: set model.layers=2", model__layers=3)
    refused(r"num_attention_heads is 4, .* model.heads=2", model__heads=2)  # shapes alone do not tell heads
    refused(r"rope_theta is 500000.0, the recipe has model.rope_theta=1000.0", model__rope_theta=1000.0)
    refused(r"embed_tokens.weight is \[410, 64\], the recipe wants \[405, 64\]: set model", model__vocabulary=405)
    config = llama / "config.json"
    for key, value in (
        ("attention_bias", True),
        ("hidden_act", "gelu"),
        ("head_dim", 32),
        ("rope_scaling", {"rope_type": "llama3", "factor": 8.0}),
        ("rope_parameters", {"rope_type": "yarn"}),
        ("model_type", "mistral"),
    ):
        before = config.read_text()
        change(config, lambda values, key=key, value=value: values.update({key: value}))
        refused(f"config.json: {key} ")
        config.write_text(before)
    weights = llama / "model.safetensors"
    change(weights, lambda tensors: tensors.update({"model.layers.0.mlp.gate_proj.bias": torch.zeros(96)}))
    refused("holds model.layers.0.mlp.gate_proj.bias, which the recipe's model does not have")
    change(
        weights, lambda tensors: [tensors.pop(n) for n in ("model.layers.0.mlp.gate_proj.bias", "model.norm.weight")]
    )
    refused("lacks model.norm.weight")
    change(weights, lambda tensors: tensors.update({"model.norm.weight": torch.ones(63)}))
    refused(r"model.norm.weight is \[63\], the recipe wants \[64\]: change model")
    change(weights, lambda tensors: tensors.update({"model.norm.weight": torch.ones(64, dtype=torch.int8)}))
    refused("model.norm.weight is of type I8")


def test_files_that_are_no_weights_are_named(llama: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    def refused(match: str) -> None:
        with pytest.raises(UserError, match=match):
            prepare_import(llama, config_of("autoregressive"), tokenizer, None)

    weights = llama / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:200])
    refused(r"model.safetensors cannot be read")
    index = llama / "model.safetensors.index.json"
    for places in ({"a": "../secret.safetensors"}, {"a": "pytorch_model.bin"}, {"a": 3}, {}, ["a"]):
        index.write_text(json.dumps({"weight_map": places}))
        refused("index.json (names|has no weight_map)")
    weights.write_bytes(whole)
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "other.safetensors"}}))
    refused(r"other.safetensors cannot be read")
    index.write_text(json.dumps({"weight_map": {"made.up": "model.safetensors"}}))
    refused("places made.up in model.safetensors, which does not hold it")
    index.unlink()
    (llama / "config.json").write_text("[]")
    refused("config.json holds no keys")
    (llama / "config.json").unlink()
    refused("config.json does not exist")
    weights.rename(llama / "pytorch_model.bin")
    refused(r"only pytorch_model.bin: pickled files can run code and are not read, convert them")
    with pytest.raises(UserError, match="is no directory"):
        prepare_import(tmp_path / "none", config_of("masked"), tokenizer, None)


def test_a_foreign_tokenizer_is_named(llama: Path, tokenizer: Tokenizer) -> None:
    other = PieceTokenizer(train_tokenizer([Path("pretrain/loop.py").read_text()], 400))
    number = next(i for i in range(400) if other.piece(i) != tokenizer.piece(i))
    (llama / "tokenizer.model").write_bytes(other.model)
    with pytest.raises(UserError, match=rf"tokenizer.model: id {number} is .*kind: existing"):
        prepare_import(llama, config_of("masked"), tokenizer, None)
    (llama / "tokenizer.model").write_bytes(b"none")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        prepare_import(llama, config_of("masked"), tokenizer, None)
