"""Files of a dataset: what a manifest says of one, and how it is mapped."""

from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field

from runtime.errors import UserError
from runtime.files import digest_file, fsync_file
from runtime.settings import Settings

FILE_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*$"
"""Of a file in a dataset's own directory: a hostile manifest cannot lead out of it."""
MEND = "restore the file or rebuild the dataset"

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Count = Annotated[int, Field(ge=0)]


class FileInfo(Settings):
    """A file of the dataset, below its directory."""

    name: str = Field(pattern=FILE_NAME)
    bytes: Count
    digest: Digest


def file_info(path: Path) -> FileInfo:
    """Size and digest of `path`."""
    return FileInfo(name=path.name, bytes=path.stat().st_size, digest=digest_file(path))


def describe_file(path: Path) -> FileInfo:
    """Make `path` durable and take its size and digest."""
    fsync_file(path)
    return file_info(path)


def map_file(path: Path, size: int) -> Any:
    """The bytes of `path`, memory-mapped; no file stays open. Raises UserError if it is missing or not `size` bytes."""
    try:
        found = path.stat().st_size
        if found != size:
            raise UserError(f"{path} is {found} bytes long, not {size}: {MEND}")
        with pa.memory_map(str(path), "r") as mapped:
            return mapped.read_buffer()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {MEND}") from None


def checked_file(directory: Path | str, info: FileInfo) -> Any:
    """The bytes of a file of a dataset, memory-mapped and compared with its digest. Raises UserError naming it."""
    path = Path(directory, info.name)
    data = map_file(path, info.bytes)
    try:
        digest = digest_file(path)  # read, not looked at: a fault of the disk is then an error and not a signal
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {MEND}") from None
    if digest != info.digest:
        raise UserError(f"{path} is damaged (its digest does not fit): {MEND}")
    return data
