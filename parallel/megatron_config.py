"""megatron-core's own configuration object, filled from a layout."""

from typing import Any

import torch

from parallel.mesh import Mesh


def transformer_config(mesh: Mesh, width: int, heads: int, precision: str) -> Any:
    """A `TransformerConfig` for our model under `mesh`; fusions that need TransformerEngine or apex are off.

    The layer count is that of the chunks only: megatron checks it for divisibility, while stages here may be uneven
    (`parallel.stages`) and our model builds its own layers.
    """
    from megatron.core.transformer.transformer_config import TransformerConfig

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    virtual = mesh.layout.virtual_pipeline
    return TransformerConfig(
        num_layers=mesh.layout.chunks,
        hidden_size=width,
        num_attention_heads=heads,
        tensor_model_parallel_size=mesh.layout.tensor,
        pipeline_model_parallel_size=mesh.layout.pipeline,
        virtual_pipeline_model_parallel_size=virtual if virtual > 1 else None,
        context_parallel_size=mesh.layout.context,
        # interleaved schedules exchange activations while computing; batched exchange deadlocks there
        overlap_p2p_comm=virtual > 1,
        batch_p2p_comm=virtual == 1,
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
