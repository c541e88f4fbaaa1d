"""Pictures in one style, drawn without a display and written as PNG whole or not at all."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runtime.files import write_atomic

INK, GRID = "#33383f", "#dfe3e8"
PALETTE = BLUE, RUST, GREEN, VIOLET, OCHRE, GREY = "#1f5fa8", "#c8542b", "#2d8a5f", "#7d4fa3", "#a8862a", "#4a4f57"
_STYLE = {
    "font.size": 10.5,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9aa2ac",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
}


@contextmanager
def picture(out: Path, inches: tuple[float, float], dpi: int = 150) -> Iterator[Any]:
    """An empty matplotlib figure; at the end it goes to `out`."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context():
        mpl.rcdefaults()  # a personal style sheet must not change published figures
        mpl.rcParams.update(_STYLE)
        figure = Figure(figsize=inches, dpi=dpi, layout="constrained")
        yield figure
        image = io.BytesIO()
        figure.savefig(image, format="png")
    write_atomic(out, image.getvalue())


@contextmanager
def panels(out: Path, rows: int, columns: int, inches: tuple[float, float]) -> Iterator[list[Any]]:
    """The axes of `rows` × `columns` panels, row by row; at the end the picture goes to `out`."""
    with picture(out, inches) as figure:
        yield list(figure.subplots(rows, columns, squeeze=False).flat)
