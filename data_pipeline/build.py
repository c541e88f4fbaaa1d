"""Sources to a published dataset."""

import os
from pathlib import Path

from data_pipeline.config import BuildConfig
from data_pipeline.files import describe_file
from data_pipeline.manifest import MANIFEST, DatasetManifest
from data_pipeline.passes.assemble import Means, assemble
from data_pipeline.passes.workshop import fresh_directory, work_beside, work_directory
from runtime.errors import UserError, one_line
from runtime.files import half_removed, mend_of, publish_directory

__all__ = ["Means", "build_dataset"]
PUBLISH = "publish"


def build_dataset(
    config: BuildConfig, out: Path, cache: Path | None = None, show_progress: bool = True, means: Means | None = None
) -> DatasetManifest:
    """Build a dataset and publish it as directory `out`, which appears whole or not at all.

    The same input gives the same bytes, however many processes work on it. What a killed build finished is taken
    up by the next. Raises UserError if `out` exists, a source has no text, or the vocabulary does not fit the text.
    """
    means = means or Means(cache=cache, show_progress=show_progress)
    if os.path.lexists(out):
        if published := _killed_at_its_end(config, out):
            return published
        raise UserError(f"{out} exists already: move it away or choose another --out")
    try:
        with work_beside(out, means.processes, means.show_progress) as workshop:
            publish = fresh_directory(workshop.directory / PUBLISH)
            made = assemble(config, workshop, publish, means)
            manifest = DatasetManifest(
                dtype=made.form.dtype,
                batch_tokens=made.form.batch_tokens,
                tokenizer=made.tokenizer.info(describe_file(publish / made.tokenizer.file_name)),
                sources=made.sources,
                splits=made.splits,
                form=config.form,
                build=config,
            )
            manifest.save(publish)
            publish_directory(publish, out)
    except OSError as error:
        raise UserError(
            f"{out} could not be built ({one_line(error)}): nothing was published, what is finished is kept; "
            "mend that and build again"
        ) from None
    return manifest


def _killed_at_its_end(config: BuildConfig, out: Path) -> DatasetManifest | None:
    """What a build of `config` has published, if only the removal of its work was missing; that is done here."""
    work = work_directory(out)
    if not (work.is_dir() or half_removed(work)) or not (out / MANIFEST).is_file():
        return None
    manifest = DatasetManifest.load(out)
    if manifest.build != config or manifest.appended:  # then the work is an append's
        return None
    try:
        with work_beside(out, 1, show_progress=False):
            return manifest
    except OSError as error:
        raise UserError(
            f"{work} cannot be removed ({one_line(error)}): {mend_of(error)}; {out} itself is built and whole"
        ) from None
