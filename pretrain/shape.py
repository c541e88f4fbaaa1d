"""The shape of a model: what decides its parameters and its FLOPs."""

from dataclasses import dataclass
from typing import Self

from pydantic import Field, model_validator

from runtime.settings import Settings


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters.

    embedding: input embedding and output head together. norms: all norm vectors.
    non_embedding: total − embedding, norms included.
    """

    total: int
    non_embedding: int
    embedding: int
    norms: int

    @property
    def non_embedding_matrices(self) -> int:
        """Weights of matrix products in the layers: non-embedding without norms, the N of 6·N·D."""
        return self.non_embedding - self.norms


class ModelShape(Settings):
    """Shape of a LLaMA-style Transformer: RMSNorm, SwiGLU, RoPE, no biases, untied embeddings.

    layers, width (of the residual stream), heads, kv_heads (fewer than heads: grouped-query attention),
    ffn (hidden width of SwiGLU), vocabulary (ids), rope_theta (base of the rotary angles), norm_epsilon,
    init_std (of the normal initialisation).
    """

    layers: int = Field(gt=0)
    width: int = Field(gt=0)
    heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    ffn: int = Field(gt=0)
    vocabulary: int = Field(gt=0)
    rope_theta: float = Field(default=500_000.0, gt=0, allow_inf_nan=False)
    norm_epsilon: float = Field(default=1e-5, gt=0, allow_inf_nan=False)
    init_std: float = Field(default=0.02, gt=0, allow_inf_nan=False)

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    @model_validator(mode="after")
    def _heads_fit_width(self) -> Self:
        if self.width % 2:
            raise ValueError(f"width: {self.width} is odd and heads need an even width: use {self.width + 1}")
        if self.width % (2 * self.heads):  # rotary angles turn pairs of numbers, so a head is even
            nearest = _nearest_divisor(self.width // 2, self.heads)
            raise ValueError(
                f"heads: {self.heads} do not divide width {self.width} in heads of even width: use {nearest}"
            )
        if self.heads % self.kv_heads:
            nearest = _nearest_divisor(self.heads, self.kv_heads)
            raise ValueError(f"kv_heads: {self.kv_heads} do not divide {self.heads} heads: use {nearest}")
        return self

    def parameters(self) -> ParameterCount:
        """Count parameters: Q and O, K and V, three matrices of SwiGLU; two norms a layer and a last one."""
        attention = 2 * self.width * self.width + 2 * self.width * self.kv_heads * self.head_width
        matrices = self.layers * (attention + 3 * self.width * self.ffn)
        norms = (2 * self.layers + 1) * self.width
        embedding = 2 * self.vocabulary * self.width
        return ParameterCount(matrices + norms + embedding, matrices + norms, embedding, norms)


def _nearest_divisor(number: int, wanted: int) -> int:
    divisors = [n for n in range(1, number + 1) if number % n == 0]
    return min(divisors, key=lambda n: abs(n - wanted))
