"""Names of tensors in the Hugging Face layouts of LLaDA and LLaMA.

Both hold each logical tensor whole, in our orientation ([outputs, inputs]) and with our rotary halves, so that a
name is all that differs: nothing is fused, split, transposed or permuted.
"""

from __future__ import annotations

import torch

from parallel.logical import Extent, logical_shapes
from parallel.mesh import Mesh
from pretrain.model import Transformer
from pretrain.shape import ModelShape

LAYOUTS = ("llada", "llama")
"""`llada`: the masked model (GSAI-ML/LLaDA-8B-Base); `llama`: the autoregressive baseline (`LlamaForCausalLM`)."""

_OUTER = {
    "llada": {
        "embedding": "model.transformer.wte.weight",
        "norm": "model.transformer.ln_f.weight",
        "head": "model.transformer.ff_out.weight",
    },
    "llama": {"embedding": "model.embed_tokens.weight", "norm": "model.norm.weight", "head": "lm_head.weight"},
}
_BLOCKS = {"llada": "model.transformer.blocks", "llama": "model.layers"}
_INNER = {
    "llada": {
        "attention_norm": "attn_norm",
        "attention.query": "q_proj",
        "attention.key": "k_proj",
        "attention.value": "v_proj",
        "attention.output": "attn_out",
        "feed_forward_norm": "ff_norm",
        "feed_forward.gate": "ff_proj",
        "feed_forward.up": "up_proj",
        "feed_forward.down": "ff_out",
    },
    "llama": {
        "attention_norm": "input_layernorm",
        "attention.query": "self_attn.q_proj",
        "attention.key": "self_attn.k_proj",
        "attention.value": "self_attn.v_proj",
        "attention.output": "self_attn.o_proj",
        "feed_forward_norm": "post_attention_layernorm",
        "feed_forward.gate": "mlp.gate_proj",
        "feed_forward.up": "mlp.up_proj",
        "feed_forward.down": "mlp.down_proj",
    },
}


def hugging_face_name(logical: str, layout: str) -> str:
    """The name of logical tensor `logical` in `layout` (one of `LAYOUTS`)."""
    if logical in _OUTER[layout]:
        return _OUTER[layout][logical]
    _, number, part = logical.split(".", 2)
    return f"{_BLOCKS[layout]}.{number}.{_INNER[layout][part]}.weight"


def model_tensors(shape: ModelShape) -> dict[str, Extent]:
    """Names and shapes of a model's logical tensors, in order of depth; the model itself tells, without memory."""
    with torch.device("meta"):
        return logical_shapes(Transformer(shape, Mesh.local(torch.device("meta")), None, causal=False, head_chunk=1))
