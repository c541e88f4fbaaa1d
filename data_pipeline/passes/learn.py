"""The vocabulary: learned from a sample of the training documents, or taken from a file."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_pipeline.config import BuildConfig, ExistingTokenizer, TrainTokenizer
from data_pipeline.fates import Fate
from data_pipeline.manifest import TOKENIZER
from data_pipeline.passes.select import Selected, sample_of
from data_pipeline.passes.workshop import Unit, Workshop
from data_pipeline.rows import DOCUMENTS, Mask, load_rows
from data_pipeline.tokenizer import Tokenizer, train_tokenizer


@dataclass(frozen=True)
class LearnTask:
    """Rows of each part that teach the vocabulary."""

    settings: TrainTokenizer
    sample: list[tuple[Path, npt.NDArray[np.int64]]]


def obtain_tokenizer(config: BuildConfig, selected: Sequence[Selected], workshop: Workshop) -> Tokenizer:
    """The tokenizer of the build. Raises UserError if it cannot be read, or its vocabulary does not fit the text."""
    if isinstance(config.tokenizer, ExistingTokenizer):
        return Tokenizer.load(config.tokenizer.path, config.tokenizer.special)
    rows = sample_of(selected, config.validation, config.tokenizer.sample_bytes)
    sample = [(one.part.directory, numbers) for one, numbers in zip(selected, rows, strict=True) if len(numbers)]
    depends = [config.tokenizer, [[directory, numbers.tolist()] for directory, numbers in sample]]
    (place,) = workshop.run("tokenizer", learn, [Unit(depends, LearnTask(config.tokenizer, sample))])
    return Tokenizer.load(place / TOKENIZER)


def learn(task: LearnTask, directory: Path) -> None:
    """Unit: train a vocabulary on the sample, in the order of the documents."""
    texts = (text for part, rows in task.sample for text in _texts(part, rows))
    wanted = task.settings
    model = train_tokenizer(texts, wanted.vocabulary, wanted.model, wanted.coverage, wanted.reserved)
    (directory / TOKENIZER).write_bytes(model)


def _texts(part: Path, numbers: npt.NDArray[np.int64]) -> Iterator[str]:
    wanted = np.zeros(len(load_rows(part)), dtype=bool)
    wanted[numbers] = True
    for batch in kept_batches(part, wanted):
        yield from batch.column(0).to_pylist()


def kept_batches(part: Path, wanted: Mask) -> Iterator[pa.RecordBatch]:
    """The stored documents of a part whose rows are `wanted`, some megabytes at a time; column 0 is the text."""
    stored = wanted[load_rows(part)["fate"] == Fate.KEPT]
    begin = 0
    with pa.memory_map(str(part / DOCUMENTS)) as file:
        reader = pa.ipc.open_file(file)
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            chosen = stored[begin : begin + batch.num_rows]
            begin += batch.num_rows
            if chosen.any():
                yield batch if chosen.all() else batch.filter(pa.array(chosen))
