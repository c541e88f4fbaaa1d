"""Settings of a dataset build, and of the data a run reads."""

import math
from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from runtime.errors import UserError
from runtime.settings import Settings


class _Source(Settings):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    licence: str
    max_bytes: int | None = Field(default=None, gt=0)
    """Take documents in order until the next one would pass this many UTF-8 bytes."""


class PythonStdlib(_Source):
    """The `.py` files of the running interpreter's own standard library, one document each."""

    kind: Literal["python_stdlib"]


class TextFiles(_Source):
    """Files that match `glob` (relative to the working directory; `.gz` is unpacked)."""

    kind: Literal["text"]
    glob: str = Field(min_length=1)
    split: Literal["file", "fortune"] = "file"
    """A document per file, or per fortune: parts between lines of a single `%`, terminal colours removed."""


class JsonLines(_Source):
    """Files of one JSON object a line; the document is the string under `field`."""

    kind: Literal["jsonl"]
    glob: str = Field(min_length=1)
    field: str = "text"


class DebianPackage(_Source):
    """Files of a Debian package that match one of `include` (relative to the package's root)."""

    kind: Literal["debian"]
    package: str = Field(pattern=r"^[a-z0-9][a-z0-9+.-]+$")
    include: list[str] = Field(min_length=1)
    split: Literal["file", "fortune"] = "file"
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


SourceConfig = Annotated[PythonStdlib | TextFiles | JsonLines | DebianPackage, Field(discriminator="kind")]


class TrainTokenizer(Settings):
    """Learn a SentencePiece vocabulary from about `sample_bytes` of the training documents."""

    kind: Literal["train"]
    vocabulary: int = Field(ge=270, le=2**20)
    model: Literal["bpe", "unigram"] = "bpe"
    sample_bytes: int = Field(default=2**25, gt=0)


class ExistingTokenizer(Settings):
    """Use the SentencePiece model at `path` (a model file, or a dataset that holds one)."""

    kind: Literal["existing"]
    path: str = Field(min_length=1)


class BuildConfig(Settings):
    """What `lacuna data build` reads: sources, tokenizer and the form of the shards."""

    sources: list[SourceConfig] = Field(min_length=1, max_length=2**16)
    tokenizer: Annotated[TrainTokenizer | ExistingTokenizer, Field(discriminator="kind")]
    validation: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of the documents, chosen by their hash, that goes to the validation split."""
    shard_tokens: int = Field(default=2**26, gt=0)
    batch_tokens: int = Field(default=2**20, gt=0)
    compression: Literal["none", "lz4"] = "none"
    seed: int = 0

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [source.name for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"sources: the name {name!r} is used twice, give every source its own")
        return self


class DataConfig(Settings):
    """The data of a run: one dataset (`path`), or several with weights (`mixture`: path to weight)."""

    path: str | None = None
    mixture: dict[str, float] = {}  # noqa: RUF012 (pydantic copies defaults)

    def sources(self) -> list[tuple[str, float]]:
        """Dataset paths with weights. Raises UserError unless exactly one of `path`, `mixture` is set."""
        if (self.path is not None) == bool(self.mixture):
            state = "both" if self.mixture else "neither"
            raise UserError(
                f"data.path and data.mixture: {state} of them set, set exactly one "
                "(`lacuna data build` makes a dataset)"
            )
        if self.path is not None:
            return [(self.path, 1.0)]
        for path, weight in self.mixture.items():
            if not (math.isfinite(weight) and weight > 0):
                raise UserError(f"data.mixture: the weight of {path!r} is {weight}, give a positive finite number")
        return list(self.mixture.items())
