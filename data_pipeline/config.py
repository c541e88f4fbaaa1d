"""Settings of a dataset build, and of the data a run reads."""

import math
from collections.abc import Callable, Iterable
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from data_pipeline.sources.config import SourceConfig, Storage
from data_pipeline.stages.config import StagesConfig
from runtime.errors import UserError, suggestion
from runtime.settings import Settings

Form = Literal["text", "chats", "preferences"]
Packing = Literal["stream", "document", "best_fit"]
SPECIAL_ROLES = ("mask", "bos", "eos", "pad", "header_start", "header_end", "turn_end")
"""What special ids stand for; the first four every tokenizer needs, the others chats need."""


def is_remote(path: str) -> bool:
    """Whether `path` names something in an object store."""
    return path.startswith(("s3://", "gs://"))


class TrainTokenizer(Settings):
    """Learn a SentencePiece vocabulary from at most about `sample_bytes` of the training documents."""

    kind: Literal["train"]
    vocabulary: int = Field(ge=270, le=2**20)
    model: Literal["bpe", "unigram", "char"] = "bpe"
    """`char`: a piece for each character; `vocabulary` is then the most there may be."""
    sample_bytes: int = Field(default=2**25, gt=0)
    coverage: float = Field(default=0.9995, gt=0.9, le=1)
    """Share of the sample's characters that get a piece of their own; the others are spelt in bytes."""
    reserved: int = Field(default=0, ge=0, le=4096)
    """Special ids kept free for later, beside those of mask, BOS, EOS, padding and chats."""


class ExistingTokenizer(Settings):
    """Use the tokenizer at `path`: SentencePiece, Hugging Face (`tokenizer.json`), or a dataset that holds one."""

    kind: Literal["existing"]
    path: str = Field(min_length=1)
    special: dict[str, str] = {}  # noqa: RUF012 (pydantic copies defaults)
    """Which control pieces, or special tokens of a `tokenizer.json`, serve as mask, bos, eos, pad, header_start,
    header_end, turn_end."""

    @field_validator("special")
    @classmethod
    def _roles(cls, special: dict[str, str]) -> dict[str, str]:
        for role in special:
            if role not in SPECIAL_ROLES:
                raise ValueError(f"{role!r} is not one of {', '.join(SPECIAL_ROLES)}")
        return special


TokenizerConfig = Annotated[TrainTokenizer | ExistingTokenizer, Field(discriminator="kind")]


class BuildConfig(Settings):
    """What `lacuna data build` reads: sources, tokenizer and the form of the shards."""

    sources: list[SourceConfig] = Field(min_length=1, max_length=2**16)
    tokenizer: TokenizerConfig
    stages: StagesConfig = StagesConfig()
    """What is done to documents before they are encoded."""
    validation: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of the documents, chosen by their hash, that goes to the validation split."""
    max_document_bytes: int = Field(default=2**26, gt=0)
    """Longer documents, and lines that are not read to their end, are left out and counted."""
    shard_tokens: int | None = Field(default=None, gt=0)
    """Tokens of a shard; as many as fill 256 MiB if not given."""
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

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        forms = {_form_of(source) for source in self.sources}
        if len(forms) > 1:
            raise ValueError(f"sources: {' and '.join(sorted(forms))} do not go into one dataset, build one of each")
        if forms != {"text"}:
            if isinstance(self.tokenizer, TrainTokenizer):
                raise ValueError("tokenizer: chats and preferences need an existing one, that of the text they go with")
            changing = {"normalise", "scrub", "c4", "quality", "repetition", "language"}
            for name in sorted(changing):
                if getattr(self.stages, name) is not None:
                    raise ValueError(f"stages.{name} is for text alone, leave it out")
        return self

    @property
    def form(self) -> Form:
        """What a document of the dataset is."""
        return _form_of(self.sources[0])


def _form_of(source: SourceConfig) -> Form:
    return source.kind if source.kind in ("chats", "preferences") else "text"


class RemoteConfig(Storage):
    """How data in an object store is read: its server, and a cache on local disk. Credentials are never here."""

    cache: str | None = None
    """Directory of the cache, shared by all processes of a machine; if not given, one of the user's in TMPDIR."""
    cache_bytes: int = Field(default=2**36, gt=0)
    """Most that the cache holds; what was not used for longest makes room."""
    patience: float = Field(default=120.0, ge=0)
    """Seconds for which a read that fails is tried again."""


class SegmentConfig(Settings):
    """Other weights or sources from an optimizer step (counted from 0) or a sample of the run on."""

    from_step: int | None = Field(default=None, gt=0)
    from_sample: int | None = Field(default=None, gt=0)
    mixture: dict[str, float] = Field(min_length=1)

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if (self.from_step is None) == (self.from_sample is None):
            raise ValueError("give exactly one of from_step and from_sample")
        return self

    def start(self, global_batch: int | None) -> int:
        """Its first sample. Raises UserError for a step where the samples of a step are not known."""
        if self.from_sample is not None:
            return self.from_sample
        assert self.from_step is not None
        if global_batch is None:
            raise UserError("data.segments: from_step needs a run with steps: use from_sample")
        return self.from_step * global_batch


class DataConfig(Settings):
    """The data of a run: one dataset (`path`), or several with weights (`mixture`: path to weight).

    Paths are directories, or `s3://bucket/folder` and `gs://bucket/folder`, which `remote` says how to read.
    `unique_tokens`: train on no more than so many tokens of `path`, whole windows from all over it, epoch by epoch.
    `segments`: later weights and sources. `max_epochs`: how often the windows of a source (or of each) are given at
    most; then the others of the segment go on.
    `packing`: how samples are cut. `stream`: every `train.sequence_length` tokens, across documents. `document`: one
    document a sample, filled up with padding that neither attends nor counts; a longer one gives several samples.
    `best_fit`: the same pieces of documents, as many together as fit.
    `document_mask`: no token attends to another document. `on_corrupt`: what a batch of tokens does whose digest does
    not fit: end the run, or take its samples out of the loss.
    """

    path: str | None = None
    mixture: dict[str, float] = {}  # noqa: RUF012 (pydantic copies defaults)
    unique_tokens: int | None = Field(default=None, gt=0)
    remote: RemoteConfig = RemoteConfig()
    segments: list[SegmentConfig] = []  # noqa: RUF012
    max_epochs: float | dict[str, float] | None = None
    packing: Packing = "stream"
    document_mask: bool = False
    on_corrupt: Literal["stop", "quarantine"] = "stop"

    def sources(self) -> list[tuple[str, float]]:
        """Dataset paths with weights, of the first segment. Raises UserError unless one of `path`, `mixture` is set."""
        if (self.path is not None) == bool(self.mixture):
            state = "both" if self.mixture else "neither"
            raise UserError(
                f"data.path and data.mixture: {state} of them set, set exactly one "
                "(`lacuna data build` makes a dataset)"
            )
        if self.unique_tokens is not None and self.packing != "stream":
            raise UserError("data.unique_tokens counts tokens of the stream: use data.packing=stream, or leave it out")
        if self.unique_tokens is not None and (self.path is None or self.segments):
            raise UserError("data.unique_tokens is for a single dataset: use data.path, or leave it out")
        if self.path is not None:
            return [(self.path, 1.0)]
        return _weighed("data.mixture", self.mixture)

    def segments_from(self, global_batch: int | None) -> list[tuple[int, list[tuple[str, float]]]]:
        """First sample, and paths with weights, of each segment. Raises UserError for what `sources` refuses, or
        segments that do not begin one after the other."""
        found = [(0, self.sources())]
        for number, segment in enumerate(self.segments):
            start = segment.start(global_batch)
            if start <= found[-1][0]:
                raise UserError(
                    f"data.segments.{number}: begins at sample {start}, not after {found[-1][0]}: put them in order"
                )
            found.append((start, _weighed(f"data.segments.{number}.mixture", segment.mixture)))
        return found

    def paths(self) -> list[str]:
        """Every dataset of the run, in the order of its first appearance."""
        weighed = [self.mixture, *(segment.mixture for segment in self.segments)]
        return list(dict.fromkeys([*([self.path] if self.path is not None else []), *(p for m in weighed for p in m)]))

    def with_paths(self, change: Callable[[str], str]) -> Self:
        """The same data with every path changed."""
        caps = self.max_epochs
        return self.model_copy(
            update={
                "path": None if self.path is None else change(self.path),
                "mixture": {change(path): weight for path, weight in self.mixture.items()},
                "segments": [
                    segment.model_copy(update={"mixture": {change(p): w for p, w in segment.mixture.items()}})
                    for segment in self.segments
                ],
                "max_epochs": {change(p): cap for p, cap in caps.items()} if isinstance(caps, dict) else caps,
            }
        )

    def cap_of(self, path: str) -> float | None:
        """How many epochs the source may give, if that is limited."""
        return self.max_epochs.get(path) if isinstance(self.max_epochs, dict) else self.max_epochs

    def check_caps(self, paths: Iterable[str]) -> None:
        """Raise UserError for a cap that is not positive, or of no source of the run."""
        caps = self.max_epochs if isinstance(self.max_epochs, dict) else {"": self.max_epochs}
        for path, cap in caps.items():
            if path and path not in paths:
                raise UserError(f"data.max_epochs: {path!r} is no source of the run{suggestion(path, paths)}")
            if cap is not None and cap <= 0:
                raise UserError(f"data.max_epochs: {cap} is no number of epochs: give one above 0")


def _weighed(key: str, mixture: dict[str, float]) -> list[tuple[str, float]]:
    for path, weight in mixture.items():
        if not (math.isfinite(weight) and weight > 0):
            raise UserError(f"{key}: the weight of {path!r} is {weight}, give a positive finite number")
    return list(mixture.items())
