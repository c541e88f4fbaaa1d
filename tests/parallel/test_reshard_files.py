"""Rewriting a checkpoint in other files: the same state, evenly cut, with little memory, or nothing at all."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from parallel.checkpoint.catalogue import verify_checkpoint
from parallel.checkpoint.diff import EQUAL, CheckpointDifference
from parallel.checkpoint.manifest import CheckpointManifest
from parallel.checkpoint.reshard import even_division, reshard, total_bytes
from parallel.engines.base import KINDS
from runtime.errors import UserError
from tests.parallel.plain_state import load
from tests.support.checkpoints import publish, random_state

SHAPES = {"embedding": (13, 8), "blocks.0.gate": (6, 7), "norm": (9,)}
ELEMENTS = 3 * (13 * 8 + 6 * 7 + 9)
IDENTITY = {"model.width": 8, "train.seed": 3}


@pytest.mark.parametrize("files", [1, 2, 3, 7, 64, ELEMENTS])
def test_even_files_cover_every_element_once(files: int) -> None:
    division = even_division(SHAPES, files)
    sizes = [sum(piece.box.numel for piece in pieces) for pieces in division]
    assert len(sizes) == files
    assert max(sizes) - min(sizes) <= 1
    covers = {kind: {name: torch.zeros(size) for name, size in SHAPES.items()} for kind in KINDS}
    for piece in (piece for pieces in division for piece in pieces):
        covers[piece.kind][piece.name][piece.box.slices] += 1
    assert all((cover == 1).all() for names in covers.values() for cover in names.values())
    assert total_bytes(division) == 4 * ELEMENTS


def test_more_files_than_numbers_are_refused() -> None:
    with pytest.raises(UserError, match=f"--files {ELEMENTS + 1} is more than the checkpoint's {ELEMENTS} numbers"):
        even_division(SHAPES, ELEMENTS + 1)


@pytest.mark.parametrize("files", [1, 3, 16])
def test_a_rewritten_checkpoint_is_the_same_state(tmp_path: Path, files: int) -> None:
    state = random_state(SHAPES, seed=4)
    source = publish(tmp_path / "step-00000007", state, 7, IDENTITY, files=2)
    manifest, final = CheckpointManifest.read(source), tmp_path / "out" / "step-00000007"
    told: list[int] = []
    reshard(source, manifest, even_division(manifest.shapes, files), final, told.append)
    assert sum(told) == 4 * ELEMENTS
    written = verify_checkpoint(final)
    assert {path.name for path in final.iterdir()} == {*written.files, "MANIFEST.json"}
    assert len(written.files) == files
    comparison = CheckpointDifference(source, final)
    assert comparison.manifest_changes() == {}
    assert {tensor.state for tensor in comparison.tensors()} == {EQUAL}
    for fragment in load(final, IDENTITY).held:
        name = fragment.blocks[0].name
        assert torch.equal(fragment.values.view(SHAPES[name]), state[fragment.kind][name])


def test_a_damaged_source_or_a_taken_place_leaves_nothing(tmp_path: Path) -> None:
    source = publish(tmp_path / "step-00000007", random_state(SHAPES, seed=4), 7, IDENTITY)
    manifest = CheckpointManifest.read(source)
    division = even_division(manifest.shapes, 2)
    with pytest.raises(UserError, match="step-00000007 exists already"):
        reshard(source, manifest, division, source, lambda _: None)
    out, file = tmp_path / "out", source / "shard-00000.safetensors"
    whole = file.read_bytes()
    for byte in (20, len(whole) - 3):  # in the header, and in the last value
        file.write_bytes(whole[:byte] + bytes([whole[byte] ^ 1]) + whole[byte + 1 :])
        with pytest.raises(UserError, match=r"shard-00000.safetensors does not match its digest"):
            reshard(source, manifest, division, out / "step-00000007", lambda _: None)
        assert list(out.glob("*")) == []
    file.write_bytes(whole)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        reshard(source, manifest, division, tmp_path / "file" / "step-00000007", lambda _: None)


_MEASURED = """
import resource, sys
from pathlib import Path
from parallel.checkpoint.manifest import CheckpointManifest
from parallel.checkpoint.reshard import even_division, reshard

def resident():
    whole, of_files = map(int, Path("/proc/self/statm").read_text().split()[1:3])
    return (whole - of_files) * resource.getpagesize()

source, out = map(Path, sys.argv[1:3])
manifest = CheckpointManifest.read(source)
division = even_division(manifest.shapes, 5)
seen = [resident()]
reshard(source, manifest, division, out, lambda _: seen.append(resident()))
print(max(seen) - seen[0])
"""


def test_peak_memory_stays_below_two_of_the_largest_tensor(tmp_path: Path) -> None:
    """A checkpoint of 120 MB whose largest tensor has 10 MB, in a process of its own."""
    largest = torch.zeros(1250, 2000)
    state = {kind: {f"blocks.{i}.gate": largest for i in range(4)} for kind in KINDS}
    source = publish(tmp_path / "step-00000001", state, 1, IDENTITY)
    command = [sys.executable, "-c", _MEASURED, str(source), str(tmp_path / "out" / "step-00000001")]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout)
    assert 0 < grown < 2 * largest.nbytes
