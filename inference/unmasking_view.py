"""How a sample came to be, as lines for a terminal."""

from collections.abc import Callable

from rich.cells import cell_len

from inference.sampler import SampleResult
from runtime.errors import UserError

_MASK = "░"


def render_unmasking(
    result: SampleResult, decode_piece: Callable[[int], str], frames: int = 6, row: int = 0
) -> list[str]:
    """At most `frames` lines that show sequence `row` after evenly spaced forward passes, the last one whole.

    A line is `passes/all  text`: the prompt, then the response with every token that is still masked as
    "░" as wide as the piece it will become, so that text stays in its place from line to line.
    `decode_piece` gives the text of one id; line breaks are shown as "⏎", other control characters as "·".
    Raises UserError if `frames` is below 1.
    """
    if frames < 1:
        raise UserError(f"frames: {frames} lines show nothing: use 1 or more")
    pieces = [_printable(decode_piece(token)) for token in result.tokens[row].tolist()]
    revealed_at = result.revealed_at[row].tolist()
    prompt, response = pieces[: -len(revealed_at)], pieces[-len(revealed_at) :]
    width = len(str(result.forwards))
    lines = []
    for passes in _frame_times(result.forwards, frames):
        shown = [
            piece if time < passes else _MASK * max(1, cell_len(piece))
            for piece, time in zip(response, revealed_at, strict=True)
        ]
        lines.append(f"{passes:>{width}}/{result.forwards}  {''.join(prompt + shown)}")
    return lines


def _frame_times(forwards: int, frames: int) -> list[int]:
    """Numbers of finished passes, from none to all, without repeats."""
    if frames == 1:
        return [forwards]
    return sorted({frame * forwards // (frames - 1) for frame in range(frames)})


def _printable(text: str) -> str:
    """Text that cannot move the cursor or colour the terminal."""
    return "".join(c if c.isprintable() else "⏎" if c == "\n" else "·" for c in text)
