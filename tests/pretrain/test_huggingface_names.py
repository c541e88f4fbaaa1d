"""Every tensor of the published models has its name and shape, told by the model on the meta device."""

import pytest
import torch

from launch.recipe import load_recipe
from pretrain.interop.names import LAYOUTS, hugging_face_name, model_tensors
from tests.support.reference_model import logical_shapes
from tests.support.tiny import tiny_config

LLADA_BLOCK = {  # 9 a block, as the published LLaDA 8B has them; width 4096, ffn 12288
    "attn_norm": (4096,),
    "q_proj": (4096, 4096),
    "k_proj": (4096, 4096),
    "v_proj": (4096, 4096),
    "attn_out": (4096, 4096),
    "ff_norm": (4096,),
    "ff_proj": (12288, 4096),
    "up_proj": (12288, 4096),
    "ff_out": (4096, 12288),
}


def named(recipe: str, layout: str) -> dict[str, tuple[int, ...]]:
    shape = load_recipe(recipe, ["data.path=none"]).model
    return {hugging_face_name(name, layout): size for name, size in model_tensors(shape).items()}


def test_llada_8b_has_its_291_tensors() -> None:
    expected = {
        "model.transformer.wte.weight": (126464, 4096),
        "model.transformer.ln_f.weight": (4096,),
        "model.transformer.ff_out.weight": (126464, 4096),
    }
    for i in range(32):
        expected |= {f"model.transformer.blocks.{i}.{name}.weight": size for name, size in LLADA_BLOCK.items()}
    assert len(expected) == 291
    assert named("llada-8b", "llada") == expected


@pytest.mark.parametrize("recipe", ["ar-1b", "ar-7b"])
def test_the_baseline_has_the_names_and_shapes_of_transformers_own_llama(recipe: str) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = load_recipe(recipe, ["data.path=none"]).model
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        theirs = LlamaForCausalLM(config).state_dict()
    assert named(recipe, "llama") == {name: tuple(tensor.shape) for name, tensor in theirs.items()}


def test_the_model_tells_its_tensors_in_order_of_depth() -> None:
    shape = tiny_config(model__kv_heads=2).model
    assert list(model_tensors(shape).items()) == sorted(model_tensors(shape).items(), key=lambda item: _depth(item[0]))
    assert model_tensors(shape) == logical_shapes(shape)
    for layout in LAYOUTS:
        names = [hugging_face_name(name, layout) for name in model_tensors(shape)]
        assert len(set(names)) == len(names)


def _depth(name: str) -> tuple[int, int]:
    if name.startswith("blocks."):
        return 1, int(name.split(".")[1])
    return {"embedding": (0, 0), "norm": (2, 0), "head": (2, 1)}[name]
