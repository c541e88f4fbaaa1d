"""Second pass: which documents stay, in which split, what is counted, and which of them teach the vocabulary."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.config import BuildConfig
from data_pipeline.dedup.exact import DROPPED, BucketTask, bucket_bits, find_duplicates, rows_within
from data_pipeline.dedup.near import PAIRS, ChainTask, PairTask, drop_later, find_pairs
from data_pipeline.dedup.signatures import choose_bands
from data_pipeline.fates import FILTERS, Fate
from data_pipeline.passes.workshop import Unit, Workshop, digest_of
from data_pipeline.rows import Mask, Part, held_out, load_rows, save_parts
from data_pipeline.stages.config import NearDuplicates
from runtime.files import digest_bytes, read_json, write_json

KEEP, COUNTS = "keep.npy", "counts.json"
_COUNTED = (Fate.UNDECODABLE, Fate.WITHOUT_TEXT, Fate.EMPTY, Fate.OVERSIZED, Fate.DAMAGED)


@dataclass(frozen=True)
class SelectTask:
    """A part, and the files that name the rows that repeat others, by what they repeat."""

    part: Part
    dropped: dict[str, list[Path]]
    validation: float


@dataclass(frozen=True)
class Selected:
    """A part with the directory that says what stays of it."""

    part: Part
    directory: Path

    @property
    def counts(self) -> dict[str, Any]:
        """What `select_part` counted."""
        values: dict[str, Any] = read_json(self.directory / COUNTS)
        return values

    def keep(self) -> Mask:
        """Which rows of the part stay; shape [rows of the part's file]."""
        mask: Mask = np.load(self.directory / KEEP)
        return mask


def select(config: BuildConfig, parts: list[Part], workshop: Workshop, known: Sequence[Part] = ()) -> list[Selected]:
    """Find duplicates over all parts, and decide on every document; those of `known` parts stay."""
    stages, listed, fresh = config.stages, workshop.directory / "parts.json", workshop.directory / "fresh.json"
    save_parts([*known, *parts], listed)
    save_parts(parts, fresh)
    exact = _exact([*known, *parts], listed, workshop) if stages.exact_duplicates else []
    near = _near(stages.near_duplicates, parts, fresh, exact, workshop) if stages.near_duplicates else []
    dropped = {"duplicates": exact, "near_duplicates": near}
    depends = digest_of([dropped, config.validation])  # once, not for each of many units
    units = [Unit([part, depends], SelectTask(part, dropped, config.validation)) for part in parts]
    places = workshop.run("select", select_part, units)
    return [Selected(part, place) for part, place in zip(parts, places, strict=True)]


def _exact(parts: list[Part], listed: Path, workshop: Workshop) -> list[Path]:
    bits = bucket_bits(sum(part.rows for part in parts))
    all_parts = digest_of(parts)
    units = [Unit([all_parts, bucket, bits], BucketTask(listed, bucket, bits)) for bucket in range(1 << bits)]
    return [place / DROPPED for place in workshop.run("duplicates", find_duplicates, units)]


def _near(
    settings: NearDuplicates, parts: list[Part], listed: Path, exact: list[Path], workshop: Workshop
) -> list[Path]:
    bits = bucket_bits(sum(part.rows for part in parts))
    bands, _ = choose_bands(settings.threshold, settings.permutations)
    everything = digest_of([parts, exact])
    units = [
        Unit(
            [everything, band, bucket, bits, settings.threshold],
            PairTask(listed, exact, band, bucket, bits, settings.threshold),
        )
        for band in range(bands)
        for bucket in range(1 << bits)
    ]
    pairs = [place / PAIRS for place in workshop.run("near duplicates", find_pairs, units)]
    task = ChainTask(pairs, parts[0].first_row if parts else 0, sum(part.rows for part in parts))
    return [place / DROPPED for place in workshop.run("chains", drop_later, [Unit(pairs, task)])]


def select_part(task: SelectTask, directory: Path) -> None:
    """Unit: the rows of a part that stay, and its counts."""
    part = task.part
    rows = load_rows(part.directory)
    keep: Mask = rows["fate"] == Fate.KEPT
    keep[part.rows :] = False
    counts: dict[str, Any] = {}
    for kind, files in task.dropped.items():
        numbers = rows_within(files, part)
        counts[kind] = int(np.count_nonzero(keep[numbers]))
        keep[numbers] = False
    fates = np.bincount(rows["fate"][: part.rows], minlength=256)
    counts |= {fate.key: int(fates[fate]) for fate in _COUNTED}
    counts["filtered"] = {fate.key: int(fates[fate]) for fate in FILTERS if fates[fate]}
    stays = rows[keep]
    held = held_out(stays, task.validation)
    languages, times = np.unique(stays["language"], return_counts=True)
    counts |= {
        "documents": len(stays),
        "bytes": int(stays["bytes"].sum()),
        "train_bytes": int(stays["bytes"][~held].sum()),
        "languages": {code.decode(): int(n) for code, n in zip(languages, times, strict=True) if code},
        **{key: int(stays[key].sum(dtype=np.int64)) for key in ("normalised", "lines_cut", "emails", "addresses")},
        "digest": digest_bytes(np.packbits(keep).tobytes()),
    }
    np.save(directory / KEEP, keep)
    write_json(directory / COUNTS, counts)


def add_up(counts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The sum of the counts of parts."""
    total: dict[str, Any] = {}
    for part in counts:
        for key, value in part.items():
            if isinstance(value, dict):
                total[key] = add_up([total.get(key, {}), value])
            elif isinstance(value, int):
                total[key] = total.get(key, 0) + value
    return total


def sample_of(selected: Sequence[Selected], validation: float, sample_bytes: int) -> list[npt.NDArray[np.int64]]:
    """For each part the rows that teach the vocabulary: training documents of the lowest hashes, up to `sample_bytes`.

    Bottom-k sampling: which documents are chosen depends on the set of texts alone, and no more is held than chosen.
    """
    reservoir = np.zeros(0, dtype=[("key", "<u8"), ("bytes", "<i8"), ("part", "<i8"), ("row", "<i8")])
    for number, one in enumerate(selected):
        rows = load_rows(one.part.directory)
        train = np.flatnonzero(one.keep() & ~held_out(rows, validation))
        fresh = np.empty(len(train), dtype=reservoir.dtype)
        fresh["key"], fresh["bytes"] = rows["sample"][train], rows["bytes"][train]
        fresh["part"], fresh["row"] = number, train
        reservoir = _lowest(np.concatenate([reservoir, fresh]), sample_bytes, beyond=1)
    reservoir = _lowest(reservoir, sample_bytes)
    return [np.sort(reservoir["row"][reservoir["part"] == number]) for number in range(len(selected))]


def _lowest(entries: npt.NDArray[Any], sample_bytes: int, beyond: int = 0) -> npt.NDArray[Any]:
    """Entries of the lowest keys whose bytes add up to `sample_bytes` at most, at least one, and `beyond` more.

    The first that does not fit must stay until the end: no entry of a higher key may be taken in its place.
    """
    entries = entries[np.argsort(entries["key"], kind="stable")]
    fits = int(np.searchsorted(np.cumsum(entries["bytes"]), sample_bytes, side="right"))
    return entries[: max(fits, 1) + beyond]
