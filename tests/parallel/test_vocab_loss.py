"""Chunked head and cross-entropy against a dense log-softmax in float64."""

import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from parallel.mesh import Mesh
from parallel.vocab_loss import chunked_vocab_loss

ROWS, WIDTH, VOCABULARY, PADDED = 23, 12, 37, 40
MESH = Mesh.local(torch.device("cpu"))


def case(rows: int = ROWS) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden, head with padding rows that would win if they counted, targets, weights (one of them zero)."""
    generator = torch.Generator().manual_seed(5)
    hidden_RD = torch.randn(rows, WIDTH, generator=generator)
    weight_VD = torch.randn(PADDED, WIDTH, generator=generator)
    weight_VD[VOCABULARY:] *= 50
    targets_R = torch.randint(VOCABULARY, (rows,), generator=generator)
    weights_R = torch.rand(rows, generator=generator) * 9 + 1
    weights_R[rows // 2 : rows // 2 + 1] = 0.0
    return hidden_RD, weight_VD, targets_R, weights_R


def dense(
    hidden_RD: torch.Tensor, weight_VD: torch.Tensor, targets_R: torch.Tensor, weights_R: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weighted sum, losses, and the sum's gradients to hidden and weight, in float64."""
    hidden_RD = hidden_RD.double().requires_grad_()
    weight_VD = weight_VD.double().requires_grad_()
    log_p_RV = torch.log_softmax(hidden_RD @ weight_VD[:VOCABULARY].T, dim=-1)
    losses_R = -log_p_RV[torch.arange(len(targets_R)), targets_R]
    total = (losses_R * weights_R.double()).sum()
    grad_hidden, grad_weight = torch.autograd.grad(total, (hidden_RD, weight_VD))
    return total.detach(), losses_R.detach(), grad_hidden, grad_weight


def close(found: torch.Tensor, expected: torch.Tensor, relative: float = 2e-6) -> bool:
    return bool((found.double() - expected).abs().max() <= relative * expected.abs().max())


@pytest.mark.parametrize("upstream", [1.0, -0.37])
@pytest.mark.parametrize("chunk", [1, 7, ROWS - 1, ROWS, ROWS + 1, 1000])
def test_loss_and_gradients_are_the_dense_ones(chunk: int, upstream: float) -> None:
    hidden_RD, weight_VD, targets_R, weights_R = case()
    total, losses_R, grad_hidden_RD, grad_weight_VD = dense(hidden_RD, weight_VD, targets_R, weights_R)
    hidden_RD.requires_grad_()
    weight_VD.requires_grad_()
    found, found_R = chunked_vocab_loss(MESH, hidden_RD, weight_VD, targets_R, weights_R, chunk, VOCABULARY)
    (found * upstream).backward()
    assert close(found.detach(), total)
    assert close(found_R, losses_R)
    assert hidden_RD.grad is not None
    assert weight_VD.grad is not None
    assert close(hidden_RD.grad, grad_hidden_RD * upstream)
    assert close(weight_VD.grad, grad_weight_VD * upstream)


def test_padding_of_the_vocabulary_is_no_token() -> None:
    """Its rows would take all probability; they take none and learn nothing, exactly."""
    hidden_RD, weight_VD, targets_R, weights_R = case()
    weight_VD.requires_grad_()
    loss, losses_R = chunked_vocab_loss(MESH, hidden_RD, weight_VD, targets_R, weights_R, 7, VOCABULARY)
    loss.backward()
    assert weight_VD.grad is not None
    assert not weight_VD.grad[VOCABULARY:].any()
    with torch.no_grad():
        other_VD = weight_VD.clone()
        other_VD[VOCABULARY:] = torch.randn(PADDED - VOCABULARY, WIDTH) * 1e3
        again, again_R = chunked_vocab_loss(MESH, hidden_RD, other_VD, targets_R, weights_R, 7, VOCABULARY)
    assert torch.equal(again, loss.detach())
    assert torch.equal(again_R, losses_R)


def test_a_row_of_weight_zero_has_a_loss_but_no_gradient() -> None:
    hidden_RD, weight_VD, targets_R, weights_R = case()
    row = int((weights_R == 0).nonzero())
    hidden_RD.requires_grad_()
    loss, losses_R = chunked_vocab_loss(MESH, hidden_RD, weight_VD, targets_R, weights_R, 4, VOCABULARY)
    loss.backward()
    assert hidden_RD.grad is not None
    assert losses_R[row] > 0
    assert not hidden_RD.grad[row].any()
    assert hidden_RD.grad.any(dim=1).sum() == ROWS - 1


@pytest.mark.parametrize("chunk", [1, 8])
def test_no_rows_are_a_loss_of_zero_with_zero_gradients(chunk: int) -> None:
    hidden_RD, weight_VD, targets_R, weights_R = case(0)
    hidden_RD.requires_grad_()
    weight_VD.requires_grad_()
    loss, losses_R = chunked_vocab_loss(MESH, hidden_RD, weight_VD, targets_R, weights_R, chunk, VOCABULARY)
    loss.backward()
    assert loss.item() == 0.0
    assert losses_R.shape == (0,)
    assert weight_VD.grad is not None
    assert not weight_VD.grad.any()
    assert hidden_RD.grad is not None
    assert hidden_RD.grad.shape == (0, WIDTH)


class _Products(TorchDispatchMode):
    """Notes the operands of every matrix product and softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(word in str(func) for word in ("mm", "softmax")):
            self.calls.append((str(func), *(tuple(arg.shape) for arg in args if isinstance(arg, torch.Tensor))))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("chunk", [5, 8])
def test_shapes_do_not_depend_on_the_number_of_rows(chunk: int) -> None:
    """Every chunk runs the same products on the same shapes; no rows are one chunk."""

    def calls(rows: int) -> list[tuple[Any, ...]]:
        hidden_RD, weight_VD, targets_R, weights_R = case(rows)
        with _Products() as products:
            chunked_vocab_loss(MESH, hidden_RD, weight_VD, targets_R, weights_R, chunk, VOCABULARY)
        return products.calls

    one = calls(chunk)
    assert len(one) >= 5  # logits, softmax and its gradient, gradients of hidden rows and of the head
    assert all(chunk in (size for shape in call[1:] for size in shape) for call in one)
    for rows in (0, 1, chunk - 1, chunk + 1, 2 * chunk, ROWS):
        assert calls(rows) == one * max(1, math.ceil(rows / chunk))


def test_equal_logits_cost_the_logarithm_of_the_vocabulary() -> None:
    hidden_RD, _, targets_R, weights_R = case()
    weight_VD = torch.zeros(PADDED, WIDTH)
    loss, losses_R = chunked_vocab_loss(MESH, hidden_RD, weight_VD, targets_R, weights_R, 5, VOCABULARY)
    assert torch.allclose(losses_R, torch.full((ROWS,), math.log(VOCABULARY)), rtol=1e-7, atol=0)
    assert loss.item() == pytest.approx(math.log(VOCABULARY) * weights_R.sum().item(), rel=1e-6)


def test_huge_logits_stay_finite() -> None:
    hidden_RD, weight_VD, targets_R, weights_R = case()
    hidden_RD = hidden_RD * 1e4
    total, *_ = dense(hidden_RD, weight_VD, targets_R, weights_R)
    hidden_RD.requires_grad_()
    loss, _ = chunked_vocab_loss(MESH, hidden_RD, weight_VD, targets_R, weights_R, 5, VOCABULARY)
    loss.backward()
    assert loss.item() == pytest.approx(total.item(), rel=1e-6)
    assert hidden_RD.grad is not None
    assert hidden_RD.grad.isfinite().all()


def test_half_precision_computes_the_loss_in_float32() -> None:
    hidden_RD, weight_VD, targets_R, weights_R = case()
    hidden_RD, weight_VD = hidden_RD.bfloat16(), weight_VD.bfloat16()
    total, losses_R, grad_hidden_RD, grad_weight_VD = dense(hidden_RD, weight_VD, targets_R, weights_R)
    hidden_RD.requires_grad_()
    weight_VD.requires_grad_()
    found, found_R = chunked_vocab_loss(MESH, hidden_RD, weight_VD, targets_R, weights_R, 7, VOCABULARY)
    found.backward()
    assert found.dtype == found_R.dtype == torch.float32
    assert close(found.detach(), total, 1e-2)
    assert close(found_R, losses_R, 1e-2)
    assert hidden_RD.grad is not None
    assert weight_VD.grad is not None
    assert close(hidden_RD.grad, grad_hidden_RD, 2e-2)
    assert close(weight_VD.grad, grad_weight_VD, 2e-2)
