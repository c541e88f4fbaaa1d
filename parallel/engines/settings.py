"""Settings of the optimizer that every engine runs."""

from typing import Annotated

from pydantic import Field

from runtime.settings import Settings

Rate = Annotated[float, Field(ge=0, lt=1)]


class AdamWSettings(Settings):
    """AdamW (Loshchilov & Hutter 2019) with gradient clipping by the global norm; vectors are not decayed."""

    betas: tuple[Rate, Rate] = (0.9, 0.95)
    epsilon: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    clip: float = Field(1.0, gt=0)
