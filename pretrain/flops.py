"""FLOPs per token by component: training, recomputation, and the passes of inference.

One multiply-add is two FLOPs. Only matrix products count: norms, rotary angles, activations, softmax and the
embedding look-up do not. Formulas follow PaLM (arXiv 2204.02311, appendix B), with exact causal attention.
What other papers count instead stands in `pretrain.flop_conventions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Literal

from pretrain.shape import ModelShape
from runtime.errors import UserError

Recompute = Literal["none", "selective", "full"]


@dataclass(frozen=True)
class FlopCount:
    """FLOPs, by default per token of the input sequence.

    projections: the weight matrices of attention and SwiGLU. attention: QKᵀ and the weighted sum of V.
    head: the output head. recompute: forward work that the backward pass does again.
    """

    projections: float
    attention: float
    head: float
    recompute: float = 0.0

    @property
    def total(self) -> float:
        """All components."""
        return self.projections + self.attention + self.head + self.recompute

    def times(self, factor: float) -> FlopCount:
        """Every component times `factor`, for instance a number of tokens."""
        return FlopCount(*(part * factor for part in astuple(self)))

    def __add__(self, other: FlopCount) -> FlopCount:
        return FlopCount(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def attended_positions(sequence_length: int, causal: bool) -> float:
    """Positions that a token attends to on average: all, or (s + 1)/2 below and on the diagonal.

    A dense kernel that masks instead of skipping computes all of them for a causal model too.
    """
    return (sequence_length + 1) / 2 if causal else float(sequence_length)


def attended_in_documents(lengths: Sequence[int], causal: bool) -> float:
    """The same when each token attends within its own document only: E[len²]/E[len], or with (len+1)/2 if causal.

    `lengths`: tokens of each document in the window (or in a sample of the corpus). Raises UserError if there is
    none or one is below 1.
    """
    if not lengths or min(lengths) < 1:
        raise UserError("lengths: documents have at least one token: give the length of each")
    return sum(n * attended_positions(n, causal) for n in lengths) / sum(lengths)


def forward_flops(shape: ModelShape, attended: float, head_rows: float = 1.0) -> FlopCount:
    """FLOPs of one forward pass per token that attends to `attended` positions and has logits with share `head_rows`.

    2 per weight; attention 4 · width per attended pair and layer (grouped-query attention changes the weights, not
    the pairs). Raises UserError for a share outside 0 … 1.
    """
    if not 0 <= head_rows <= 1:
        raise UserError(f"head_rows: {head_rows} is no fraction of the tokens: use a number from 0 to 1")
    return FlopCount(
        projections=2.0 * shape.parameters().non_embedding_matrices,
        attention=4.0 * shape.layers * attended * shape.heads * shape.head_width,
        head=2.0 * shape.vocabulary * shape.width * head_rows,
    )


def forward_flops_per_token(shape: ModelShape, sequence_length: int, causal: bool, head_rows: float = 1.0) -> FlopCount:
    """FLOPs of one forward pass per token of a sequence of `sequence_length` tokens.

    `head_rows` is the fraction of tokens whose logits are computed: 1 for an autoregressive model, the expected
    mask ratio for a masked one whose head runs on masked rows only. Raises UserError for numbers out of range.
    """
    if sequence_length < 1:
        raise UserError(f"sequence_length: {sequence_length} tokens make no sequence: use 1 or more")
    return forward_flops(shape, attended_positions(sequence_length, causal), head_rows)


def training_flops_per_token(
    shape: ModelShape, sequence_length: int, causal: bool, head_rows: float = 1.0
) -> FlopCount:
    """FLOPs of one forward and one backward pass per token: three times `forward_flops_per_token`.

    Convention: model FLOPs (as in MFU). Activation recomputation, also that inside a fused attention kernel,
    is not counted; the optimiser step is not counted.
    """
    return forward_flops_per_token(shape, sequence_length, causal, head_rows).times(3.0)


def hardware_flops_per_token(
    shape: ModelShape,
    sequence_length: int,
    causal: bool,
    head_rows: float = 1.0,
    recompute: Recompute = "none",
    attended: float | None = None,
) -> FlopCount:
    """What a training step computes per token, recomputation included (as in HFU).

    `attended`: positions that the kernels compute for a token, if they are others than the model needs (see
    `pretrain.hardware_flops`).
    A fused attention kernel computes QKᵀ again in its backward pass (FlashAttention, arXiv 2205.14135, algorithm 4):
    half a forward pass of attention, always. `selective` runs attention forward once more; `full` each layer, except
    the last product of SwiGLU: nothing in the backward pass needs its output, and torch stops there.
    """
    needed = attended_positions(sequence_length, causal)
    model = forward_flops(shape, needed if attended is None else attended, head_rows).times(3.0)
    attention = model.attention / 3
    again = attention / 2
    if recompute == "selective":
        again += attention
    if recompute == "full":
        again += attention + model.projections / 3 - 2.0 * shape.layers * shape.width * shape.ffn
    return FlopCount(model.projections, model.attention, model.head, again)


def block_diffusion_flops_per_token(
    shape: ModelShape, sequence_length: int, block: int, head_rows: float = 1.0
) -> FlopCount:
    """Training FLOPs per clean token of block diffusion with noisy and clean halves side by side (arXiv 2503.09573).

    All 2s tokens go through the projections; s² + s·block pairs are attended per head. Raises UserError unless
    `block` divides the sequence.
    """
    if block < 1 or sequence_length % block:
        raise UserError(f"block: {block} does not divide a sequence of {sequence_length} tokens: use a divisor")
    one = forward_flops(shape, sequence_length + block, head_rows)
    return FlopCount(2 * one.projections, one.attention, one.head).times(3.0)


def bound_flops(shape: ModelShape, length: int, draws: int) -> FlopCount:
    """FLOPs of the masked-diffusion bound of one sequence: `draws` forward passes, logits at every position."""
    return forward_flops_per_token(shape, length, causal=False).times(draws * length)


def likelihood_flops(shape: ModelShape, length: int) -> FlopCount:
    """FLOPs of the exact autoregressive likelihood of one sequence: one causal forward pass."""
    return forward_flops_per_token(shape, length, causal=True).times(length)


def diffusion_sampling_flops(shape: ModelShape, prompt: int, length: int, steps: int) -> FlopCount:
    """FLOPs to sample `length` tokens after `prompt` in `steps` passes, each over prompt and whole response.

    Logits at every position, as the sampler asks for them; no cache, since every pass changes every activation.
    """
    window = prompt + length
    return forward_flops_per_token(shape, window, causal=False).times(steps * window)


def autoregressive_sampling_flops(shape: ModelShape, prompt: int, length: int, cached: bool) -> FlopCount:
    """FLOPs to sample `length` tokens after `prompt` ones (BOS among them), one at a time.

    `cached`: keys and values are kept; the prompt is read once (logits of its last row), then each new token
    attends to what is there. Otherwise each token costs a pass over all before it with logits everywhere.
    """
    if cached:
        first = forward_flops_per_token(shape, prompt, causal=True, head_rows=1 / prompt).times(prompt)
        return sum((forward_flops(shape, prompt + i) for i in range(1, length)), first)
    passes = (forward_flops_per_token(shape, n, causal=True).times(n) for n in range(prompt, prompt + length))
    return sum(passes, FlopCount(0.0, 0.0, 0.0))


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
