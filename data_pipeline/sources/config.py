"""Settings of every kind of source."""

import re
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, field_validator

from runtime.settings import Settings

_SCHEME = re.compile(r"^([a-z][a-z0-9+.-]*)://")
SCHEMES = ("file", "s3", "gs")
Patterns = str | list[str]
_NO_CREDENTIALS = "credentials do not belong here, where others read them: set them in the environment"


class Storage(Settings):
    """How to reach an object store. Credentials come from the environment, never from here."""

    endpoint: str | None = None
    """Another server that speaks the store's protocol, as in `http://localhost:9000`."""
    region: str | None = None
    anonymous: bool = False

    @field_validator("endpoint")
    @classmethod
    def _no_secret(cls, endpoint: str | None) -> str | None:
        if endpoint is not None and "@" in endpoint:
            raise ValueError(_NO_CREDENTIALS)
        return endpoint


def _kept_fields(id_field: str | None, metadata_fields: list[str]) -> dict[str, str]:
    return dict.fromkeys(metadata_fields, "metadata_fields") | ({id_field: "id_field"} if id_field else {})


class _Source(Settings):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    licence: str
    max_bytes: int | None = Field(default=None, gt=0)
    """Take documents in order until the next one would pass this many UTF-8 bytes, duplicates counted."""

    @property
    def kept_fields(self) -> dict[str, str]:
        """Fields that are kept beside a document, and the key that names each."""
        return {}


class FileSource(_Source):
    """Files that match `glob`: patterns, files or directories, local or `s3://` and `gs://`."""

    glob: Patterns
    storage: Storage = Storage()
    damaged: Literal["stop", "skip"] = "stop"
    """Whether a file that breaks off or cannot be unpacked ends the build, or is left there and counted."""

    @field_validator("glob")
    @classmethod
    def _usable(cls, patterns: Patterns) -> Patterns:
        listed = [patterns] if isinstance(patterns, str) else patterns
        if not listed or not all(pattern.strip() for pattern in listed):
            raise ValueError("give at least one pattern, file or directory, none of them empty")
        for pattern in listed:
            scheme = _SCHEME.match(pattern)
            if scheme and scheme[1] not in SCHEMES:
                raise ValueError(f"{scheme[1]}:// is not known: give a local path, s3:// or gs://")
            if scheme and "@" in pattern.split("/")[2]:
                raise ValueError(_NO_CREDENTIALS)
        return patterns

    @property
    def patterns(self) -> list[str]:
        """The patterns as a list."""
        return [self.glob] if isinstance(self.glob, str) else self.glob


class PythonStdlib(_Source):
    """The `.py` files of the running interpreter's own standard library, one document each."""

    kind: Literal["python_stdlib"]


class _Plain(Settings):
    split: Literal["file", "line", "fortune"] = "file"
    """A document per file, per line, or per fortune: parts between lines of a single `%`, colours removed."""
    markup: Literal["none", "html", "rest", "man"] = "none"
    """Whether the files are marked up, and only their text is wanted."""


class TextFiles(FileSource, _Plain):
    """Files of plain or marked-up text (`.gz` and `.zst` are unpacked)."""

    kind: Literal["text"]


class _Records(FileSource):
    field: str = "text"
    """Where a record's text stands; `a.b` goes into an object."""
    id_field: str | None = None
    """Where a record's name stands; it is kept beside the document."""
    metadata_fields: list[str] = []  # noqa: RUF012 (pydantic copies defaults)
    """Fields that are kept beside the document, as JSON."""

    @property
    def kept_fields(self) -> dict[str, str]:
        """See `_Source`."""
        return _kept_fields(self.id_field, self.metadata_fields)


class JsonLines(_Records):
    """Files of one JSON object a line (`.gz` and `.zst` are unpacked)."""

    kind: Literal["jsonl"]


class Parquet(_Records):
    """Parquet files, read by row groups; fields are columns."""

    kind: Literal["parquet"]


class Arrow(_Records):
    """Arrow IPC files or streams, read by record batches; fields are columns."""

    kind: Literal["arrow"]


class Chats(FileSource):
    """Records (jsonl, parquet or Arrow by their ending) of chats: a list of messages, or a prompt and a response.

    A message is `{role, content}` or `{from, value}`; roles are system, user, assistant and tool.
    """

    kind: Literal["chats"]
    messages_field: str | None = "messages"
    """Null if records hold a prompt and a response."""
    prompt_field: str = "prompt"
    response_field: str = "response"
    id_field: str | None = None
    metadata_fields: list[str] = []  # noqa: RUF012

    @property
    def kept_fields(self) -> dict[str, str]:
        """See `_Source`."""
        return _kept_fields(self.id_field, self.metadata_fields)


class Preferences(FileSource):
    """Records of a prompt (text or messages) and two answers to it (text or messages), the better one first."""

    kind: Literal["preferences"]
    prompt_field: str = "prompt"
    chosen_field: str = "chosen"
    rejected_field: str = "rejected"
    id_field: str | None = None
    metadata_fields: list[str] = []  # noqa: RUF012

    @property
    def kept_fields(self) -> dict[str, str]:
        """See `_Source`."""
        return _kept_fields(self.id_field, self.metadata_fields)


class DebianPackage(_Source, _Plain):
    """Files of a Debian package that match one of `include` (relative to the package's root)."""

    kind: Literal["debian"]
    package: str = Field(pattern=r"^[a-z0-9][a-z0-9+.-]+$")
    include: list[str] = Field(min_length=1)
    optional: bool = False
    """Whether a package that cannot be fetched is left out (and recorded so) instead of being an error."""

    @field_validator("include")
    @classmethod
    def _inside(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            path = PurePosixPath(pattern)
            if not path.parts or path.is_absolute() or ".." in path.parts:
                raise ValueError(
                    f"{pattern!r} must be a pattern below the package's root, as in 'usr/share/doc/**/*.txt'"
                )
        return patterns


SourceConfig = Annotated[
    PythonStdlib | TextFiles | JsonLines | Parquet | Arrow | Chats | Preferences | DebianPackage,
    Field(discriminator="kind"),
]
