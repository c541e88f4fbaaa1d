"""More sources for a published dataset, without touching a shard of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.build import PUBLISH
from data_pipeline.config import BuildConfig, ExistingTokenizer
from data_pipeline.manifest import DatasetManifest
from data_pipeline.passes.assemble import Base, Means, assemble, put
from data_pipeline.passes.cut import split_info
from data_pipeline.passes.encode import SPLITS
from data_pipeline.passes.workshop import Unit, Workshop, fresh_directory, work_beside
from data_pipeline.rows import DIGESTS, Part
from data_pipeline.shard_table import ShardInfo
from data_pipeline.shards import ShardTask
from data_pipeline.tokenizer import Tokenizer
from runtime.errors import UserError, one_line
from runtime.files import fsync_directory


@dataclass(frozen=True)
class KnownTask:
    """The shards whose documents are known already."""

    path: Path
    shards: list[ShardInfo]
    form: dict[str, Any]


def append_sources(path: Path, config: BuildConfig, means: Means | None = None) -> DatasetManifest:
    """Add the sources of `config` to the dataset at `path` as new shards after its own.

    Documents that stand in the dataset already are dropped. The new manifest replaces the old one at once; until
    then readers see the old dataset. A killed append is repeated like a killed build. Raises UserError.
    """
    means = means or Means()
    try:
        with work_beside(path, means.processes, means.show_progress) as workshop:
            manifest = DatasetManifest.load(path)
            _check(path, manifest, config)
            known = _known(path, manifest, workshop)
            publish = fresh_directory(workshop.directory / PUBLISH)
            made = assemble(config, workshop, publish, means, Base(manifest, known))
            for split in made.splits.values():
                for shard in split.shards:
                    for file in shard.files:
                        put(publish / file.name, path / file.name)
            fsync_directory(path)
            splits = {s: split_info([*manifest.splits[s].shards, *made.splits[s].shards]) for s in SPLITS}
            changes = {
                "sources": manifest.sources + made.sources,
                "splits": splits,
                "appended": [*manifest.appended, config],
            }
            manifest = DatasetManifest(**{**dict(manifest), **changes})
            manifest.save(path)
    except OSError as error:
        raise UserError(
            f"{path} could not be added to ({one_line(error)}): it is as it was, what is finished is kept; "
            "mend that and append again"
        ) from None
    return manifest


def _check(path: Path, manifest: DatasetManifest, config: BuildConfig) -> None:
    """Refuse what would not go with the shards that are there."""
    if not isinstance(config.tokenizer, ExistingTokenizer):
        raise UserError(f"tokenizer: an append takes the dataset's own: `tokenizer: {{kind: existing, path: {path}}}`")
    tokenizer = Tokenizer.load(config.tokenizer.path, config.tokenizer.special)
    if tokenizer.digest != manifest.tokenizer.file.digest:
        raise UserError(f"tokenizer.path: {config.tokenizer.path} is not the tokenizer of {path}: give {path} itself")
    if manifest.tokenizer.contradicts(tokenizer.special_ids):
        raise UserError(
            f"tokenizer.special: {path} has the ids {manifest.tokenizer.special_ids}, not {tokenizer.special_ids}: "
            f"leave it out and give {path} as tokenizer.path"
        )
    if config.form != manifest.form:
        raise UserError(f"sources: {path} holds {manifest.form}, these give {config.form}: build another dataset")
    for key, wanted in (
        ("batch_tokens", manifest.batch_tokens),
        ("compression", manifest.build.compression),
        ("seed", manifest.build.seed),
    ):
        found = getattr(config, key)
        if found != wanted:
            raise UserError(f"{key}: {path} has {wanted}, not {found}: set `{key}: {wanted}`")
    names = {source.name for source in manifest.sources}
    for source in config.sources:
        if source.name in names:
            raise UserError(f"sources: {path} has a source {source.name!r} already: give this one another name")


def _known(path: Path, manifest: DatasetManifest, workshop: Workshop) -> Part:
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    task = KnownTask(path, shards, manifest.form_of_shards())
    (place,) = workshop.run("known", gather_known, [Unit(manifest.digest, task)])
    return Part(place, -1, 0, sum(shard.documents for shard in shards))


def gather_known(task: KnownTask, directory: Path) -> None:
    """Unit: the digests of all documents of a dataset, in order. Raises UserError naming a damaged shard."""
    found = [np.zeros((0, 2), dtype=">u8")]
    for info in task.shards:
        table = ShardTask(task.path, info, task.form).reader().document_table()
        if "digest" not in table.schema.names:
            raise UserError(f"{task.path} was built by an older Lacuna, without digests of its documents: rebuild it")
        digests = table.column(table.schema.names.index("digest"))
        found.append(np.frombuffer(b"".join(digests.to_pylist()), dtype=">u8").reshape(-1, 2))
    high, low = np.concatenate(found).astype(np.uint64).T
    order = np.lexsort((low, high))
    np.save(directory / DIGESTS, np.stack([high[order], low[order], order.astype(np.uint64)]))
