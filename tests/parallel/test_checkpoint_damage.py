"""Whatever happens to a checkpoint's files, verify and load refuse it and name the file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_state import IDENTITY, load, plain_state, progress, save, values

from parallel.checkpoint.catalogue import verify_checkpoint
from parallel.checkpoint.manifest import MANIFEST, CheckpointManifest
from parallel.checkpoint.store import load_checkpoint
from parallel.mesh import Mesh
from runtime.errors import UserError
from tests.support.damage import flip_bit, swap, truncate
from tests.support.threads import differing, run_ranks

SHARDS = ("shard-00000.safetensors", "shard-00001.safetensors")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two files that no test changes."""
    return save(tmp_path_factory.mktemp("run"), 5)


@pytest.fixture
def checkpoint(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / published.name))


def assert_refused(checkpoint: Path, name: str, word: str = "") -> None:
    """Both readers name the file in one line, and a load does not make the engine go on with what it got."""
    with pytest.raises(UserError) as caught:
        verify_checkpoint(checkpoint)
    assert str(checkpoint / name) in str(caught.value)
    state = plain_state(Mesh.local(torch.device("cpu")))
    with pytest.raises(UserError) as loading:
        load_checkpoint(checkpoint, state, IDENTITY)
    for message in (str(caught.value), str(loading.value)):
        assert str(checkpoint / name) in message
        assert word in message
        assert "\n" not in message
    assert state.loaded_steps == []


def test_an_intact_checkpoint_is_read_as_it_was_saved(checkpoint: Path) -> None:
    assert sorted(verify_checkpoint(checkpoint).files) == list(SHARDS)
    state = load(checkpoint)
    assert differing(state, values(5)) == []
    assert state.loaded_steps == [5]


@pytest.mark.parametrize("name", SHARDS)
def test_thirty_bit_flips_of_a_shard_are_all_refused(checkpoint: Path, name: str) -> None:
    whole = (checkpoint / name).read_bytes()
    for seed in range(30):
        flip_bit(checkpoint / name, seed)
        assert_refused(checkpoint, name, "does not match its digest")
        (checkpoint / name).write_bytes(whole)


def test_sixty_bit_flips_of_the_manifest_are_all_refused(checkpoint: Path) -> None:
    whole = (checkpoint / MANIFEST).read_bytes()
    for seed in range(60):
        flip_bit(checkpoint / MANIFEST, seed)
        assert_refused(checkpoint, MANIFEST)
        (checkpoint / MANIFEST).write_bytes(whole)


@pytest.mark.parametrize("name", [*SHARDS, MANIFEST])
def test_truncated_files_are_refused(checkpoint: Path, name: str) -> None:
    whole = (checkpoint / name).read_bytes()
    for seed in range(10):
        truncate(checkpoint / name, seed)
        assert_refused(checkpoint, name)
        (checkpoint / name).write_bytes(whole)
    (checkpoint / name).write_bytes(b"")
    assert_refused(checkpoint, name)
    (checkpoint / name).write_bytes(whole + b"\0")
    assert_refused(checkpoint, name)


@pytest.mark.parametrize("name", [*SHARDS, MANIFEST])
def test_a_missing_file_is_named(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    assert_refused(checkpoint, name)


@pytest.mark.parametrize("name", [*SHARDS, MANIFEST])
def test_a_directory_in_a_files_place_is_named(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    (checkpoint / name).mkdir()
    assert_refused(checkpoint, name)


def test_swapped_shards_are_refused(checkpoint: Path) -> None:
    swap(checkpoint / SHARDS[0], checkpoint / SHARDS[1])
    assert_refused(checkpoint, SHARDS[0])


@pytest.mark.parametrize("name", [*SHARDS, MANIFEST])
def test_a_file_of_another_checkpoint_is_refused(checkpoint: Path, tmp_path: Path, name: str) -> None:
    """Same names, same sizes, other values: only the digests can tell."""
    other = save(tmp_path / "other", 5, seed=6)
    assert (other / SHARDS[0]).stat().st_size == (checkpoint / SHARDS[0]).stat().st_size
    shutil.copy(other / name, checkpoint / name)
    assert_refused(checkpoint, SHARDS[0] if name == MANIFEST else name)


def test_all_ranks_refuse_what_one_rank_found(checkpoint: Path) -> None:
    """The work of hashing is shared: only one of the three ranks sees the flip."""
    flip_bit(checkpoint / SHARDS[1], 4)
    results = run_ranks(3, lambda mesh: load_checkpoint(checkpoint, plain_state(mesh), IDENTITY))
    assert [type(result) for result in results] == [UserError] * 3
    assert all(SHARDS[1] in str(result) for result in results)


def without(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda manifest: {k: v for k, v in manifest.items() if k != key}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda m: m | {"version": 1}, "does not match its own digest"),
        (lambda m: m | {"version": 3}, "does not match its own digest"),
        (lambda m: m | {"version": "2"}, "does not match its own digest"),
        (without("version"), "does not match its own digest"),
        (without("digest"), "does not match its own digest"),
        (without("files"), "does not match its own digest"),
        (lambda m: m | {"step": 6}, "does not match its own digest"),
        (lambda m: m | {"extra": 1}, "does not match its own digest"),
        (lambda m: [m], MANIFEST),
        (lambda m: None, MANIFEST),
        (lambda m: "text", MANIFEST),
    ],
)
def test_an_edited_manifest_is_refused(checkpoint: Path, change: Callable[[dict[str, Any]], Any], word: str) -> None:
    path = checkpoint / MANIFEST
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    assert_refused(checkpoint, MANIFEST, word)


def test_the_same_manifest_in_another_spelling_is_read(checkpoint: Path) -> None:
    path = checkpoint / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True))
    assert differing(load(checkpoint), values(5)) == []


OUTSIDE = ["../outside.safetensors", "sub/inside.safetensors", "..", ".", "", "a\0b", "..\\outside.safetensors"]


@pytest.mark.parametrize("where", ["files", "blocks"])
@pytest.mark.parametrize("name", [*OUTSIDE, "absolute"])
def test_files_outside_the_directory_are_refused(checkpoint: Path, name: str, where: str) -> None:
    """Even if they are there, match their digests, and the manifest is consistent with itself."""
    target = str(checkpoint.parent / "outside.safetensors") if name == "absolute" else name
    shutil.copy(checkpoint / SHARDS[0], checkpoint.parent / "outside.safetensors")
    (checkpoint / "sub").mkdir()
    shutil.copy(checkpoint / SHARDS[0], checkpoint / "sub" / "inside.safetensors")
    honest = CheckpointManifest.read(checkpoint)
    changes: dict[str, Any] = {}
    if where == "files":
        changes["files"] = {target if k == SHARDS[0] else k: v for k, v in honest.files.items()}
    else:
        changes["blocks"] = {
            kind: {
                tensor: [b.model_copy(update={"file": target}) if b.file == SHARDS[0] else b for b in stored]
                for tensor, stored in tensors.items()
            }
            for kind, tensors in honest.blocks.items()
        }
    honest.model_copy(update=changes).write(checkpoint)
    assert_refused(checkpoint, MANIFEST, "is not the name of a file beside the manifest")


@pytest.mark.parametrize(
    ("identity", "word"),
    [
        (IDENTITY | {"model.width": 16}, "model.width is 8, here 16"),
        (IDENTITY | {"objective.kind": "masked"}, "objective.kind is None, here 'masked'"),
    ],
)
def test_another_models_checkpoint_names_the_key(checkpoint: Path, identity: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word):
        load(checkpoint, identity)


def test_other_shapes_name_the_tensor(checkpoint: Path) -> None:
    state = plain_state(Mesh.local(torch.device("cpu")))
    state.shapes = state.shapes | {"norm": (10,)}
    with pytest.raises(UserError, match=r"norm is \(9,\), not \(10,\)"):
        load_checkpoint(checkpoint, state, IDENTITY)


def test_a_directory_without_a_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"MANIFEST\.json does not exist"):
        verify_checkpoint(tmp_path)


def test_progress_comes_back(checkpoint: Path) -> None:
    manifest, saved = CheckpointManifest.read(checkpoint), progress(5)
    for name, value in vars(saved).items():
        assert getattr(manifest, name) == value
