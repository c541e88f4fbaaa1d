"""What other studies found, to stand beside ours. Figures as the papers print them, or as said in `note`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """Exponents of best size, data and loss in compute; None where a study gives none."""

    study: str
    model: str
    size: float | None
    data: float | None
    loss: float | None
    counts: str
    note: str = ""


EXPONENTS = (
    Published("SMDM (2410.18514)", "masked", 0.634, 0.366, -0.0615, "6·N·D", "read off its plots by 2512.10858"),
    Published(
        "SMDM (2410.18514)", "autoregressive", 0.644, 0.356, -0.0633, "6·N·D", "read off its plots by 2512.10858"
    ),
    Published("ETH (2512.10858)", "masked", 0.566, 0.434, -0.0496, "FLOPs per token, no head", "no annealing"),
    Published("ETH (2512.10858)", "uniform", 0.589, 0.411, -0.0522, "FLOPs per token, no head", "no annealing"),
    Published("Quokka (2510.03280)", "masked", 0.514, 0.486, None, "6·N·D", "as listed by 2512.10858"),
    Published("Chinchilla (2203.15556)", "autoregressive", 0.49, 0.51, None, "6·N·D", "its second approach"),
    Published("DeepSeek (2401.02954)", "autoregressive", 0.5243, 0.4757, None, "FLOPs per token, no head"),
)

RATIOS = (
    "SMDM: about 16 times the compute for equal validation loss (bound against exact), best size about half, by 6·N·D "
    "with one learning rate and batch for all sizes.",
    "Quokka: diffusion models want 2 to 5 times as much data as Chinchilla at equal compute.",
    "ETH: no compute ratio to autoregressive models; masked against uniform noise 3.2 % apart at 1e18 FLOPs, 1.7 % at "
    "1e21.",
)

REPEATS = (
    "2507.15857 (C4, 25 to 100 M unique tokens): R_D* 494 for diffusion against 31 autoregressive in its table (513 "
    "and 32 in its text), R_N* 1266 against 55; R² 0.98 and 0.76.",
    "There, repeats are nearly as good as fresh tokens for about 100 epochs (diffusion) and 4 (autoregressive). "
    "Others dispute its losses. The compute from which diffusion is ahead grows as U^2.17.",
    "Quokka (2510.03280), masked diffusion: the loss is U-shaped in epochs too, and rises after a number of epochs "
    "that goes with U^0.39 / N^0.55, about 1,100 for 10 billion parameters on 1 trillion unique tokens.",
)
