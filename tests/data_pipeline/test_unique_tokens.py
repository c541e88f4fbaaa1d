"""`data.unique_tokens`: a run on a part of a dataset, epoch by epoch."""

from pathlib import Path

import pytest

from data_pipeline.config import DataConfig
from data_pipeline.dataset import SampleReader
from runtime.errors import UserError

LENGTH = 16


def windows(path: Path, unique: int | None, samples: range) -> list[int]:
    reader = SampleReader(DataConfig(path=str(path), unique_tokens=unique), LENGTH, seed=1)
    return [reader.locate(i)[2] for i in samples]


def test_every_epoch_visits_the_same_few_windows_once(dataset: Path) -> None:
    few = 10 * LENGTH + 5  # a rest below a window is not used
    first, second = windows(dataset, few, range(10)), windows(dataset, few, range(10, 20))
    assert len(set(first)) == 10
    assert set(first) == set(second)
    assert first != second


def test_smaller_parts_lie_in_larger_ones_and_all_over_the_data(dataset: Path) -> None:
    parts = [set(windows(dataset, count * LENGTH, range(count))) for count in (4, 10, 24)]
    assert parts[0] < parts[1] < parts[2]
    whole = SampleReader(DataConfig(path=str(dataset)), LENGTH, seed=1).datasets[0].windows(LENGTH)
    assert max(parts[2]) > 0.6 * whole > 0.4 * whole > min(parts[2])


def test_more_than_there_is_means_all(dataset: Path) -> None:
    whole = SampleReader(DataConfig(path=str(dataset)), LENGTH, seed=1).datasets[0].windows(LENGTH)
    assert set(windows(dataset, 10**9, range(whole))) == set(range(whole))


def test_the_part_is_in_the_digest_and_the_whole_keeps_its_own(dataset: Path) -> None:
    digests = {
        SampleReader(DataConfig(path=str(dataset), unique_tokens=unique), LENGTH, seed=1).digest
        for unique in (None, 4 * LENGTH, 5 * LENGTH)
    }
    assert len(digests) == 3


def test_refusals(dataset: Path) -> None:
    with pytest.raises(UserError, match=r"data\.unique_tokens=15 is less than one sample of 16"):
        windows(dataset, 15, range(1))
    mixture = DataConfig(mixture={str(dataset): 1.0}, unique_tokens=64)
    with pytest.raises(UserError, match=r"data\.unique_tokens is for a single dataset"):
        mixture.sources()
