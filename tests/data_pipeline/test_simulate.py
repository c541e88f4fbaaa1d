"""The order of a big run, walked without data; a bad order is found out."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import simulate as simulation
from data_pipeline.config import DataConfig
from data_pipeline.dataset import SampleReader
from data_pipeline.mixture import BLOCK, Mixture
from data_pipeline.order import Indices, derive_key
from data_pipeline.sample_order import SampleOrder
from data_pipeline.simulate import Workload, order_of, randomness, sampled_steps, simulate
from runtime.errors import LacunaError, UserError
from tests.support.command_line import lacuna, succeeded


def test_five_trillion_tokens_on_1024_ranks() -> None:
    """Through the command. Bytes are exact; seconds are the machine's and not judged here."""
    done = lacuna("data", "simulate", "--tokens", "5e12", "--ranks", "1024", "--steps", "12", "--json")
    report = json.loads(succeeded(done))
    assert report["start_bytes"] < 1 << 20
    assert report["windows"] == sum(5 * 10**12 * part // 10 // 4096 for part in (1, 2, 3, 4))
    assert report["sampled_windows"] == report["sampled_steps"] * 4096
    assert report["repeated_windows"] == 0
    assert report["epochs_met"] == 2
    assert min(report["p_values"].values()) > 1e-6


@pytest.mark.parametrize("tokens", [300, 70_000, 10**9])
@pytest.mark.parametrize("sources", [1, 3])
def test_any_size(tokens: int, sources: int) -> None:
    report = simulate(Workload(tokens, ranks=3, sequence_length=16, sources=sources, steps=20), progress=False)
    assert report["repeated_windows"] == 0


def test_it_walks_the_order_that_training_takes(built: Path) -> None:
    reader = SampleReader(DataConfig(path=str(built)), 64, seed=5)
    windows = reader.datasets[0].windows(64)
    order = order_of([windows], [1.0], seed=5)
    order._keys = [derive_key(5, "order", reader.manifests[0].stream_digest)]
    for begin, end in ((0, 50), (windows - 3, windows + 3), (BLOCK - 1, 2 * BLOCK + 1)):
        drawn = list(zip(*(column.tolist() for column in order.places(begin, end)), strict=True))
        assert drawn == [(0, *reader.locate(i)[1:]) for i in range(begin, end)]


def test_it_walks_longer_blocks() -> None:
    weights = [float(n + 1) for n in range(64)]
    order, mixture = order_of([10**6] * 64, weights, seed=7), Mixture(weights, derive_key(7, "mixture"))
    begin, end = mixture.size - 3, mixture.size + 3
    assert mixture.size > BLOCK
    assert order.places(begin, end)[0].tolist() == [mixture.source_and_rank(i)[0] for i in range(begin, end)]


class _Bad(SampleOrder):
    """An order with a fault."""

    def places(self, begin: int, end: int) -> tuple[Indices, Indices, Indices]:
        sources, epochs, windows = super().places(begin, end)
        return sources, epochs, self.spoil(windows, np.arange(begin, end))

    def spoil(self, windows: Indices, positions: Indices) -> Indices:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda windows, positions: windows // 2, "places are uniform|given twice"),
        (lambda windows, positions: windows // 64 * 64, "given twice"),
        (lambda windows, positions: positions, "neighbours are independent|places are uniform"),
        (lambda windows, positions: windows + (len(positions) > 500), "does not find its share"),
    ],
)
def test_a_bad_order_is_found_out(
    monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Indices, Indices], Indices], message: str
) -> None:
    monkeypatch.setattr(_Bad, "spoil", lambda self, windows, positions: spoil(windows, positions))
    monkeypatch.setattr(simulation, "SampleOrder", _Bad)
    with pytest.raises(LacunaError, match=message) as caught:
        simulate(Workload(10**9, ranks=5, sequence_length=16, global_batch=1000, sources=1), progress=False)
    assert caught.value.exit_code == 1


def test_ranks_that_differ_are_found_out() -> None:
    workload = Workload(10**9, ranks=8, sequence_length=16, global_batch=64, sources=1).check()
    order, steps = order_of(workload.windows(), [1.0], 0), sampled_steps(workload)
    positions = np.concatenate([np.arange(step * 64, step * 64 + 64) for step in steps])
    columns = [np.concatenate(c) for c in zip(*(order.places(s * 64, s * 64 + 64) for s in steps), strict=True)]
    drawn = simulation.Drawn(positions, *columns)
    assert min(randomness(workload, drawn).values()) > 1e-6
    windows = drawn.windows.reshape(-1, 64).copy()
    windows.sort(axis=1)
    assert randomness(workload, drawn._replace(windows=windows.ravel()))["ranks are alike"] < 1e-6


def test_options_that_do_not_fit() -> None:
    for values, message in (
        ({"tokens": 100}, "--tokens 100 .*less than one sample of 4096"),
        ({"tokens": 2**63}, r"not between 1 and 2\*\*62"),
        ({"tokens": 10**9, "global_batch": 10}, "--global-batch 10 is not a multiple of --ranks 4: give 12"),
    ):
        with pytest.raises(UserError, match=message):
            simulate(Workload(ranks=4, **values), progress=False)
