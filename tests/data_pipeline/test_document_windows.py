"""One document a window: every document once an epoch, none crossed, longer ones cut."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.config import DataConfig
from data_pipeline.dataset import SampleReader, TokenDataset
from data_pipeline.windows import open_windows
from runtime.errors import UserError


def documents_of(path: Path) -> list[list[int]]:
    """The documents of a dataset, cut from the flat stream after each EOS."""
    dataset = TokenDataset(path)
    stream = dataset.read(0, dataset.tokens)
    ends = np.flatnonzero(stream == dataset.manifest.tokenizer.eos_id) + 1
    return [part.tolist() for part in np.split(stream, ends)[:-1]]


@pytest.mark.parametrize("length", [1, 7, 64, 10_000])
def test_windows_are_the_documents_cut_at_the_length(built: Path, length: int) -> None:
    windows = open_windows(TokenDataset(built), length, "document")
    documents = documents_of(built)
    assert len(documents) == TokenDataset(built).manifest.splits["train"].documents
    assert len({len(document) for document in documents}) > 10
    expected = [document[at : at + length] for document in documents for at in range(0, len(document), length)]
    assert [windows[number].tolist() for number in range(windows.count)] == expected


def test_stream_windows_are_those_of_the_dataset(built: Path) -> None:
    dataset = TokenDataset(built)
    windows = open_windows(dataset, 64, "stream")
    assert windows.count == dataset.windows(64)
    assert np.array_equal(windows[3], dataset.window(3, 64))


def reader(path: Path, **changes: Any) -> SampleReader:
    return SampleReader(DataConfig(path=str(path), **{"packing": "document"} | changes), 100, seed=5)


def test_an_epoch_reads_every_window_once_each_as_its_own_sample(built: Path) -> None:
    samples = reader(built)
    windows = open_windows(TokenDataset(built), 100, "document")
    for epoch in range(2):
        places = [samples.locate(epoch * windows.count + i) for i in range(windows.count)]
        assert {place[1] for place in places} == {epoch}
        assert sorted(place[2] for place in places) == list(range(windows.count))
    for i in (0, 17, windows.count + 3):
        assert np.array_equal(samples.tokens(i), windows[samples.locate(i)[2]])
        assert samples.tokens(i).dtype == np.int64


def test_another_packing_is_other_data(built: Path) -> None:
    assert reader(built).digest != reader(built, packing="stream").digest
    assert reader(built, packing="stream").digest == SampleReader(DataConfig(path=str(built)), 100, 5).digest


def test_unique_tokens_are_of_the_stream(built: Path) -> None:
    with pytest.raises(UserError, match=r"data\.unique_tokens counts tokens of the stream: use data\.packing=stream"):
        reader(built, unique_tokens=5000)


def test_damaged_borders_are_named(dataset: Path) -> None:
    file = next(dataset.glob("train-*.documents.arrow"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"documents\.arrow is damaged"):
        reader(dataset)
