"""Sources to a published dataset: collect, deduplicate, learn the vocabulary, encode, write, rename."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_pipeline.collect import Collection, collect
from data_pipeline.config import BuildConfig, ExistingTokenizer, TrainTokenizer
from data_pipeline.debian import default_cache
from data_pipeline.dedup import fraction_of
from data_pipeline.manifest import TOKENIZER, DatasetManifest, SplitInfo
from data_pipeline.shards import ShardForm, ShardWriter, describe_file, token_dtype
from data_pipeline.tokenizer import Tokenizer, train_tokenizer
from runtime.errors import UserError, one_line
from runtime.files import publish_directory, remove_tree, write_atomic
from runtime.progress import ProgressBar

_WORKSPACE = "workspace"


def build_dataset(
    config: BuildConfig, out: Path, cache: Path | None = None, show_progress: bool = True
) -> DatasetManifest:
    """Build a dataset and publish it as directory `out`, which appears whole or not at all.

    The same input gives the same bytes, after a killed build too. Debian packages are kept in `cache`.
    Raises UserError if `out` exists, a source has no text, or the vocabulary does not fit the text.
    """
    if out.exists():
        raise UserError(f"{out} exists already: move it away or choose another --out")
    try:
        with _staging_beside(out) as staging:
            manifest = _build(config, staging, cache or default_cache(), show_progress)
            publish_directory(staging, out)
    except OSError as error:
        reason = f"{out} could not be built ({one_line(error)})"
        raise UserError(f"{reason}: nothing was published, mend that and build again") from None
    return manifest


def _build(config: BuildConfig, staging: Path, cache: Path, show_progress: bool) -> DatasetManifest:
    workspace = staging / _WORKSPACE
    workspace.mkdir()
    settings = config.tokenizer
    given = Tokenizer.load(settings.path) if isinstance(settings, ExistingTokenizer) else None
    collection = collect(config, workspace, cache, show_progress)
    tokenizer = given or _train(config, collection, show_progress)
    write_atomic(staging / TOKENIZER, tokenizer.model)
    manifest = _encode(config, collection, tokenizer, staging, show_progress)
    manifest.save(staging)
    shutil.rmtree(workspace)
    return manifest


@contextmanager
def _staging_beside(out: Path) -> Iterator[Path]:
    """An empty directory that only this process writes; what a killed build left in it is removed."""
    staging = out.with_name(f".{out.name}.building")
    staging.mkdir(parents=True, exist_ok=True)
    lock = os.open(staging, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out} is being built by another process: wait for it") from None
        for stale in staging.iterdir():
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
        try:
            yield staging
        finally:
            remove_tree(staging)
    finally:
        os.close(lock)


def _train(config: BuildConfig, collection: Collection, show_progress: bool) -> Tokenizer:
    settings = config.tokenizer
    assert isinstance(settings, TrainTokenizer)
    share = settings.sample_bytes / collection.train_bytes

    def sample() -> Iterator[str]:
        for document in collection.documents():
            bar.advance(1, f"to learn {settings.vocabulary} pieces")
            if document.split == "train" and fraction_of(document.text.encode(), config.seed + 1) < share:
                yield document.text

    with ProgressBar("tokenizer", collection.count, show_progress) as bar:
        return Tokenizer(train_tokenizer(sample(), settings.vocabulary, settings.model))


def _encode(
    config: BuildConfig, collection: Collection, tokenizer: Tokenizer, staging: Path, show_progress: bool
) -> DatasetManifest:
    """Write the shards of both splits, and say what was written."""
    form = ShardForm(token_dtype(tokenizer.vocabulary), config.batch_tokens, config.shard_tokens, config.compression)
    tokens = [0] * len(config.sources)
    with (
        ProgressBar("encode", collection.count, show_progress) as bar,
        ShardWriter(staging, "train", form) as train,
        ShardWriter(staging, "validation", form) as validation,
    ):
        for chunk in collection.chunks():
            texts = [document.text for document in chunk]
            encoded = tokenizer.encode_batch(texts, threads=len(os.sched_getaffinity(0)))
            for document, ids in zip(chunk, encoded, strict=True):
                ids.append(tokenizer.eos_id)
                (train if document.split == "train" else validation).add(ids, document.source)
                tokens[document.source] += len(ids)
            bar.advance(len(chunk), f"{sum(tokens):,} tokens")
    sources = zip(collection.sources, tokens, strict=True)
    return DatasetManifest(
        dtype=form.dtype,
        batch_tokens=form.batch_tokens,
        tokenizer=tokenizer.info(describe_file(staging / TOKENIZER)),
        sources=[info.model_copy(update={"tokens": count}) for info, count in sources],
        splits={"train": _split(train), "validation": _split(validation)},
        build=config,
    )


def _split(writer: ShardWriter) -> SplitInfo:
    return SplitInfo(
        tokens=sum(shard.tokens for shard in writer.shards),
        documents=sum(shard.documents for shard in writer.shards),
        shards=writer.shards,
    )
