"""Lines that show how a sample came to be."""

import pytest
import torch

from inference.sampler import SampleResult
from inference.unmasking_view import render_unmasking
from runtime.errors import UserError

PIECES = ["The ", "cat", " sat", "\n", "\x1b[2J", "猫"]
RESULT = SampleResult(
    tokens=torch.tensor([[0, 1, 2, 3]]),
    revealed_at=torch.tensor([[2, 0, 1]]),
    confidence=torch.ones(1, 3, dtype=torch.float64),
    forwards=3,
)


def test_text_appears_in_the_order_of_commitment_and_stays_in_place() -> None:
    assert render_unmasking(RESULT, PIECES.__getitem__, frames=4) == [
        "0/3  The ░░░░░░░░",
        "1/3  The ░░░ sat░",
        "2/3  The ░░░ sat⏎",
        "3/3  The cat sat⏎",
    ]


@pytest.mark.parametrize(("frames", "count"), [(1, 1), (2, 2), (3, 3), (50, 4)])
def test_last_line_is_whole_and_there_are_no_more_lines_than_asked(frames: int, count: int) -> None:
    lines = render_unmasking(RESULT, PIECES.__getitem__, frames=frames)
    assert len(lines) == count
    assert lines[-1] == "3/3  The cat sat⏎"


def test_hostile_pieces_cannot_steer_the_terminal() -> None:
    result = SampleResult(torch.tensor([[4, 5]]), torch.tensor([[0, 1]]), torch.ones(1, 2), 2)
    lines = render_unmasking(result, PIECES.__getitem__, frames=2)
    assert lines == ["0/2  ░░░░░░", "2/2  ·[2J猫"]


def test_no_frames_is_an_error() -> None:
    with pytest.raises(UserError, match="frames: 0"):
        render_unmasking(RESULT, PIECES.__getitem__, frames=0)
