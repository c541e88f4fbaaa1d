"""Blocks on local disk under the digest of their bytes, shared by all processes of a machine, bounded in size."""

import errno
import fcntl
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from runtime.errors import UserError, one_line
from runtime.files import digest_bytes, mend_of
from runtime.logs import log

_KEPT_SHARE = 0.9
"""How full the cache is left when room is made, so that it is not made for every block."""


class BlockCache:
    """Blocks of bytes by their xxh3-128; the least recently used make room for new ones.

    Any number of processes and threads may use a directory at once, and any may be killed. A block is written under
    the lock of its bucket and renamed when whole, so each is fetched once and never seen in part. Room is taken in a
    shared counter before a byte is written: what stands there never exceeds `limit` bytes.
    """

    def __init__(self, directory: Path, limit: int) -> None:
        """Raises UserError if the directory cannot be made or has no file locks."""
        self.directory, self.limit = directory, limit
        self._unwritable = False
        try:
            for folder in ("blocks", "locks"):
                (directory / folder).mkdir(mode=0o700, parents=True, exist_ok=True)
            for bucket in range(256):
                (directory / "blocks" / f"{bucket:02x}").mkdir(mode=0o700, exist_ok=True)
            with self._locked("usage"):
                pass
        except OSError as error:
            raise UserError(
                f"data.remote.cache: {directory} cannot be used ({error.strerror}): "
                "give a directory on a local disk that you may write"
            ) from None

    def view(self, digest: str, fetch: Callable[[], bytes | memoryview]) -> memoryview:
        """The bytes of block `digest`, mapped and checked; `fetch` gives them if they are not there.

        What `fetch` raises goes through. If the disk takes no block, what was fetched is given from memory.
        """
        found = self._map(digest)
        if found is not None:
            return found
        with self._locked(digest[:2]):
            found = self._map(digest)
            if found is not None:  # another process was first
                return found
            data = fetch()
            kept = self._keep(digest, data)
        return (self._map(digest) if kept else None) or memoryview(data)

    def holds(self, digest: str) -> bool:
        """Whether the block is there."""
        return self._path(digest).exists()

    def _path(self, digest: str) -> Path:
        return self.directory / "blocks" / digest[:2] / digest

    def _map(self, digest: str) -> memoryview | None:
        path = self._path(digest)
        try:
            with open(path, "rb") as file:
                view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
                os.utime(file.fileno())  # its last use
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:  # ValueError: an empty file
            log.warning("%s cannot be read (%s) and is fetched anew", path, one_line(error))
        else:
            if digest_bytes(view) == digest:
                return view
            log.warning("%s is damaged and is fetched anew", path)  # by a crash of the machine, or its disk
        with suppress(OSError):
            path.unlink()
        return None

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Hold a file lock, which ends with the process at the latest."""
        with open(self.directory / "locks" / name, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _keep(self, digest: str, data: bytes | memoryview) -> bool:
        path = self._path(digest)
        staging = path.with_name(f".{digest}")  # only ever written under the bucket's lock
        try:
            with self._locked("usage"):
                self._take(len(data))
                with open(staging, "wb") as file:
                    file.truncate(len(data))  # others who count see all that it will need
            with open(staging, "r+b") as file:
                file.write(data)
            with self._locked("usage"):
                os.replace(staging, path)
        except OSError as error:
            with suppress(OSError):
                staging.unlink()
            if not self._unwritable:
                log.warning(
                    "%s: %s (%s): blocks are fetched again and again, %s",
                    self.directory, "the cache takes no block", one_line(error), mend_of(error),
                )  # fmt: skip
            self._unwritable = True
            return False
        return True

    def _take(self, size: int) -> None:
        """Add `size` to the counter, and make room first if there is none. Under the lock `usage`."""
        counter = self.directory / "usage"
        try:
            used = int(counter.read_text())
        except (OSError, ValueError):  # the first of all, or a crash of the machine
            used = self.limit
        if used + size > self.limit:
            used = self._make_room(int(self.limit * _KEPT_SHARE) - size)
        if used + size > self.limit:
            raise OSError(errno.ENOSPC, f"data.remote.cache_bytes={self.limit} has no room for {size} more bytes")
        counter.write_text(str(used + size))

    def _make_room(self, aim: int) -> int:
        """Remove the blocks that were not used for longest until `aim` bytes are left; returns the bytes there are."""
        blocks, total = [], 0
        for bucket in os.scandir(self.directory / "blocks"):
            idle: bool | None = None
            for entry in os.scandir(bucket.path):
                try:
                    status = entry.stat()
                    if entry.name.startswith("."):
                        idle = self._is_idle(bucket.name) if idle is None else idle
                        if idle:  # a killed process left it
                            os.unlink(entry.path)
                            continue
                    else:
                        blocks.append((status.st_mtime_ns, status.st_size, entry.path))
                except FileNotFoundError:
                    continue
                total += status.st_size
        for _, size, path in sorted(blocks):
            if total <= aim:
                break
            with suppress(FileNotFoundError):
                os.unlink(path)
            total -= size
        return total

    def _is_idle(self, bucket: str) -> bool:
        with open(self.directory / "locks" / bucket, "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True
