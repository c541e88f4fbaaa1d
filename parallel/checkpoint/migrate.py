"""Rewrites a checkpoint of format 1: `python -m parallel.checkpoint.migrate OLD NEW` makes `NEW/step-NNNNNNNN`.

Format 1 had one digest per file and no byte ranges.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from safetensors import safe_open

from parallel.checkpoint.manifest import MANIFEST, content_digest, damaged
from parallel.checkpoint.shard_file import Entry, ShardWriter
from parallel.checkpoint.store import (
    Progress,
    Shard,
    build_manifest,
    publish_checkpoint,
    staging_directory,
    step_directory,
)
from runtime.errors import LacunaError, UserError, one_line
from runtime.files import digest_file, mend_of, read_json, remove_tree


def migrate(old: Path, root: Path) -> Path:
    """Write checkpoint `old` of format 1 below `root` in today's format, after a look at every byte of it.

    Returns the new checkpoint. Raises UserError if `old` is damaged or of another format, or OSError.
    """
    values = read_json(old / MANIFEST)
    if not isinstance(values, dict) or values.get("version") != 1:
        raise UserError(f"{old / MANIFEST} is not of format version 1: it needs no migration from there")
    if values.pop("digest", None) != content_digest(values):
        raise damaged(old / MANIFEST, "does not match its own digest")
    progress = Progress(**{name: values[name] for name in Progress.__annotations__})
    staging, final = staging_directory(root, progress.step), step_directory(root, progress.step)
    remove_tree(staging)
    staging.mkdir(parents=True)
    shards = [_rewrite(old, name, values, staging) for name in sorted(values["files"])]
    publish_checkpoint(staging, final, build_manifest(progress, shards))
    return final


def _rewrite(old: Path, name: str, values: dict[str, Any], staging: Path) -> Shard:
    if Path(name).name != name or digest_file(old / name) != values["files"][name]["digest"]:
        raise damaged(old / name, "does not match its digest")
    places: dict[str, list[tuple[str, str, dict[str, Any]]]] = defaultdict(list)
    for kind, names in values["blocks"].items():
        for tensor, blocks in names.items():
            for block in blocks:
                if block["file"] == name:
                    places[block["key"]].append((kind, tensor, block))
    with safe_open(old / name, framework="pt") as source:
        entries = [Entry(key, tuple(source.get_slice(key).get_shape())) for key in places]
        with ShardWriter(staging / name, entries) as writer:
            for entry in entries:
                writer.append(source.get_tensor(entry.key))
            written = writer.finish()
    blocks = [
        (kind, tensor, written.block(key, tuple(block["offset"]), tuple(block["size"])))
        for key, found in places.items()
        for kind, tensor, block in found
    ]
    return Shard(name, written.stored, blocks, {n: tuple(shape) for n, shape in values["shapes"].items()})


def main(arguments: list[str]) -> int:
    """Two paths; the exit code."""
    if len(arguments) != 2:
        print("usage: python -m parallel.checkpoint.migrate OLD NEW", file=sys.stderr)
        return 2
    try:
        print(migrate(Path(arguments[0]), Path(arguments[1])))
    except LacunaError as error:
        print(f"lacuna: {one_line(error)}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"lacuna: {one_line(error)}; {mend_of(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
