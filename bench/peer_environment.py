"""An environment of their own for the projects that the data path is measured beside."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console


@dataclass(frozen=True)
class Peer:
    """What pip installs, what Python imports, and whether its loader takes worker processes."""

    package: str
    module: str
    workers: bool = False


PEERS = {
    "litdata": Peer("litdata", "litdata", workers=True),
    "mosaicml-streaming": Peer("mosaicml-streaming", "streaming", workers=True),
    "datasets": Peer("datasets", "datasets"),
    "torchdata": Peer("torchdata", "torchdata.stateful_dataloader", workers=True),
    "megatron-core": Peer("megatron-core==0.16.1", "megatron.core.datasets.indexed_dataset"),
}


@dataclass(frozen=True)
class Environment:
    """A Python that imports most peers, others of their own for those that do not go with the rest (`apart`), the
    versions of all, and why some are `missing`."""

    python: str
    apart: dict[str, str]
    versions: dict[str, str]
    missing: dict[str, str]

    def python_of(self, peer: str) -> str:
        """The Python that imports a peer."""
        return self.apart.get(peer, self.python)


def prepare_environment(path: Path, console: Console) -> Environment:
    """Make the environment if it is not there.

    All peers are installed together, in versions that go together; one that then cannot be imported gets an environment
    of its own below, so that its needs change nobody else's versions.
    """
    python = _make(path, [peer.package for peer in PEERS.values()], console)
    apart: dict[str, str] = {}
    versions: dict[str, str] = {}
    missing: dict[str, str] = {}
    for name, peer in PEERS.items():
        own, (failed, reason) = python, _ask(python, f"import {peer.module}")
        if failed:
            own = apart[name] = _make(path / f"apart-{name}", [peer.package], console)
            failed, reason = _ask(own, f"import {peer.module}")
        if failed:
            missing[name] = f"does not install or import: {reason}"
            console.print(f"{name} {missing[name]}", highlight=False, markup=False)
        else:
            _, versions[name] = _ask(own, f"import importlib.metadata as m; print(m.version({name!r}))")
    return Environment(python, apart, versions, missing)


def _make(path: Path, packages: Sequence[str], console: Console) -> str:
    """The Python of an environment with these packages, in the versions that pip takes (torch is several GB)."""
    python = str(path.absolute() / "bin" / "python")
    if not Path(python).exists():
        console.print(f"making {path}: {', '.join(packages)}", highlight=False, markup=False)
        subprocess.run([sys.executable, "-m", "venv", str(path)], check=True)
        command = [python, "-m", "pip", "--disable-pip-version-check", "-q", "install", *packages]
        subprocess.run(command, capture_output=True, check=False)
    return python


def _ask(python: str, program: str) -> tuple[int, str]:
    done = subprocess.run([python, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False)
    return done.returncode, _last_line(done.stderr if done.returncode else done.stdout)


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip()[:160] if lines else ""
