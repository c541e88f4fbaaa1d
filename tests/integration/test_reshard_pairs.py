"""Two engines, in float32 and bf16, load each other's checkpoints and train on, in real processes.

All ordered pairs of all layouts: `python -m tests.prove.reshard`.
"""

from pathlib import Path

import pytest

from tests.prove.reshard import TOLERANCE, Pair, prove_together, report
from tests.support.simulated import needs_cpu

NAMES = ["tp2", "deepspeed dp2 zero3", "bf16 dp2 zero1"]


@needs_cpu
@pytest.mark.timeout(600)
def test_megatron_and_deepspeed_load_each_other(tmp_path: Path) -> None:
    pairs = prove_together(NAMES, tmp_path / "pairs")
    assert len(pairs) == len(NAMES) ** 2
    for pair in pairs:
        assert pair.round_trip == pair.tensors == 3 * 39
        half = any(name.startswith("bf16") for name in (pair.source, pair.target))
        assert pair.tolerance == TOLERANCE["bf16" if half else "fp32"]
        assert pair.loss <= pair.tolerance[0]
        assert pair.grad_norm <= pair.tolerance[1]
        assert pair.same_bits == (pair.source == pair.target)  # other layouts add in another order
        assert pair.proven
    assert "9 ordered pairs of 3 layouts, 9 as they must be" in report(pairs)


@pytest.mark.parametrize(
    ("change", "proven"),
    [
        ({}, True),
        ({"round_trip": 116}, False),
        ({"loss": 1e-4}, False),
        ({"grad_norm": 1e-4}, False),
        ({"loss": 1e-4, "grad_norm": 1e-4, "source": "bf16 dp2 zero0"}, True),
        ({"loss": 5e-3, "source": "bf16 dp2 zero0"}, False),
        ({"grad_norm": 3e-2, "source": "bf16 dp2 zero0"}, False),
        ({"source": "single"}, False),  # under the layout that saved, every bit must be the same
    ],
)
def test_how_a_pair_is_judged(change: dict[str, object], proven: bool) -> None:
    values = {
        "source": "tp2", "target": "single", "tensors": 117, "round_trip": 117,
        "loss": 1e-6, "grad_norm": 1e-6, "weights": 1e-6, "same_bits": False, **change,
    }  # fmt: skip
    assert Pair(**values).proven == proven  # type: ignore[arg-type]
