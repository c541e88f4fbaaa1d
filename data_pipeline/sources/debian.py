"""Text from Debian packages, without root: fetched with apt-get, unpacked with dpkg-deb."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from runtime.errors import LacunaError, one_line

_SECONDS = 600
_OPTIONS = ("-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=30")


class PackageUnavailable(LacunaError):
    """A package cannot be fetched or unpacked on this machine; the message says why."""


def default_cache() -> Path:
    """Where packages are kept between builds: `$XDG_CACHE_HOME/lacuna/debian`, else below `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lacuna" / "debian"


def fetch_package(package: str, cache: Path) -> Path:
    """The `.deb` file of `package`, from `cache` if it is there. Raises PackageUnavailable."""
    kept = sorted(cache.glob(f"{package}_*.deb"))
    if kept:
        return kept[-1]
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as fresh:
        _run(["apt-get", "-q", *_OPTIONS, "download", package], Path(fresh))
        found = list(Path(fresh).glob("*.deb"))
        if not found:
            raise PackageUnavailable(f"apt-get download {package} gave no file")
        return found[0].rename(cache / found[0].name)


def unpack_package(deb: Path, directory: Path) -> None:
    """Unpack `deb` below `directory`. Raises PackageUnavailable."""
    _run(["dpkg-deb", "-x", str(deb.resolve()), "."], directory)


def _run(command: list[str], directory: Path) -> None:
    if shutil.which(command[0]) is None:
        raise PackageUnavailable(f"{command[0]} is not installed")
    try:
        result = subprocess.run(
            command, cwd=directory, env={**os.environ, "LC_ALL": "C"}, stdin=subprocess.DEVNULL,
            capture_output=True, timeout=_SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PackageUnavailable(f"{command[0]}: {one_line(error)}") from None
    if result.returncode:
        lines = result.stderr.decode(errors="replace").strip().splitlines()
        raise PackageUnavailable(f"{command[0]} failed ({lines[-1].strip() if lines else result.returncode})")
