"""FLOPs per token by component, and the 6ND rule.

One multiply-add is two FLOPs. Only matrix products count: norms, rotary angles, activations, softmax and the
embedding look-up do not. Formulas follow PaLM (arXiv 2204.02311, appendix B), with exact causal attention.
"""

from dataclasses import dataclass

from pretrain.shape import ModelShape
from runtime.errors import UserError


@dataclass(frozen=True)
class FlopCount:
    """FLOPs per token of the input sequence.

    projections: the weight matrices of attention and SwiGLU. attention: QKᵀ and the weighted sum of V.
    head: the output head.
    """

    projections: float
    attention: float
    head: float

    @property
    def total(self) -> float:
        """All components."""
        return self.projections + self.attention + self.head

    def times(self, factor: float) -> "FlopCount":
        """Every component times `factor`, for instance a number of tokens."""
        return FlopCount(self.projections * factor, self.attention * factor, self.head * factor)


def forward_flops_per_token(shape: ModelShape, sequence_length: int, causal: bool, head_rows: float = 1.0) -> FlopCount:
    """FLOPs of one forward pass per token of a sequence of `sequence_length` tokens.

    Convention: 2 per weight; attention 4·width per attended pair and layer, where a token attends to
    `sequence_length` tokens, or on average to (sequence_length + 1)/2 if `causal` (itself included, nothing
    computed above the diagonal). `head_rows` is the fraction of tokens whose logits are computed: 1 for an
    autoregressive model, the expected mask ratio for a masked one whose head runs on masked rows only.
    Raises UserError for numbers out of range.
    """
    if sequence_length < 1:
        raise UserError(f"sequence_length: {sequence_length} tokens make no sequence: use 1 or more")
    if not 0 <= head_rows <= 1:
        raise UserError(f"head_rows: {head_rows} is no fraction of the tokens: use a number from 0 to 1")
    attended = (sequence_length + 1) / 2 if causal else sequence_length
    return FlopCount(
        projections=2.0 * shape.parameters().non_embedding_matrices,
        attention=4.0 * shape.layers * attended * shape.heads * shape.head_width,
        head=2.0 * shape.vocabulary * shape.width * head_rows,
    )


def training_flops_per_token(
    shape: ModelShape, sequence_length: int, causal: bool, head_rows: float = 1.0
) -> FlopCount:
    """FLOPs of one forward and one backward pass per token: three times `forward_flops_per_token`.

    Convention: model FLOPs (as in MFU). Activation recomputation, also that inside a fused attention kernel,
    is not counted; the optimiser step is not counted.
    """
    return forward_flops_per_token(shape, sequence_length, causal, head_rows).times(3.0)


def expected_mask_ratio(epsilon: float = 0.0) -> float:
    """Mean fraction of masked tokens when the mask probability is (1−ε)·u + ε, u uniform: (1+ε)/2.

    Convention: the `head_rows` of a masked-diffusion model whose head runs on masked rows only.
    """
    return (1 + epsilon) / 2


def six_nd(parameters_non_embedding: int, tokens: float) -> float:
    """Training FLOPs of a run by the rule 6·N·D, the figure LLaDA and SMDM plot.

    Convention: N counts weight matrices of the layers, without norms, input embedding and output head
    (`ParameterCount.non_embedding_matrices`); attention scores and the head are left out. The same for masked
    and autoregressive models, so at equal 6ND a masked model does more work than a causal one.
    """
    return 6.0 * parameters_non_embedding * tokens
