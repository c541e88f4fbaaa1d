"""torch.compile on each block of the model."""

from __future__ import annotations

from parallel.cpu_compat import compilation
from pretrain.model import Transformer
from runtime.errors import UserError


def compile_blocks(model: Transformer, backend: str = "inductor") -> None:
    """Have every block of `model` compiled when it is first called; parameters and their names stay as they are.

    Shapes are static, so that all blocks share one graph, or two: one more for micro-batches with padding. Raises
    UserError if `backend` is inductor and has no compiler.
    """
    if backend == "inductor":
        _require_compiler()
    with compilation():
        for block in model.blocks:
            block.compile(backend=backend, dynamic=False)


def _require_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise UserError(
            "train.compile=true needs a C++ compiler on every machine: install g++ or set train.compile=false"
        ) from None
