"""Which sources and libraries a result is of, so that a stopped proof goes on with its own results and no others."""

import sys
from importlib.metadata import version
from pathlib import Path

import xxhash

ROOT = Path(__file__).parents[2]
PROVED = ("runtime", "data_pipeline", "parallel", "pretrain", "launch", "tests/support")
"""What nearly every proof runs."""
_LIBRARIES = ("torch", "megatron-core", "deepspeed", "numpy")


def sources_digest(*more: str, root: Path = ROOT) -> str:
    """16 hexadecimal digits over every file of `PROVED` and `more` (files or directories below `root`), and versions.

    Results kept below a directory of this name are never taken for those of other code. Raises AssertionError if a
    name is of nothing.
    """
    versions = [sys.version, *(f"{name} {version(name)}" for name in _LIBRARIES)]
    state = xxhash.xxh3_64(" ".join(versions).encode())
    for name in (*PROVED, *more):
        top = root / name
        files = [top] if top.is_file() else sorted(path for path in top.rglob("*") if _is_source(path))
        assert files, f"{top} holds no sources"
        for path in files:
            content = path.read_bytes()
            state.update(f"\n{path.relative_to(root).as_posix()} {len(content)}\n".encode())
            state.update(content)
    return state.hexdigest()


def _is_source(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts
