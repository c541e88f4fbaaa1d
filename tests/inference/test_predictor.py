"""Logits that are worked on by chunks."""

import numpy as np
import pytest
import torch

from inference.choice import choose_tokens
from inference.predictor import log_probability, predict_logits, row_chunks


@pytest.mark.parametrize(("rows", "vocabulary"), [(0, 10), (1, 10), (200, 126_464), (5, 1 << 30)])
def test_chunks_cover_all_rows_once_and_are_small(rows: int, vocabulary: int) -> None:
    chunks = list(row_chunks(rows, vocabulary))
    assert [row for chunk in chunks for row in range(rows)[chunk]] == list(range(rows))
    sizes = [chunk.stop - chunk.start for chunk in chunks]
    assert all(size == 1 or size * vocabulary <= 1 << 23 for size in sizes)


def test_chunked_results_are_those_of_single_rows() -> None:
    logits_NV = torch.randn(5, 1 << 21, generator=torch.Generator().manual_seed(0))  # 4 rows to a chunk
    before = logits_NV[:, :100].clone()

    def push_row(row: int) -> np.ndarray:
        return np.bincount([row], weights=[100.0], minlength=1 << 21)

    ids_N, confidence_N = choose_tokens(logits_NV, 1.0, [7], push_row)
    assert ids_N.tolist() == [0, 1, 2, 3, 4]
    expected_N = logits_NV.diagonal().double() - logits_NV.double().logsumexp(1)
    assert torch.allclose(log_probability(logits_NV, ids_N), expected_N, atol=1e-12)
    assert torch.allclose(confidence_N.log(), expected_N, atol=1e-4)  # id 7 is not among the choices
    assert torch.equal(before, logits_NV[:, :100])


def test_a_predictor_of_the_wrong_shape_is_noticed() -> None:
    with pytest.raises(AssertionError, match=r"\(2, 4, 9\) for tokens \(2, 5\)"):
        predict_logits(lambda x: torch.zeros(2, 4, 9), torch.zeros(2, 5, dtype=torch.int64))
