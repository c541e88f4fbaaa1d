"""Two engines, one with tensor ranks and one without, load each other's checkpoints and train on, in real processes.

All ordered pairs of all layouts: `python -m tests.prove.reshard`.
"""

from pathlib import Path

import pytest

from tests.prove.reshard import TOLERANCE, prove, report
from tests.support.simulated import needs_cpu


@needs_cpu
@pytest.mark.timeout(600)
@pytest.mark.slow
def test_megatron_and_deepspeed_load_each_other(tmp_path: Path) -> None:
    pairs = list(prove(["tp2", "deepspeed dp2 zero3"], tmp_path))
    assert len(pairs) == 4
    for pair in pairs:
        assert pair.round_trip == pair.tensors == 3 * 39
        assert max(pair.loss, pair.grad_norm) <= TOLERANCE
        assert pair.same_bits or pair.source != pair.target
        assert pair.proven
    assert not all(pair.same_bits for pair in pairs)  # other layouts add in another order
    assert "4 ordered pairs of 2 layouts, 4 as they must be" in report(pairs)
