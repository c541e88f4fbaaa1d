"""Checkpoints that were written once and are kept: today's format loads for ever, older ones name their migration.

The files under tests/fixtures were written by the code of their time; they are never written anew.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from plain_state import load
from safetensors.torch import load_file

from parallel.checkpoint.catalogue import verify_checkpoint
from parallel.checkpoint.manifest import MANIFEST, CheckpointManifest, content_digest
from parallel.checkpoint.migrate import main, migrate
from parallel.checkpoint.reader import BlockReader
from parallel.engines.base import KINDS
from runtime.errors import UserError
from tests.support.damage import flip_bit
from tests.support.threads import Logical, differing

FIXTURES = Path(__file__).parent.parent / "fixtures"
FORMAT_1 = FIXTURES / "checkpoint-format-1" / "step-00000003"
FORMAT_2 = FIXTURES / "checkpoint-format-2" / "step-00000003"
SHAPES = {"embedding": (13, 8), "blocks.0.gate": (6, 7), "norm": (9,)}


def expected() -> Logical:
    """Element i of a flattened tensor is i / 8, plus 100 for each kind and 1000 for each name before its own."""
    return {
        kind: {
            name: (torch.arange(torch.Size(shape).numel()) / 8 + 100 * k + 1000 * sorted(SHAPES).index(name)).view(
                shape
            )
            for name, shape in SHAPES.items()
        }
        for k, kind in enumerate(KINDS)
    }


def assert_holds_the_values(checkpoint: Path) -> None:
    manifest = verify_checkpoint(checkpoint)
    assert (manifest.step, manifest.updates, manifest.samples, manifest.tokens) == (3, 2, 12, 192)
    assert manifest.identity == {"model.width": 8, "train.seed": 3}
    assert manifest.loop == {"refused": 1, "refused_in_a_row": 0, "losses": [5.5, 5.25], "norms": [1.5, 0.5]}
    reader, truth = BlockReader(checkpoint, manifest), expected()
    for kind in KINDS:
        for name in SHAPES:
            assert torch.equal(reader.read(kind, name), truth[kind][name])
    state = load(checkpoint)
    assert differing(state, truth) == []
    assert state.loaded_steps == [2]


def test_format_2_loads() -> None:
    assert json.loads((FORMAT_2 / MANIFEST).read_text())["version"] == 2
    assert_holds_the_values(FORMAT_2)


def test_format_2_is_plain_safetensors() -> None:
    """Without any of the project's code."""
    manifest, truth = json.loads((FORMAT_2 / MANIFEST).read_text()), expected()
    files = {name: load_file(FORMAT_2 / name) for name in manifest["files"]}
    for kind, names in manifest["blocks"].items():
        for name, blocks in names.items():
            for block in blocks:
                where = tuple(slice(o, o + n) for o, n in zip(block["offset"], block["size"], strict=True))
                assert torch.equal(files[block["file"]][block["key"]], truth[kind][name][where])


def test_format_1_names_its_migration_which_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"format version 1, .*python -m parallel.checkpoint.migrate OLD NEW"):
        load(FORMAT_1)
    assert main([str(FORMAT_1), str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "step-00000003")
    assert_holds_the_values(tmp_path / "step-00000003")


def test_a_damaged_format_1_is_not_migrated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (MANIFEST, "shard-00001.safetensors"):
        for seed in range(10):
            copy = Path(shutil.copytree(FORMAT_1, tmp_path / f"{name}-{seed}"))
            flip_bit(copy / name, seed)
            assert main([str(copy), str(tmp_path / "new")]) == 2
            assert str(copy / name) in capsys.readouterr().err
    assert not list((tmp_path / "new").glob("step-*"))


def test_only_format_1_is_migrated(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not of format version 1"):
        migrate(FORMAT_2, tmp_path)
    assert main([]) == 2


def test_a_later_format_names_the_mend(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(FORMAT_2, tmp_path / FORMAT_2.name))
    values = json.loads((copy / MANIFEST).read_text())
    values["version"] = 3
    del values["digest"]
    (copy / MANIFEST).write_text(json.dumps(values | {"digest": content_digest(values)}))
    with pytest.raises(UserError, match="format version 3, this code reads 2: use the code version that wrote it"):
        CheckpointManifest.read(copy)
