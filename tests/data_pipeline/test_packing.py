"""Pieces of documents in windows: every token once, best fit as it is defined, an index that is only mapped."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import windows as windows_module
from data_pipeline.build import build_dataset
from data_pipeline.config import BuildConfig, DataConfig
from data_pipeline.dataset import SampleReader, TokenDataset
from data_pipeline.packing import PiecePacking, best_fit, pack_documents
from data_pipeline.verify import verify_dataset
from data_pipeline.windows import PieceWindows, Windows, index_path, open_windows, write_index
from runtime.errors import UserError

LENGTH = 48
PACKINGS: list[PiecePacking] = ["document", "best_fit"]


def plain_best_fit(lengths: list[int], capacity: int) -> list[int]:
    """Best-fit decreasing, a piece at a time: the bin with the least room that fits, the first of equal ones."""
    rooms: list[int] = []
    bins = [0] * len(lengths)
    last = (0, -1)  # equal pieces go on filling the bin they are in
    for piece in sorted(range(len(lengths)), key=lambda p: -lengths[p]):
        fitting = [(room, b) for b, room in enumerate(rooms) if room >= lengths[piece]]
        again = [(room, b) for room, b in fitting if (lengths[piece], b) == last]
        if not fitting:
            rooms.append(capacity)
            fitting = [(capacity, len(rooms) - 1)]
        bins[piece] = min(again or fitting)[1]
        rooms[bins[piece]] -= lengths[piece]
        last = (lengths[piece], bins[piece])
    return bins


@given(lengths=st.lists(st.integers(1, 20), max_size=60))
@settings(max_examples=200, deadline=None)
def test_best_fit_decreasing_as_defined(lengths: list[int]) -> None:
    found = best_fit(np.array(lengths, dtype=np.int64), 20).tolist()
    sizes = [
        sum(n for n, b in zip(lengths, found, strict=True) if b == bin_) for bin_ in range(max(found, default=-1) + 1)
    ]
    assert all(0 < size <= 20 for size in sizes)
    expected = plain_best_fit(lengths, 20)
    rooms = [
        sum(n for n, b in zip(lengths, expected, strict=True) if b == bin_)
        for bin_ in range(max(expected, default=-1) + 1)
    ]
    assert sorted(sizes) == sorted(rooms)


@given(sizes=st.lists(st.integers(1, 150), min_size=1, max_size=40), length=st.integers(1, 60))
@settings(max_examples=200, deadline=None)
@pytest.mark.parametrize("packing", PACKINGS)
def test_every_token_is_in_one_window(packing: PiecePacking, sizes: list[int], length: int) -> None:
    ends = np.cumsum(sizes)
    pieces = pack_documents(ends, length, packing)
    seen = np.zeros(ends[-1], dtype=int)
    for begin, size in zip(pieces.begins.tolist(), pieces.lengths.tolist(), strict=True):
        seen[begin : begin + size] += 1
        document = np.searchsorted(ends, begin, side="right")
        assert begin + size <= ends[document]  # one document a piece
        assert begin + size == ends[document] or size == length  # cut only where a window is full
    assert (seen == 1).all()
    held = np.add.reduceat(pieces.lengths, pieces.offsets[:-1])
    assert held.max() <= length
    if packing == "document":
        assert np.array_equal(pieces.begins, np.sort(pieces.begins))
        assert (np.diff(pieces.offsets) == 1).all()
    for window in range(pieces.windows):
        begins = pieces.begins[pieces.offsets[window] : pieces.offsets[window + 1]]
        assert np.array_equal(begins, np.sort(begins))


def test_best_fit_wastes_little() -> None:
    sizes = np.random.default_rng(0).geometric(1 / 40, 20_000)
    pieces = pack_documents(np.cumsum(sizes), 128, "best_fit")
    assert sizes.sum() / (pieces.windows * 128) > 0.999


@pytest.mark.parametrize("packing", PACKINGS)
def test_windows_from_an_index_are_those_computed_at_start(dataset: Path, packing: PiecePacking) -> None:
    stream = TokenDataset(dataset)
    computed = open_windows(stream, LENGTH, packing)
    path, found = write_index([stream, TokenDataset(dataset, "validation")], LENGTH, packing, progress=False)
    assert path == index_path(dataset, LENGTH, packing)
    first = path.read_bytes()
    mapped = open_windows(stream, LENGTH, packing)
    assert isinstance(mapped, PieceWindows)
    assert mapped.count == computed.count == found["train"]["windows"]
    documents = 0
    for number in range(mapped.count):
        window = mapped[number]
        assert np.array_equal(window, computed[number])
        assert 0 < len(window) <= LENGTH
        documents += int((window == stream.manifest.tokenizer.eos_id).sum())
    assert documents == stream.manifest.splits["train"].documents
    assert all(not part.flags.owndata for pieces in mapped._pieces.values() for part in pieces)  # views of the file
    assert write_index([stream, TokenDataset(dataset, "validation")], LENGTH, packing, progress=False)[0] == path
    assert path.read_bytes() == first


def test_best_fit_of_a_large_split_needs_an_index(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows_module, "_PACKED_AT_START", 10)
    stream = TokenDataset(dataset)
    with pytest.raises(UserError, match=rf"lacuna data pack {dataset} --length 48 --packing best_fit"):
        open_windows(stream, LENGTH, "best_fit")
    assert open_windows(stream, LENGTH, "document").count > 0
    write_index([stream], LENGTH, "best_fit", progress=False)
    assert open_windows(stream, LENGTH, "best_fit").count > 0


def first_problem(windows: Windows, truth: list[np.ndarray]) -> str:
    """The refusal of windows that are not the true ones, or nothing."""
    try:
        found = [windows[number] for number in range(windows.count)]
    except UserError as error:
        return str(error)
    assert all(np.array_equal(a, b) for a, b in zip(found, truth, strict=False))
    return ""


def test_an_index_that_is_damaged_or_of_other_shards(
    dataset: Path, build_config: Callable[..., BuildConfig], tmp_path: Path
) -> None:
    stream = TokenDataset(dataset)
    path, _ = write_index([stream], LENGTH, "best_fit", progress=False)
    file = dataset / "train-best_fit-48.windows.arrow"
    whole, refused = file.read_bytes(), 0
    report = verify_dataset(dataset, progress=False)
    assert (report.ok, report.files) == (True, len(stream.manifest.files) + 1)
    truth = [window.copy() for window in map(open_windows(stream, LENGTH, "best_fit").__getitem__, range(5))]
    for position in range(1000, len(whole) - 1000, 397):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        problem = first_problem(open_windows(stream, LENGTH, "best_fit"), truth)
        assert not problem or str(file) in problem
        refused += bool(problem)
        if position < 3000:
            assert [str(file) in line for line in verify_dataset(dataset, progress=False).problems] == [True]
    assert refused > 20
    file.write_bytes(whole[:-8])
    with pytest.raises(UserError, match=r"windows\.arrow is \d+ bytes long"):
        open_windows(stream, LENGTH, "best_fit")[0]
    build_dataset(build_config(validation=0.3), tmp_path / "other", show_progress=False)
    shutil.copy(path, tmp_path / "other" / path.name)
    with pytest.raises(UserError, match=r"best_fit-48\.windows\.json is of other shards: lacuna data pack"):
        open_windows(TokenDataset(tmp_path / "other"), LENGTH, "best_fit")
    with pytest.raises(UserError, match=r"is of other shards: lacuna data pack makes it anew \(1 of"):
        verify_dataset(tmp_path / "other", progress=False).require_ok()
    path.write_text("{}")
    with pytest.raises(UserError, match=r"best_fit-48\.windows\.json: packing"):
        open_windows(stream, LENGTH, "best_fit")


@pytest.mark.parametrize("packing", PACKINGS)
def test_an_epoch_gives_every_token_once(built: Path, packing: PiecePacking) -> None:
    reader = SampleReader(DataConfig(path=str(built), packing=packing), LENGTH, seed=1)
    stream = np.concatenate([s.batch(b) for s in TokenDataset(built).shards for b in range(len(s.info.batches))])
    epoch = np.concatenate([reader.tokens(i) for i in range(reader.windows[0])])
    assert np.array_equal(np.sort(epoch), np.sort(stream))
    plain = SampleReader(DataConfig(path=str(built)), LENGTH, seed=1)
    assert reader.digest != plain.digest
    assert (
        reader.digest
        != SampleReader(DataConfig(path=str(built), packing=packing, document_mask=True), LENGTH, 1).digest
    )
