"""Faults at the calls by which a process writes: every one is seen, numbered, and may fail, be torn or be the last.

Nothing of the product knows of this: the functions of `os` and the files that `open` returns are wrapped. Calls are
matched by the path that they write to, below a root directory.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_BY_PATH = ("mkdir", "rename", "replace", "unlink", "remove", "rmdir", "link", "symlink", "truncate", "utime")
_BY_HANDLE = ("fsync", "fdatasync", "write", "pwrite", "writev", "pwritev", "ftruncate")
_real = {name: getattr(os, name) for name in (*_BY_PATH, *_BY_HANDLE, "open", "readlink")}
_open = builtins.open


@dataclass(frozen=True)
class Call:
    """A call that writes: the function's name and the path, relative to the root, that it was called for."""

    operation: str
    path: str


class Watch:
    """What happens around each call below `root`; override. Calls may come from several threads."""

    def __init__(self, root: Path) -> None:
        self.root = f"{os.path.realpath(root)}/"

    def around(self, call: Call, action: Callable[[], T], torn: Callable[[], object] | None) -> T:
        """Perform `action`, or not; `torn` performs the first half of it, for calls that have one."""
        raise NotImplementedError

    def run(self, operation: str, path: str | None, action: Callable[[], T], torn: Callable[[], object] | None) -> T:
        """`action`, watched if its path is below the root."""
        if path is None or not f"{path}/".startswith(self.root):
            return action()
        return self.around(Call(operation, path[len(self.root) :]), action, torn)


@contextlib.contextmanager
def installed(watch: Watch) -> Iterator[None]:
    """Let `watch` see this process's calls."""
    install(watch)
    try:
        yield
    finally:
        for name, function in _real.items():
            setattr(os, name, function)
        builtins.open = io.open = _open


def install(watch: Watch) -> None:
    """Let `watch` see this process's calls, to its end."""
    for name in _BY_PATH:
        setattr(os, name, _by_path(watch, name))
    for name in _BY_HANDLE:
        setattr(os, name, _by_handle(watch, name))
    os.open = _opening(watch)
    builtins.open = io.open = _file_opening(watch)  # type: ignore[assignment]


def _by_path(watch: Watch, name: str) -> Callable[..., Any]:
    def function(path: Any, *arguments: Any, **options: Any) -> Any:
        folder = options.get("dir_fd", options.get("src_dir_fd"))
        return watch.run(name, _full_path(path, folder), lambda: _real[name](path, *arguments, **options), None)

    return function


def _by_handle(watch: Watch, name: str) -> Callable[..., Any]:
    def function(handle: Any, *arguments: Any) -> Any:
        torn = None
        if name == "write":
            data = memoryview(arguments[0]).cast("B")
            torn = lambda: _real["write"](handle, data[: len(data) // 2])  # noqa: E731
        path = _handle_path(handle if isinstance(handle, int) else handle.fileno())
        return watch.run(name, path, lambda: _real[name](handle, *arguments), torn)

    return function


def _opening(watch: Watch) -> Callable[..., int]:
    def function(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        target = _full_path(path, options.get("dir_fd")) if flags & _WRITING else None
        return int(watch.run("open", target, lambda: _real["open"](path, flags, *arguments, **options), None))

    return function


def _file_opening(watch: Watch) -> Callable[..., Any]:
    def function(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        path = _full_path(file, None) if set(mode) & set("wax+") else None
        if path is None or not path.startswith(watch.root) or "+" in mode:
            return _open(file, mode, *arguments, **options)

        def action() -> Any:
            raw = _WatchedFile(file, mode.replace("b", "").replace("t", ""), watch, path)
            buffered = io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, options.get("encoding"), newline=None)

        return watch.run("open", path, action, None)

    return function


class _WatchedFile(io.FileIO):
    """A file whose writes are seen; what is buffered above it comes here when it is flushed."""

    def __init__(self, file: Any, mode: str, watch: Watch, path: str) -> None:
        self._watch, self._path = watch, path
        super().__init__(file, mode)

    def write(self, data: Any) -> Any:
        half = memoryview(data).cast("B")[: len(data) // 2]
        plain = super().write
        return self._watch.run("write", self._path, lambda: plain(data), lambda: plain(half))


def _full_path(path: Any, folder: int | None) -> str | None:
    if isinstance(path, int):
        return _handle_path(path)
    name = os.fsdecode(path)
    if folder is not None:
        name = os.path.join(_handle_path(folder) or "", name)
    parent, last = os.path.split(os.path.abspath(name))
    return os.path.join(os.path.realpath(parent), last)


def _handle_path(handle: int) -> str | None:
    try:
        return str(_real["readlink"](f"/proc/self/fd/{handle}"))
    except OSError:
        return None


class Numbered(Watch):
    """Numbers the calls whose path begins with `prefix`, from 0, over all threads."""

    def __init__(self, root: Path, prefix: str) -> None:
        super().__init__(root)
        self._prefix = prefix
        self._lock = threading.Lock()
        self._count = 0

    def around(self, call: Call, action: Callable[[], T], torn: Callable[[], object] | None) -> T:
        if not call.path.startswith(self._prefix):
            return action()
        with self._lock:
            number, self._count = self._count, self._count + 1
        return self.numbered(number, call, action, torn)

    def numbered(self, number: int, call: Call, action: Callable[[], T], torn: Callable[[], object] | None) -> T:
        """As `around`."""
        raise NotImplementedError
