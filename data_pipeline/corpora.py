"""Where text comes from: each kind of source lists its files, and cuts a file into documents."""

import glob
import gzip
import json
import platform
import re
import sysconfig
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.config import DebianPackage, JsonLines, PythonStdlib, SourceConfig, TextFiles
from data_pipeline.debian import PackageUnavailable, fetch_package, unpack_package
from runtime.errors import UserError, one_line
from runtime.logs import log

Documents = Iterator[str | None]
"""Documents in a fixed order; None stands for one that could not be decoded."""

_TERMINAL_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_FORTUNE_BORDER = re.compile(r"^%\r?$", re.MULTILINE)
_UNPACKED_AS_DAMAGED = (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error)


@dataclass(frozen=True)
class Corpus:
    """The files of one source, in order, and how to read one. `skipped` says why there are none."""

    origin: str
    files: list[Path]
    read: Callable[[Path], Documents]
    skipped: str | None = None


def open_corpus(source: SourceConfig, workspace: Path, cache: Path) -> Corpus:
    """Find (or fetch into `cache` and unpack below `workspace`) the files of `source`.

    Raises UserError naming the source if there are none and it is not optional.
    """
    if isinstance(source, DebianPackage):
        corpus = _debian(source, workspace, cache)
    elif isinstance(source, PythonStdlib):
        corpus = Corpus(f"Python {platform.python_version()}", _stdlib_files(), whole_file)
    elif isinstance(source, JsonLines):
        corpus = Corpus(source.glob, _matching(source.glob), lambda path: json_lines(path, source.field))
    else:
        corpus = Corpus(source.glob, _matching(source.glob), _reader(source))
    if not corpus.files and corpus.skipped is None:
        raise UserError(f"source {source.name!r}: no file matches in {corpus.origin}: check its `glob` or `include`")
    return corpus


def _reader(source: TextFiles | DebianPackage) -> Callable[[Path], Documents]:
    return fortunes if source.split == "fortune" else whole_file


def _stdlib_files() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    foreign = {"site-packages", "dist-packages", "__pycache__"}
    return [
        path
        for path in sorted(root.rglob("*.py"))
        if path.is_file() and not foreign & set(path.relative_to(root).parts)
    ]


def _matching(pattern: str) -> list[Path]:
    found = glob.glob(str(Path(pattern).expanduser()), recursive=True)
    return [path for path in map(Path, sorted(found)) if path.is_file()]


def _debian(source: DebianPackage, workspace: Path, cache: Path) -> Corpus:
    try:
        deb = fetch_package(source.package, cache)
        root = workspace / source.name
        root.mkdir(parents=True)
        unpack_package(deb, root)
    except PackageUnavailable as error:
        reason = one_line(error)
        if not source.optional:
            raise UserError(
                f"source {source.name!r}: {reason}: mend that, or set `optional: true` to go without"
            ) from None
        log.warning("source %s is left out: %s", source.name, reason)
        return Corpus(source.package, [], whole_file, skipped=reason)
    found = {path for pattern in source.include for path in root.glob(pattern)}
    # Links are left out: their targets are listed themselves, or lie outside the package.
    files = [
        path for path in sorted(found) if path.is_file() and path.resolve() == root.resolve() / path.relative_to(root)
    ]
    return Corpus(deb.name, files, _reader(source))


def _text(path: Path) -> str | None:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except _UNPACKED_AS_DAMAGED:
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check its permissions") from None


def whole_file(path: Path) -> Documents:
    """One document: the file."""
    yield _text(path)


def fortunes(path: Path) -> Documents:
    """The parts of a fortune file between its lines of a single `%`, without terminal colours."""
    text = _text(path)
    if text is None:
        yield None
        return
    for part in _FORTUNE_BORDER.split(text):
        yield _TERMINAL_COLOUR.sub("", part).strip("\r\n")


def json_lines(path: Path, field: str) -> Documents:
    """The string under `field` of each line's object; blank lines are passed over."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as lines:
            for line in lines:
                if line.strip():
                    yield _field_of(line, field)
    except _UNPACKED_AS_DAMAGED:
        raise UserError(f"{path} ends early or is not gzip: restore the file") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check its permissions") from None


def _field_of(line: bytes, field: str) -> str | None:
    try:
        value = json.loads(line)[field]
        value.encode()  # JSON can spell lone surrogates, which are not text
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return None
    return value if isinstance(value, str) else None
