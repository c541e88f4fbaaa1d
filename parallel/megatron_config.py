"""megatron-core's own configuration object, filled from a layout."""

from typing import Any

import torch

from parallel.mesh import Mesh


def transformer_config(mesh: Mesh, layers: int, width: int, heads: int, precision: str) -> Any:
    """A `TransformerConfig` for our model under `mesh`; fusions that need TransformerEngine or apex are off."""
    from megatron.core.transformer.transformer_config import TransformerConfig

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return TransformerConfig(
        num_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        tensor_model_parallel_size=mesh.layout.tensor,
        sequence_parallel=mesh.layout.sequence,
        params_dtype=torch.float32,
        pipeline_dtype=dtype,
        bf16=precision == "bf16",
        use_cpu_initialization=mesh.device.type == "cpu",
        perform_initialization=False,
        gradient_accumulation_fusion=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        calculate_per_token_loss=True,
    )
