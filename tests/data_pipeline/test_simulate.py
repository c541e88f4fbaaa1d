"""A big run, started and walked without data; a bad order is found out."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import dataset as data
from data_pipeline import simulate as simulation
from data_pipeline.dataset import SampleReader
from data_pipeline.mixture import BLOCK, Mixture
from data_pipeline.order import Indices, derive_key
from data_pipeline.sample_order import SampleOrder
from data_pipeline.simulate import Workload, randomness, sampled_steps, simulate, write_datasets
from runtime.errors import LacunaError, UserError
from tests.support.command_line import lacuna, succeeded


def test_five_trillion_tokens_on_1024_ranks() -> None:
    """Through the command: a rank holds little of the manifests of 74,508 shards, and maps the rest."""
    done = lacuna("data", "simulate", "--tokens", "5e12", "--ranks", "1024", "--steps", "12", "--json")
    report = json.loads(succeeded(done))
    assert report["shards"] == 74508
    assert report["order_bytes"] < 1 << 20
    assert report["start_bytes"] < 32 << 20
    assert report["start_mapped_bytes"] < 128 << 20
    assert report["start_peak_bytes"] < 160 << 20
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


@pytest.fixture
def walked(tmp_path: Path) -> Callable[[Workload], SampleReader]:
    """The reader of a workload's datasets without data."""

    def reader_of(workload: Workload) -> SampleReader:
        config = write_datasets(workload, tmp_path / "data", workload.shares())
        return SampleReader(config, workload.sequence_length, workload.seed, global_batch=workload.global_batch)

    return reader_of


def test_datasets_without_data(walked: Callable[[Workload], SampleReader]) -> None:
    """They are what a build with the defaults would say of so many tokens."""
    reader = walked(Workload(3 * 10**8, ranks=1, sources=2).check())
    assert [dataset.tokens for dataset in reader.datasets] == [10**8, 2 * 10**8]
    assert len({manifest.stream_digest for manifest in reader.manifests}) == 2
    big = reader.datasets[1]
    assert [shard.tokens for shard in big.shards.table] == [1 << 26, 1 << 26, 2 * 10**8 - (1 << 27)]
    assert [shard.batches for shard in big.shards.table] == [shard.info.batches for shard in big.shards]
    assert list(big.batches((1 << 26) - 10, 20)) == [(0, 63), (1, 0)]
    with pytest.raises(UserError, match=r"train-00000\.arrow cannot be read"):
        big.window(0, 16)


def test_it_walks_longer_blocks(walked: Callable[[Workload], SampleReader]) -> None:
    workload = Workload(64 * 65 * 5000, ranks=1, sequence_length=10, sources=64, seed=7).check()
    reader, mixture = walked(workload), Mixture([n + 1.0 for n in range(64)], derive_key(7, "mixture"))
    begin, end = mixture.size - 3, mixture.size + 3
    assert mixture.size > BLOCK
    assert reader.places(begin, end)[0].tolist() == [mixture.source_and_rank(i)[0] for i in range(begin, end)]


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
        (lambda windows, positions: positions % (10**9 // 16), "neighbours are independent|places are uniform"),
        (lambda windows, positions: windows + (len(positions) > 500), "does not find its share"),
    ],
)
def test_a_bad_order_is_found_out(
    monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Indices, Indices], Indices], message: str
) -> None:
    monkeypatch.setattr(_Bad, "spoil", lambda self, windows, positions: spoil(windows, positions))
    monkeypatch.setattr(data, "SampleOrder", _Bad)
    with pytest.raises(LacunaError, match=message) as caught:
        simulate(Workload(10**9, ranks=5, sequence_length=16, global_batch=1000, sources=1), progress=False)
    assert caught.value.exit_code == 1


def test_ranks_that_differ_are_found_out(walked: Callable[[Workload], SampleReader]) -> None:
    workload = Workload(10**9, ranks=8, sequence_length=16, global_batch=64, sources=1).check()
    order, steps = walked(workload), sampled_steps(workload)
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
        ({"tokens": 2**63}, r"not between 1 and 1e\+14"),
        ({"tokens": 10**9, "global_batch": 10}, "--global-batch 10 is not a multiple of --ranks 4: give 12"),
    ):
        with pytest.raises(UserError, match=message):
            simulate(Workload(ranks=4, **values), progress=False)
