"""Batch and learning rate of a point: published rules of autoregressive training, or fixed numbers.

Quokka (arXiv 2510.03280) found that such rules transfer to masked diffusion.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from runtime.settings import Settings


class Hyperparameters(NamedTuple):
    """Batch in tokens and peak learning rate."""

    batch_tokens: float
    lr: float


class _Published(Settings):
    batch_factor: float = Field(1.0, gt=0)
    lr_factor: float = Field(1.0, gt=0)

    def _scaled(self, batch_tokens: float, lr: float) -> Hyperparameters:
        return Hyperparameters(self.batch_factor * batch_tokens, self.lr_factor * lr)


class DeepSeekRule(_Published):
    """B = 0.2920·C^0.3271 tokens, η = 0.3118·C^−0.1250 (arXiv 2401.02954, eq. 1); C without the head's FLOPs."""

    kind: Literal["deepseek"] = "deepseek"

    def at(self, parameters: float, tokens: float, compute: float) -> Hyperparameters:
        """Batch and rate; `compute` are the layers' training FLOPs."""
        del parameters, tokens
        return self._scaled(0.2920 * compute**0.3271, 0.3118 * compute**-0.1250)


class StepLaw(_Published):
    """B = 0.58·D^0.571 tokens, η = 1.79·N^−0.713·D^0.307 (arXiv 2503.04715, eq. 1)."""

    kind: Literal["steplaw"] = "steplaw"

    def at(self, parameters: float, tokens: float, compute: float) -> Hyperparameters:
        """Batch and rate of N weights and D tokens."""
        del compute
        return self._scaled(0.58 * tokens**0.571, 1.79 * parameters**-0.713 * tokens**0.307)


class FixedRule(Settings):
    """The same for all points, as SMDM (arXiv 2410.18514) does it."""

    kind: Literal["fixed"] = "fixed"
    batch_tokens: float = Field(gt=0)
    lr: float = Field(gt=0)

    def at(self, parameters: float, tokens: float, compute: float) -> Hyperparameters:
        """The given numbers."""
        del parameters, tokens, compute
        return Hyperparameters(self.batch_tokens, self.lr)


Rule = Annotated[DeepSeekRule | StepLaw | FixedRule, Field(discriminator="kind")]
