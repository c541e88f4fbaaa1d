"""Files that are either whole or absent: atomic writes, published directories, digests."""

import errno
import glob
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash

from runtime.errors import UserError, one_line

_CHUNK = 1 << 22
_MENDS = {
    errno.ENOSPC: "free some room",
    errno.EDQUOT: "free some room or have the quota raised",
    errno.EROFS: "mount the file system for writing",
    errno.EACCES: "get the permission to write there",
    errno.EPERM: "get the permission to write there",
    errno.EFBIG: "have the limit on file sizes raised (ulimit -f)",
    errno.EMFILE: "have the limit on open files raised (ulimit -n)",
    errno.EIO: "look into the system's log for the fault of the disk",
}


def mend_of(error: OSError) -> str:
    """What a person can do about a failure to write."""
    return _MENDS.get(error.errno or 0, "look after the file system")


def fsync_directory(path: Path) -> None:
    """Make the entries of directory `path` durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_file(path: Path) -> None:
    """Make the bytes of file `path` durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, data: bytes | str, mode: int = 0o666) -> None:
    """Write `data` to `path` so that a reader sees the old file or the new one, never a part. `mode`: its rights,
    less the umask.

    Raises OSError (for instance a full disk) with the old file untouched.
    """
    write_pieces(path, [data.encode() if isinstance(data, str) else data], mode)


def write_pieces(path: Path, pieces: Iterable[bytes], mode: int = 0o666) -> None:
    """As `write_atomic`, of data that comes piece by piece; what `pieces` raises goes through."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        staging.unlink(missing_ok=True)  # of a killed process with our number, perhaps with other rights
        with open(staging, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as out:
            out.writelines(pieces)
            out.flush()
            os.fsync(out.fileno())
        os.replace(staging, path)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def remove_temporaries(path: Path) -> None:
    """Remove what killed calls of `write_atomic` have left beside `path`. For its only writer."""
    for staging in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        staging.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises UserError that names the file if it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: check the path") from None
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}): restore or rebuild it") from None


def publish_directory(staging: Path, final: Path, check: Callable[[], None] = lambda: None) -> None:
    """Rename a finished `staging` directory to `final` and make the rename durable.

    `check` is called right before the rename; what it raises goes through. Raises UserError if `final` exists:
    published directories are never overwritten.
    """
    if final.exists():
        raise UserError(f"{final} exists already: published directories are never overwritten, move it away")
    fsync_directory(staging)
    check()
    os.rename(staging, final)
    try:
        fsync_directory(final.parent)
    except OSError:  # it may not last: then it must not stand there as if it would
        os.rename(final, staging)
        raise


@contextmanager
def staged_directory(final: Path) -> Iterator[Path]:
    """An empty directory beside `final` to be filled, which becomes `final` at the end; removed on any error.

    Raises UserError if `final` exists already or cannot be written.
    """
    if final.exists():
        raise UserError(f"{final} exists already: published directories are never overwritten, move it away")
    staging = final.with_name(f".{final.name}.staging")
    try:
        remove_tree(staging)
        staging.mkdir(parents=True)
        yield staging
        publish_directory(staging, final)
    except OSError as error:
        remove_tree(staging)
        raise UserError(f"{final} cannot be written ({one_line(error)}): {mend_of(error)}") from None
    except BaseException:
        remove_tree(staging)
        raise


def remove_tree(path: Path) -> None:
    """Remove a directory tree if it is there, and what killed calls have left of it.

    Renames first, durably, so that no reader ever finds half of it.
    """
    for grave in half_removed(path):  # one may bear our number
        shutil.rmtree(grave, ignore_errors=True)
    if path.exists():
        grave = path.with_name(f".{path.name}.{os.getpid()}.removed")
        os.rename(path, grave)
        fsync_directory(path.parent)
        shutil.rmtree(grave, ignore_errors=True)


def half_removed(path: Path) -> list[Path]:
    """What calls of `remove_tree(path)` that were killed have left beside it, or others are removing now."""
    name = re.compile(rf"\.{re.escape(path.name)}\.[0-9]+\.removed")
    return [grave for grave in path.parent.glob(".*.removed") if name.fullmatch(grave.name)]


def digest_bytes(data: bytes | memoryview) -> str:
    """The xxh3-128 of `data` as 32 hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(data)


def digest_file(path: Path, advance: Callable[[int], None] | None = None) -> str:
    """The xxh3-128 of a file's bytes as 32 hexadecimal digits; `advance` is told the bytes read, again and again."""
    state = xxhash.xxh3_128()
    with open(path, "rb") as source:
        while chunk := source.read(_CHUNK):
            state.update(chunk)
            if advance:
                advance(len(chunk))
    return state.hexdigest()
