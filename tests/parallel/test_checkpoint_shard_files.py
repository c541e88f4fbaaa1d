"""Shard files: what any tool reads, digests of everything, and readers that touch only what they need."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_state import IDENTITY, SHAPES, plain_state, progress, values
from safetensors import safe_open

from parallel.checkpoint.manifest import CheckpointManifest, rows_per_chunk
from parallel.checkpoint.reader import BlockReader
from parallel.checkpoint.shard_file import Entry, ShardWriter, WrittenFile
from parallel.checkpoint.store import load_checkpoint, save_checkpoint, step_directory
from parallel.engines.base import KINDS
from parallel.logical import Rectangle
from runtime.errors import UserError
from runtime.files import digest_bytes, digest_file
from tests.support.damage import flip_bit
from tests.support.threads import differing, run_ranks

TENSORS = {
    "matrix": torch.arange(35.0).view(7, 5),
    "vector": torch.arange(11.0),
    "empty": torch.empty(0, 4),
    "scalar": torch.tensor(2.5),
    "half": torch.arange(12).view(3, 4).bfloat16(),
    "cube": torch.arange(24).view(2, 3, 4),
    "no row": torch.empty(3, 0),
    "long row": torch.arange(100.0).view(1, 100),
}


def write(path: Path, rows_at_once: int, chunk_bytes: int = 48, metadata: dict[str, str] | None = None) -> WrittenFile:
    entries = [Entry(key, tuple(tensor.shape), tensor.dtype) for key, tensor in TENSORS.items()]
    with ShardWriter(path, entries, chunk_bytes, metadata) as writer:
        for tensor in TENSORS.values():
            for part in tensor.split(rows_at_once) if tensor.dim() else [tensor]:
                if part.numel():
                    writer.append(part)
        return writer.finish()


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
@pytest.mark.parametrize("rows_at_once", [1, 2, 3, 100])
def test_any_tool_reads_it(tmp_path: Path, rows_at_once: int, metadata: dict[str, str] | None) -> None:
    write(tmp_path / "a", rows_at_once, metadata=metadata)
    with safe_open(tmp_path / "a", framework="pt") as source:
        assert source.metadata() == metadata
        assert set(source.keys()) == set(TENSORS)
        for key, tensor in TENSORS.items():
            assert source.get_tensor(key).dtype == tensor.dtype
            assert torch.equal(source.get_tensor(key), tensor)


def test_digests_are_those_of_the_bytes_however_they_came(tmp_path: Path) -> None:
    written = [write(tmp_path / str(rows), rows) for rows in (1, 2, 3, 100)]
    assert all((w.stored, w.tensors) == (written[0].stored, written[0].tensors) for w in written)
    path, stored = tmp_path / "1", written[0].stored
    data = path.read_bytes()
    assert (len(data), digest_file(path)) == (stored.bytes, stored.digest)
    assert digest_bytes(data[: stored.header_bytes]) == stored.header_digest
    assert stored.header_bytes % 64 == 0
    found = 0
    for key, tensor in TENSORS.items():
        place = written[0].tensors[key]
        row = tensor[0].numel() * tensor.itemsize if tensor.dim() and len(tensor) else tensor.itemsize
        step = max(1, 48 // max(1, row)) * row
        whole = data[place.start : place.start + tensor.nbytes]
        assert [digest_bytes(whole[at : at + step]) for at in range(0, tensor.nbytes, max(1, step))] == list(
            place.chunks
        )
        found += tensor.nbytes
    assert found == stored.bytes - stored.header_bytes


def test_strides_do_not_matter(tmp_path: Path) -> None:
    matrix = torch.arange(35.0).view(5, 7).T
    with ShardWriter(tmp_path / "a", [Entry("m", (7, 5))], chunk_bytes=50) as writer:
        writer.append(matrix)
        writer.finish()
    with safe_open(tmp_path / "a", framework="pt") as source:
        assert torch.equal(source.get_tensor("m"), matrix)


def test_a_file_that_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    with pytest.raises(FileExistsError):
        write(tmp_path / "a", 1)
    assert (tmp_path / "a").read_text() == "mine"


@pytest.mark.parametrize(
    "wrong", [torch.zeros(3, 6), torch.zeros(8, 5), torch.zeros(7, 5, dtype=torch.float64), torch.zeros(35)]
)
def test_values_that_do_not_fit_are_a_bug(tmp_path: Path, wrong: torch.Tensor) -> None:
    with ShardWriter(tmp_path / "a", [Entry("m", (7, 5))]) as writer, pytest.raises(AssertionError):
        writer.append(wrong)


def test_an_unfinished_file_is_a_bug(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a", [Entry("m", (7, 5))]) as writer:
        writer.append(torch.zeros(6, 5))
        with pytest.raises(AssertionError, match="m was not written"):
            writer.finish()


def test_a_failing_write_is_told_and_closes_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, real, calls = len(os.listdir("/proc/self/fd")), os.write, 0

    def failing(file: int, content: memoryview) -> int:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(file, content[:7] if calls == 2 else content)  # and a write that was cut short

    monkeypatch.setattr(os, "write", failing)
    with pytest.raises(OSError, match="Input/output error"):
        write(tmp_path / "a", 100)
    assert len(os.listdir("/proc/self/fd")) == before


CHUNK = 64  # bytes: two rows of the embedding, two of the gate, sixteen elements of the norm


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    run_ranks(2, lambda mesh: save_checkpoint(root, plain_state(mesh, values(5)), progress(5), CHUNK))
    return step_directory(root, 5)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(SHAPES)), st.data())
def test_a_box_reads_the_chunks_that_it_touches(checkpoint: Path, name: str, data: st.DataObject) -> None:
    """Counted against an independent enumeration of the elements of every chunk."""
    sides = []
    for extent in SHAPES[name]:
        low = data.draw(st.integers(0, extent - 1))
        sides.append((low, data.draw(st.integers(low + 1, extent))))
    box = Rectangle(tuple(a for a, _ in sides), tuple(b - a for a, b in sides))
    manifest = CheckpointManifest.read(checkpoint)
    expected = 0
    for block in manifest.blocks["weight"][name]:
        inside = torch.zeros(SHAPES[name], dtype=torch.bool)
        inside[box.slices] = True
        mine = inside[Rectangle(block.offset, block.size).slices]
        for chunk in mine.split(rows_per_chunk(block.size, 4, CHUNK)):
            expected += chunk.numel() * 4 if chunk.any() else 0
    with BlockReader(checkpoint, manifest) as reader:
        view = torch.full(box.size, torch.nan)
        reader.read_into("weight", name, box, view)
        assert torch.equal(view, values(5)["weight"][name][box.slices])
        assert reader.bytes_read == expected


def test_a_rank_reads_its_share_and_chunks_at_its_borders(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Among three ranks; every chunk is read once per rank that needs it, although a share is up to three boxes."""
    real, read = os.preadv, []

    def counting(file: int, buffers: Any, offset: int) -> int:
        count = real(file, buffers, offset)
        read.append((os.readlink(f"/proc/self/fd/{file}"), offset, count))
        return count

    monkeypatch.setattr(os, "preadv", counting)
    whole = sum(torch.Size(size).numel() for size in SHAPES.values()) * 4 * len(KINDS)
    for rank in range(3):
        read.clear()
        state = plain_state(mesh_of(rank, 3))
        load_checkpoint(checkpoint, state, IDENTITY)
        assert differing(state, values(5)) == []
        assert len(set(read)) == len(read)
        share = sum(fragment.values.nbytes for fragment in state.fragments())
        borders = 2 * len(state.held) * CHUNK  # a share begins and ends within a chunk
        assert share <= sum(count for _, _, count in read) <= min(share + borders, whole * 0.7)


def mesh_of(rank: int, world: int) -> Any:
    """A rank that stands alone and believes to be one of many."""
    from parallel.layout import ParallelConfig
    from parallel.mesh import Mesh

    return Mesh(ParallelConfig(), rank, world, torch.device("cpu"), data_rank=rank, data_size=world)


def test_the_ranks_together_find_every_flip(checkpoint: Path) -> None:
    """In values and in headers, although no rank reads a whole file."""
    for path in sorted(checkpoint.glob("shard-*")):
        whole = path.read_bytes()
        for seed in range(60):
            flip_bit(path, seed)
            results = run_ranks(3, lambda mesh: load_checkpoint(checkpoint, plain_state(mesh), IDENTITY))
            assert [type(result) for result in results] == [UserError] * 3
            assert all(f"{path} does not match its digest" in str(result) for result in results)
            path.write_bytes(whole)


def test_a_reader_lets_go_of_its_files(checkpoint: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    reader = BlockReader(checkpoint, CheckpointManifest.read(checkpoint))
    reader.read("weight", "embedding")
    assert len(os.listdir("/proc/self/fd")) > before
    del reader
    assert len(os.listdir("/proc/self/fd")) == before
