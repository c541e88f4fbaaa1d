"""`config.json` of the Hugging Face layouts: written from a model's shape, and compared with one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_pipeline.tokenizer import Tokenizer
from pretrain.interop.names import LAYOUTS
from pretrain.shape import ModelShape
from runtime.errors import UserError, suggestion

# our key → its name in each layout
_SHAPE_KEYS = {
    "layers": {"llada": "n_layers", "llama": "num_hidden_layers"},
    "width": {"llada": "d_model", "llama": "hidden_size"},
    "heads": {"llada": "n_heads", "llama": "num_attention_heads"},
    "kv_heads": {"llada": "n_kv_heads", "llama": "num_key_value_heads"},
    "ffn": {"llada": "mlp_hidden_size", "llama": "intermediate_size"},
    "rope_theta": {"llada": "rope_theta", "llama": "rope_theta"},
    "norm_epsilon": {"llada": "rms_norm_eps", "llama": "rms_norm_eps"},
}
# what the layouts' own code takes where the file says nothing
_DEFAULTS = {
    "rope_theta": {"llada": 10000.0, "llama": 10000.0},
    "norm_epsilon": {"llada": 1e-5, "llama": 1e-6},
}
# what our model is; the layouts could also describe others
_FIXED: dict[str, dict[str, Any]] = {
    "llada": {
        "block_type": "llama",
        "block_group_size": 1,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "activation_type": "silu",
        "rope": True,
        "rope_full_precision": True,
        "alibi": False,
        "attention_layer_norm": False,
        "bias_for_layer_norm": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "input_emb_norm": False,
        "scale_logits": False,
    },
    "llama": {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
}
_TIED = {"llada": "weight_tying", "llama": "tie_word_embeddings"}
_WINDOW = {"llada": "max_sequence_length", "llama": "max_position_embeddings"}
_CLASS = {"llada": "LLaDAModelLM", "llama": "LlamaForCausalLM"}
_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def describe_model(
    shape: ModelShape, layout: str, sequence_length: int, tokenizer: Tokenizer, dtype: str
) -> dict[str, Any]:
    """The `config.json` of a model with `shape` in `layout`; `dtype` is fp32 or bf16."""
    values: dict[str, Any] = {"architectures": [_CLASS[layout]], "model_type": layout}
    values |= {names[layout]: getattr(shape, key) for key, names in _SHAPE_KEYS.items()}
    values |= {"vocab_size": shape.vocabulary, _WINDOW[layout]: sequence_length, _TIED[layout]: False}
    values |= _FIXED[layout]
    if layout == "llada":
        values |= {"embedding_size": shape.vocabulary, "init_std": shape.init_std, "flash_attention": False}
        values |= {f"{part}_dropout": 0.0 for part in ("attention", "embedding", "residual")}
        values |= {"use_cache": False, "mask_token_id": tokenizer.mask_id}
    else:
        values |= {"head_dim": shape.head_width, "initializer_range": shape.init_std, "attention_dropout": 0.0}
    return values | {"torch_dtype": _DTYPES[dtype]} | special_ids(tokenizer)


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """BOS, EOS and padding as generation reads them."""
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }


def layout_of(values: Mapping[str, Any], where: str) -> str:
    """The layout that a `config.json` describes. Raises UserError if it is neither of the two."""
    kind = values.get("model_type")
    if kind not in LAYOUTS:
        raise UserError(
            f"{where}: model_type {kind!r} is none of {', '.join(LAYOUTS)}{suggestion(str(kind), LAYOUTS)}: "
            "only these two layouts are read"
        )
    return str(kind)


def is_tied(values: Mapping[str, Any], layout: str) -> bool:
    """Whether the head is the embedding, so that the files hold only one of them."""
    return bool(values.get(_TIED[layout], False))


def require_same_model(values: Mapping[str, Any], where: str, shape: ModelShape) -> None:
    """Compare a `config.json` with a recipe's model, the vocabulary apart (the tensors tell it).

    Raises UserError naming the first key that differs, or that our model cannot follow.
    """
    layout = layout_of(values, where)
    for key, fixed in _FIXED[layout].items():
        if values.get(key) not in (None, fixed):
            raise UserError(f"{where}: {key} is {values[key]!r}, our model has {fixed!r}: it cannot be imported")
    _refuse_scaled_rotary(values, where)
    given = {key: _value(values, key, layout) for key in _SHAPE_KEYS}
    for key, names in _SHAPE_KEYS.items():
        wanted = getattr(shape, key)
        if given[key] != wanted:
            raise UserError(
                f"{where}: {names[layout]} is {given[key]!r}, the recipe has model.{key}={wanted!r}: "
                f"set model.{key}={given[key]}"
            )
    head_width = values.get("head_dim")
    if head_width not in (None, shape.head_width):
        raise UserError(f"{where}: head_dim is {head_width!r}, our heads have width / heads = {shape.head_width}")


def _value(values: Mapping[str, Any], key: str, layout: str) -> Any:
    name = _SHAPE_KEYS[key][layout]
    found = values.get(name)
    if found is None and key == "rope_theta":  # newer files keep it in a section of its own
        found = (values.get("rope_parameters") or {}).get(name)
    if found is None and key == "kv_heads":
        found = values.get(_SHAPE_KEYS["heads"][layout])
    return _DEFAULTS.get(key, {}).get(layout) if found is None else found


def _refuse_scaled_rotary(values: Mapping[str, Any], where: str) -> None:
    for key in ("rope_scaling", "rope_parameters"):
        section = values.get(key) or {}
        kind = section.get("rope_type", section.get("type", "default")) if isinstance(section, dict) else section
        if kind != "default":
            raise UserError(
                f"{where}: {key} is of type {kind!r}, our rotary angles are not scaled: it cannot be imported"
            )
