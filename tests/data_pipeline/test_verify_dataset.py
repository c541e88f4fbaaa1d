"""Damage is found, named and never trained on."""

import errno
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pytest

from data_pipeline import verify
from data_pipeline.build import build_dataset
from data_pipeline.config import BuildConfig, DataConfig
from data_pipeline.dataset import SampleReader, TokenDataset
from data_pipeline.manifest import DatasetManifest
from data_pipeline.shards import (
    DOCUMENT_COLUMNS,
    SPANS,
    ShardForm,
    ShardReader,
    ShardTask,
    Tokens,
    default_shard_tokens,
    token_dtype,
    write_shard,
)
from data_pipeline.stats import dataset_stats, plot_lengths
from data_pipeline.verify import verify_dataset
from runtime.errors import UserError


def flip(file: Path, source: Random) -> None:
    data = bytearray(file.read_bytes())
    data[source.randrange(len(data))] ^= 1 << source.randrange(8)
    file.write_bytes(data)


def first_problem(dataset: TokenDataset, truth: list[np.ndarray]) -> str:
    """Read every window; what the reader refuses with, or nothing if all tokens are as they were."""
    try:
        for window, tokens in enumerate(truth):
            assert np.array_equal(dataset.window(window, 100), tokens)
    except UserError as error:
        return str(error)
    return ""


def test_a_good_dataset(built: Path) -> None:
    report = verify_dataset(built, progress=False)
    manifest = DatasetManifest.load(built)
    assert report.ok
    assert report.documents == 404
    assert report.tokens == manifest.sources[0].tokens
    assert report.files == len(manifest.files)
    report.require_ok()


def test_fifty_bit_flips_are_all_named(built: Path, tmp_path: Path) -> None:
    source, files = Random(1), [file.name for file in DatasetManifest.load(built).files]
    for trial in range(50):
        copy = shutil.copytree(built, tmp_path / str(trial))
        victim = source.choice(files)
        flip(copy / victim, source)
        report = verify_dataset(copy, progress=False)
        assert len(report.problems) == 1
        assert str(copy / victim) in report.problems[0]
        with pytest.raises(UserError, match="1 of"):
            report.require_ok()


@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_a_reader_meets_no_flipped_token(
    build_config: Callable[..., BuildConfig], tmp_path: Path, compression: str
) -> None:
    """Any flip anywhere in a shard is refused with the file's name, or harmless to the tokens."""
    build_dataset(build_config(compression=compression), tmp_path / "good", show_progress=False)
    good = TokenDataset(tmp_path / "good")
    truth = [good.window(w, 100).copy() for w in range(good.windows(100))]
    source, refused = Random(2), 0
    for trial in range(100):
        copy = shutil.copytree(tmp_path / "good", tmp_path / str(trial))
        victim = source.choice(sorted(copy.glob("train-*[0-9].arrow")))
        flip(victim, source)
        problem = first_problem(TokenDataset(copy), truth)
        if problem:
            refused += 1
            assert str(victim) in problem
            assert "record batch" in problem
    assert refused > 50


def test_all_bad_files_are_named(dataset: Path) -> None:
    (dataset / "train-00000.arrow").unlink()
    os.truncate(dataset / "train-00001.arrow", 100)
    flip(dataset / "tokenizer.model", Random(0))
    (dataset / "train-00002.documents.arrow").write_bytes(b"")
    report = verify_dataset(dataset, progress=False)
    assert len(report.problems) == 4
    for name in (
        "train-00000.arrow cannot be read",
        "train-00001.arrow is 100 bytes long",
        "tokenizer.model is damaged",
        "train-00002.documents.arrow is 0 bytes",
    ):
        assert any(name in problem for problem in report.problems), name


@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_every_damaged_file_of_a_shard_is_named(
    build_config: Callable[..., BuildConfig], tmp_path: Path, compression: str
) -> None:
    """Also in batches whose shard has a damaged documents' file; a batch by its number, all else by the file."""
    out = tmp_path / "words"
    build_dataset(build_config(compression=compression), out, show_progress=False)
    shard, good = TokenDataset(out).shards[0], (out / "train-00000.arrow").read_bytes()
    flip(out / "train-00000.documents.arrow", Random(0))
    bodies = [pa.ipc.open_file(shard.mapped).get_batch(1).column(0).buffers()[1]] if compression == "none" else []
    places = [body.address - shard.mapped.address for body in bodies] or [len(good) // 2]
    for place, message in ((places[0], "record batch"), (len(good) - 1, "")):  # the last byte is of a magic word
        data = bytearray(good)
        data[place] ^= 1
        (out / "train-00000.arrow").write_bytes(data)
        problems = verify_dataset(out, progress=False).problems
        assert len(problems) == 2
        assert "train-00000.documents.arrow is damaged" in problems[0]
        assert f"train-00000.arrow{': record batch' if message else ''}" in problems[1]


def test_a_disk_that_cannot_read_is_named(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By `read`, before a mapping is looked at, where it would be a signal."""

    class Unreadable(io.FileIO):
        def readinto(self, buffer: object) -> int:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(verify, "open", lambda path, *_, **__: Unreadable(path), raising=False)
    problems = verify_dataset(built, progress=False).problems
    assert len(problems) == sum(len(split.shards) for split in DatasetManifest.load(built).splits.values())
    assert all("cannot be read (Input/output error)" in problem for problem in problems)


def test_bytes_are_read_before_a_batch_is_looked_at(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And once: what a shard's file is read by ends where each batch ends, or after it."""
    info = DatasetManifest.load(built).splits["train"].shards[0]
    task = ShardTask(built, info, DatasetManifest.load(built).form_of_shards())
    read, where = [], []

    class Counted(io.FileIO):
        def readinto(self, buffer: memoryview) -> int:
            read.append(super().readinto(buffer))
            return read[-1]

    monkeypatch.setattr(verify, "open", lambda path, *_, **__: Counted(path), raising=False)
    batch = ShardReader.batch

    def watched(shard: ShardReader, number: int) -> Tokens:
        tokens = batch(shard, number)
        where.append((sum(read), tokens.ctypes.data + tokens.nbytes - shard.mapped.address))
        return tokens

    monkeypatch.setattr(ShardReader, "batch", watched)
    assert verify.shard_problems(task) == []
    assert len(where) == len(info.batches) > 2
    assert all(done >= end for done, end in where)
    assert sum(read) == info.file.bytes


def test_missing_and_truncated_shards_are_named_when_read(dataset: Path) -> None:
    (dataset / "train-00000.arrow").unlink()
    os.truncate(dataset / "train-00001.arrow", 100)
    tokens = TokenDataset(dataset)
    first = tokens.manifest.splits["train"].shards[0].tokens
    with pytest.raises(UserError, match=r"train-00000\.arrow cannot be read"):
        tokens.window(0, 16)
    with pytest.raises(UserError, match=r"train-00001\.arrow is 100 bytes long, not"):
        tokens.window(first + 1, 1)
    reader = SampleReader(DataConfig(path=str(dataset)), 16, 0)
    with pytest.raises(UserError, match=r"train-0000[01]\.arrow"):
        reader.batch(range(tokens.windows(16)))


def test_swapped_shards_are_found(dataset: Path) -> None:
    """Both files are whole, only not where they belong."""
    a, b, aside = (dataset / name for name in ("train-00000.arrow", "train-00001.arrow", "aside"))
    a.rename(aside)
    b.rename(a)
    aside.rename(b)
    assert len(verify_dataset(dataset, progress=False).problems) == 2


def test_a_manifest_that_was_edited(dataset: Path) -> None:
    file = dataset / "manifest.json"
    text = file.read_text()
    for broken, message in (
        (text.replace('"CC0"', '"CC1"'), "edited or damaged"),
        (text[: len(text) // 2], "cannot be read as JSON"),
        ("", "cannot be read as JSON"),
        ("[]", "is not a dataset's manifest"),
        (text.replace('"version": 2', '"version": 9'), "version 9 is not 2"),
        ("\ufeff{}", "cannot be read as JSON"),
    ):
        file.write_text(broken)
        with pytest.raises(UserError, match=message) as caught:
            DatasetManifest.load(dataset)
        assert "manifest.json" in str(caught.value)
    file.unlink()
    with pytest.raises(UserError, match="it has no manifest"):
        DatasetManifest.load(dataset)


def test_every_flip_in_a_manifest_is_refused(dataset: Path) -> None:
    file, source = dataset / "manifest.json", Random(5)
    good = file.read_bytes()
    for _ in range(100):
        flip(file, source)
        try:
            assert json.loads(file.read_bytes()) == json.loads(good)  # a blank turned into another blank
        except (ValueError, AssertionError):
            with pytest.raises(UserError):
                DatasetManifest.load(dataset)
        file.write_bytes(good)


def test_stats(built: Path) -> None:
    stats = dataset_stats(built)
    assert json.loads(json.dumps(stats))
    assert sum(stats["document_lengths"].values()) == stats["documents"] == 404
    assert stats["splits"]["train"]["tokens"] + stats["splits"]["validation"]["tokens"] == stats["tokens"]
    lengths = np.concatenate(
        [np.diff(s.documents()[0], prepend=0) for x in ("train", "validation") for s in TokenDataset(built, x).shards]
    )
    assert stats["document_lengths"] == {
        2**p: c for p in range(64) if (c := int(np.sum((lengths >= 2**p) & (lengths < 2 ** (p + 1)))))
    }
    assert stats["bytes_per_token"] == stats["sources"]["words"]["bytes"] / (stats["tokens"] - 404)


def test_lengths_as_a_picture(built: Path, tmp_path: Path) -> None:
    stats = dataset_stats(built)
    assert stats["sources"]["words"]["document_lengths"] == stats["document_lengths"]
    plot_lengths(stats, tmp_path / "lengths.png")
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("dtype", "top"), [("uint16", 65535), ("uint32", 126_463)])
@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_a_shard_gives_back_any_ids(tmp_path: Path, dtype: str, top: int, compression: str) -> None:
    source = np.random.default_rng(0)
    parts = [source.integers(0, top, size, dtype=dtype, endpoint=True) for size in (1, 99, 100, 101, 350, 1, 7)]
    ends = np.cumsum([part.size for part in parts])
    columns = [
        pa.array(ends),
        pa.array(range(7), pa.uint16()),
        pa.array(ends),
        pa.array([b"x" * 16] * 7, pa.binary(16)),
    ]
    table = pa.table(
        [*columns, pa.nulls(7, pa.string()), pa.array(["a"] * 7), pa.nulls(7, SPANS), pa.nulls(7, pa.string())],
        schema=DOCUMENT_COLUMNS,
    )
    form = ShardForm(dtype, batch_tokens=100, shard_tokens=300, compression=compression)
    info = write_shard(tmp_path, "train-00000", form, iter(parts), table)
    assert (info.tokens, info.documents, len(info.batches)) == (659, 7, 7)
    reader = ShardReader(tmp_path, info, dtype=dtype, batch_tokens=100, packed=compression == "lz4")
    read = [reader.batch(b) for b in range(len(info.batches))]
    assert [batch.size for batch in read] == [100] * 6 + [59]
    assert reader.batch(6) is read[6]
    assert read[0].dtype == dtype
    assert np.array_equal(np.concatenate(read), np.concatenate(parts))
    found_ends, sources = reader.documents()
    assert found_ends.tolist() == ends.tolist()
    assert sources.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert reader.document_table().schema.names == ["end", "source", "bytes", "digest", "metadata"]


def test_shards_are_of_256_mib() -> None:
    assert (default_shard_tokens("uint16"), default_shard_tokens("uint32")) == (1 << 27, 1 << 26)


def test_the_smallest_type_that_fits() -> None:
    assert [token_dtype(v) for v in (300, 65_536, 65_537, 126_464)] == [
        "uint16",
        "uint16",
        "uint32",
        "uint32",
    ]
