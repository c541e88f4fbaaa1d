"""An environment of their own for the projects that the data path is measured beside."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
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
    """A Python that imports the peers with these versions, but those that are `missing`, with the reason."""

    python: str
    versions: dict[str, str]
    missing: dict[str, str]


def prepare_environment(path: Path, console: Console) -> Environment:
    """Make the environment if it is not there.

    All peers are installed together, in versions that go together; if that fails, each by itself, so that one that
    does not install costs only itself.
    """
    python = str(path.absolute() / "bin" / "python")
    versions, missing = {}, {}
    if not Path(python).exists():
        console.print(f"making {path} for the peers", highlight=False)
        subprocess.run([sys.executable, "-m", "venv", str(path)], check=True)
        torch = importlib.metadata.version("torch")
        _pip(python, f"torch=={torch}")
        _pip(python, *(peer.package for peer in PEERS.values()))
    for name, peer in PEERS.items():
        if _ask(python, f"import {peer.module}")[0]:
            _, reason = _pip(python, peer.package)
            imported, trouble = _ask(python, f"import {peer.module}")
            if imported:
                missing[name] = f"does not install or import: {reason or trouble}"
                console.print(f"{name} {missing[name]}", highlight=False)
                continue
        _, versions[name] = _ask(python, f"import importlib.metadata as m; print(m.version({name!r}))")
    return Environment(python, versions, missing)


def _pip(python: str, *packages: str) -> tuple[int, str]:
    command = [python, "-m", "pip", "--disable-pip-version-check", "-q", "install", *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, _last_line(done.stderr) if done.returncode else ""


def _ask(python: str, program: str) -> tuple[int, str]:
    done = subprocess.run([python, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False)
    return done.returncode, _last_line(done.stderr if done.returncode else done.stdout)


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip()[:160] if lines else ""
