"""Documents that hold text of evaluation sets, found by shared n-grams of words (Brown et al. 2020, appendix C)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.fates import Fate
from data_pipeline.sources.config import SourceConfig
from data_pipeline.sources.pieces import Piece, damage, read_piece
from data_pipeline.sources.streams import Damaged
from data_pipeline.stages.config import Decontaminate
from data_pipeline.stages.n_grams import Hashes, hash_words, n_grams, plain_words
from runtime.logs import log

REFERENCE = "n_grams.npy"


@dataclass(frozen=True)
class ReferenceTask:
    """The evaluation sets."""

    pieces: list[tuple[SourceConfig, Piece]]
    n: int
    max_document_bytes: int


def gather_reference(task: ReferenceTask, directory: Path) -> None:
    """Unit: all n-grams of the evaluation sets, sorted. Raises UserError naming a file that cannot be read."""
    found: list[Hashes] = []
    short = 0
    for source, piece in task.pieces:
        try:
            for document in read_piece(source, piece, task.max_document_bytes):
                grams = n_grams(hash_words(plain_words(document.text or "")), task.n)
                short += not len(grams)
                found.append(grams)
        except Damaged as error:
            raise damage(source, piece.file, error) from None
    if short:
        log.warning("decontaminate: %d evaluation texts have less than %d words and are not looked for", short, task.n)
    np.save(directory / REFERENCE, np.unique(np.concatenate(found) if found else np.zeros(0, dtype=np.uint64)))


class DecontaminateStage:
    """Looks a document's n-grams up in a sorted file of those of the evaluation sets."""

    def __init__(self, settings: Decontaminate, reference: Path) -> None:
        self._settings = settings
        self._reference: Hashes = np.load(reference, mmap_mode="r")

    def judge(self, text: str) -> Fate:
        """CONTAMINATED if enough different n-grams of the document stand in an evaluation set."""
        grams = np.unique(n_grams(hash_words(plain_words(text)), self._settings.n))
        if not len(grams) or not len(self._reference):
            return Fate.KEPT
        places = np.minimum(np.searchsorted(self._reference, grams), len(self._reference) - 1)
        matches = int(np.count_nonzero(self._reference[places] == grams))
        return Fate.CONTAMINATED if matches >= self._settings.min_matches else Fate.KEPT
