"""Bytes of a file, unpacked and cut into lines, in memory that no file can blow up."""

from collections.abc import Iterator

import pyarrow as pa

from data_pipeline.sources.config import Storage
from data_pipeline.sources.storage import File, open_file
from runtime.errors import one_line

_CHUNK = 1 << 20
_CODECS = {".gz": "gzip", ".zst": "zstd"}
LARGEST_RATIO = 256
"""Unpacked bytes a packed byte may give, beyond the first `FREE_BYTES`; deflate's own limit is 1032."""
FREE_BYTES = 1 << 26


class Damaged(Exception):
    """A file breaks off, cannot be unpacked, or unpacks to far more than text does; the message says which."""


def is_packed(path: str) -> bool:
    """Whether the name says that the file is compressed."""
    return path.endswith(tuple(_CODECS))


def chunks(file: File, storage: Storage) -> Iterator[bytes]:
    """The unpacked bytes of `file`, a megabyte at a time. Raises Damaged."""
    codec = next((codec for ending, codec in _CODECS.items() if file.path.endswith(ending)), None)
    limit, given = LARGEST_RATIO * file.bytes + FREE_BYTES, 0
    try:
        with open_file(file, storage, stream=True) as raw:
            stream = raw if codec is None or not file.bytes else pa.CompressedInputStream(raw, codec)
            while chunk := stream.read(_CHUNK):
                given += len(chunk)
                if codec is not None and given > limit:
                    raise Damaged(f"it unpacks to more than {LARGEST_RATIO} times its size, which text does not")
                yield chunk
    except (OSError, pa.ArrowException) as error:
        raise Damaged(one_line(error)) from None


def chunks_of_lines(file: File, storage: Storage, begin: int, end: int) -> Iterator[bytes]:
    """Bytes of the lines of a file that is not packed which begin in [begin, end). Raises Damaged."""
    position = max(begin - 1, 0)
    inside = begin == 0
    try:
        with open_file(file, storage) as raw:
            raw.seek(position)
            while chunk := raw.read(_CHUNK):
                if not inside:
                    border = chunk.find(b"\n") + 1
                    position += border or len(chunk)
                    if not border:
                        continue
                    inside, chunk = True, chunk[border:]
                    if position >= end:
                        return
                if position + len(chunk) >= end:
                    border = chunk.find(b"\n", max(end - 1 - position, 0)) + 1
                    if border:
                        yield chunk[:border]
                        return
                position += len(chunk)
                yield chunk
    except OSError as error:
        raise Damaged(one_line(error)) from None


def whole(pieces: Iterator[bytes], limit: int) -> bytes | None:
    """All bytes of a file, or None as soon as they are more than `limit`."""
    held, size = [], 0
    for piece in pieces:
        size += len(piece)
        if size > limit:
            return None
        held.append(piece)
    return b"".join(held)


def lines(pieces: Iterator[bytes], limit: int) -> Iterator[bytes | None]:
    """Lines without their line feed; None for one of more than `limit` bytes, which is never held as a whole."""
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        *ended, rest = piece.split(b"\n")
        for part in ended:
            size += len(part)
            held.append(part)
            yield b"".join(held) if size <= limit else None
            held.clear()
            size = 0
        size += len(rest)
        held.append(rest)
        if size > limit:
            held.clear()
    if size:
        yield b"".join(held) if size <= limit else None
