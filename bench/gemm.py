"""The machine's limit: the best float32 matrix-product rate, over squares and the models' own matrices."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bench.timing import fastest
from parallel.mesh import default_device
from pretrain.config import RunConfig

_SQUARES = (256, 512, 1024, 2048)
_SECONDS_PER_SIZE = 0.4


@dataclass(frozen=True)
class Gemm:
    """x [rows, inputs] · Wᵀ [inputs, outputs]."""

    name: str
    rows: int
    inputs: int
    outputs: int

    def rate(self, budget: float = _SECONDS_PER_SIZE) -> float:
        """Best FLOP/s of this product with torch's threads, over about `budget` seconds."""
        device = default_device(0)
        x, weight = (
            torch.randn(self.rows, self.inputs, device=device),
            torch.randn(self.outputs, self.inputs, device=device),
        )
        out = torch.empty(self.rows, self.outputs, device=device)

        def product() -> None:
            torch.mm(x, weight.t(), out=out)
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return 2 * self.rows * self.inputs * self.outputs / fastest(product, budget)


@dataclass(frozen=True)
class GemmRates:
    """FLOP/s by product, and the product that was fastest."""

    rates: dict[str, float]
    best: Gemm

    @property
    def limit(self) -> float:
        """The best of all, FLOP/s."""
        return self.rates[self.best.name]


def gemms_of(label: str, config: RunConfig) -> list[Gemm]:
    """The products of a forward pass over one micro-batch of `config`; the head takes the expected masked rows."""
    shape, rows = config.model, config.train.micro_batch * config.train.sequence_length
    head_rows = round(rows * config.objective.head_rows)
    attention = shape.heads * shape.head_width
    key_value = shape.kv_heads * shape.head_width
    return [
        Gemm(f"{label} query, key, value", rows, shape.width, attention + 2 * key_value),
        Gemm(f"{label} attention output", rows, attention, shape.width),
        Gemm(f"{label} gate, up", rows, shape.width, 2 * shape.ffn),
        Gemm(f"{label} down", rows, shape.ffn, shape.width),
        Gemm(f"{label} head", head_rows, shape.width, shape.vocabulary),
    ]


def measure_gemm(models: dict[str, RunConfig]) -> GemmRates:
    """Rates of squares and of the matrices of `models` (label → configuration)."""
    gemms = [Gemm("square", size, size, size) for size in _SQUARES]
    gemms = [Gemm(f"square {g.rows}", g.rows, g.inputs, g.outputs) for g in gemms]
    for label, config in models.items():
        gemms += gemms_of(label, config)
    rates = {gemm.name: gemm.rate() for gemm in gemms}
    return GemmRates(rates, max(gemms, key=lambda gemm: rates[gemm.name]))
