"""`logs/unable-nodes`: nodes on which the script's first question got no answer, for want of Python or of the run.

The script writes a line `NODE CODE` for each, since nothing else works there.
"""

from __future__ import annotations

from pathlib import Path

from pretrain.run_directory import RunDirectory


def unable_nodes(directory: RunDirectory) -> dict[str, str]:
    """Names of the nodes, each with the reason; those since the last attempt that began, or the last submission."""
    path = _file(directory)
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    words = [line.split() for line in lines if len(line.split()) == 2]
    return {node: f"the job's script could not start an attempt (code {code})" for node, code in words}


def forget_unable_nodes(directory: RunDirectory) -> None:
    """Let the count start anew. Raises OSError."""
    _file(directory).unlink(missing_ok=True)


def _file(directory: RunDirectory) -> Path:
    return directory.root / "logs" / "unable-nodes"
