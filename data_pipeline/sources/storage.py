"""Files on local disk or in an object store: found by pattern, opened as streams."""

import glob
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.fs

from data_pipeline.sources.config import Storage
from runtime.errors import UserError, one_line

_WILDCARD = re.compile(r"[*?\[]")


class File(NamedTuple):
    """A file of a source; `modified` (nanoseconds) only tells a replaced file from the one before."""

    path: str
    bytes: int
    modified: int


def split_scheme(path: str) -> tuple[str, str]:
    """(`file`, `s3` or `gs`; the path that its file system knows)."""
    scheme, mark, rest = path.partition("://")
    return (scheme, rest) if mark else ("file", path)


def open_filesystem(scheme: str, storage: Storage) -> Any:
    """The pyarrow file system of a scheme. Raises UserError if the store cannot be reached at all."""
    if scheme == "file":
        return pa.fs.LocalFileSystem()
    options: dict[str, Any] = {"anonymous": storage.anonymous}
    if storage.endpoint is not None:
        protocol, mark, host = storage.endpoint.partition("://")
        options |= {"endpoint_override": host, "scheme": protocol} if mark else {"endpoint_override": protocol}
    if scheme == "gs":
        return pa.fs.GcsFileSystem(**options)
    if storage.region is not None:
        options["region"] = storage.region
    return pa.fs.S3FileSystem(**options)


def find_files(patterns: list[str], storage: Storage, wanted: Callable[[str], bool]) -> list[File]:
    """Files of all patterns in the order of their paths, none twice.

    A directory gives all its files below that are `wanted` by name; a pattern or a file's name gives what it says.
    Hidden files are passed over. Raises UserError naming what cannot be listed.
    """
    found: dict[str, File] = {}
    for pattern in patterns:
        scheme, path = split_scheme(pattern)
        listing = _local(path, wanted) if scheme == "file" else _stored(scheme, path, storage, wanted)
        try:
            found |= {file.path: file for file in listing}
        except OSError as error:
            raise UserError(f"{pattern} cannot be listed ({one_line(error)}): check the path and its access") from None
    return [found[path] for path in sorted(found)]


def _local(pattern: str, wanted: Callable[[str], bool]) -> Iterator[File]:
    for match in glob.glob(str(Path(pattern).expanduser()), recursive=True):
        if os.path.isfile(match):
            yield _stat(match)
        elif not pattern.endswith("**"):  # that one lists what is below by itself
            for parent, folders, names in os.walk(match):
                folders[:] = [name for name in folders if not name.startswith(".")]
                yield from (
                    _stat(os.path.join(parent, name))
                    for name in names
                    if wanted(name) and not name.startswith(".") and os.path.isfile(os.path.join(parent, name))
                )


def _stat(path: str) -> File:
    status = os.stat(path)
    return File(path, status.st_size, status.st_mtime_ns)


def _stored(scheme: str, pattern: str, storage: Storage, wanted: Callable[[str], bool]) -> Iterator[File]:
    filesystem = open_filesystem(scheme, storage)
    wild = _WILDCARD.search(pattern)
    base = pattern[: wild.start()].rpartition("/")[0] if wild else pattern.rstrip("/")
    if not base or base.startswith("/"):
        raise UserError(f"{scheme}://{pattern} names no bucket: begin with one, as in {scheme}://bucket/folder/*.jsonl")
    info = filesystem.get_file_info(base)
    if info.type == pa.fs.FileType.NotFound:
        return
    if info.type == pa.fs.FileType.File:
        yield _described(scheme, info)
        return
    matches = re.compile(_expression(pattern)).fullmatch if wild else None
    for entry in filesystem.get_file_info(pa.fs.FileSelector(base, recursive=True)):
        hidden = any(part.startswith(".") for part in entry.path.removeprefix(base).split("/"))
        named = matches(entry.path) if matches else wanted(entry.base_name)
        if entry.type == pa.fs.FileType.File and named and not hidden:
            yield _described(scheme, entry)


def _described(scheme: str, info: Any) -> File:
    return File(f"{scheme}://{info.path}", info.size, info.mtime_ns or 0)


def _expression(pattern: str) -> str:
    """A glob as a regular expression: `**/` any folders, `*` and `?` inside a name, `[...]` one of."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[!?[^\]]+\])", pattern)
    words = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        words.get(part) or (f"[{part[1:-1].replace('!', '^', 1)}]" if part.startswith("[") else re.escape(part))
        for part in parts
    )


def open_file(file: File, storage: Storage, stream: bool = False) -> Any:
    """The file for reading, with random access or as a stream. Raises OSError."""
    scheme, path = split_scheme(file.path)
    filesystem = open_filesystem(scheme, storage)
    return filesystem.open_input_stream(path, compression=None) if stream else filesystem.open_input_file(path)
