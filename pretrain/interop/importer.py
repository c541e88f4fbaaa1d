"""Makes the first checkpoint of a run from weights in a Hugging Face layout; Adam's moments begin at zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from data_pipeline.manifest import TOKENIZER
from data_pipeline.tokenizer import Tokenizer
from parallel.checkpoint.manifest import CheckpointManifest
from parallel.checkpoint.reshard import even_division, total_bytes, write_checkpoint
from parallel.checkpoint.shard_file import CHUNK_BYTES
from parallel.logical import Extent, Rectangle, row_slices
from pretrain.config import RunConfig
from pretrain.guards import Guard
from pretrain.interop.description import is_tied, layout_of, require_same_model
from pretrain.interop.names import hugging_face_name, model_tensors
from pretrain.interop.weight_files import WeightFiles
from runtime.errors import UserError, one_line
from runtime.files import read_json
from runtime.progress import ProgressBar

FILE_BYTES = 16 << 30
"""Most bytes of a checkpoint file that is written."""
_BY_TOKEN = ("embedding", "head")
_DERIVED = ".rotary_emb.inv_freq"  # old LLaMA files hold the rotary angles, which follow from the shape


@dataclass
class Import:
    """Weights that fit a recipe: where each logical tensor stands in the files.

    `new_rows`: rows of the embedding and head that the files do not have. `tied`: the head is the embedding's copy.
    `tokenizer_compared`: whether the directory held a tokenizer to compare with the data's.
    """

    directory: Path
    layout: str
    config: RunConfig
    shapes: dict[str, Extent]
    names: dict[str, str]
    files: WeightFiles
    new_rows: int
    tied: bool
    tokenizer_compared: bool
    _means: dict[str, torch.Tensor] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """For people and scripts."""
        return {
            "format": self.layout,
            "dtypes": sorted(self.files.dtypes),
            "tensors": len(self.shapes),
            "new_rows": self.new_rows,
            "tied_head_copied": self.tied,
            "tokenizer_compared": self.tokenizer_compared,
        }

    def notes(self) -> list[str]:
        """What was not simply copied, a line each."""
        notes = []
        if self.new_rows:
            notes.append(f"{self.new_rows} new rows of the embedding and the head begin as the mean of the others")
        if self.tied:
            notes.append("the head begins as a copy of the embedding; from then on the two are trained apart")
        if not self.tokenizer_compared:
            notes.append(f"the directory has no {TOKENIZER}: whether ids mean the same in the data was not compared")
        return notes

    def write(self, final: Path, identity: dict[str, Any], show_progress: bool = True) -> None:
        """Publish the checkpoint of step 0 as `final`, for the run of `identity`.

        Raises UserError if `final` exists or cannot be written, or a file cannot be read.
        """
        described = CheckpointManifest(
            chunk_bytes=CHUNK_BYTES,
            step=0,
            updates=0,
            samples=0,
            tokens=0,
            identity=identity,
            provenance={
                "layout": f"imported {self.layout} {' '.join(sorted(self.files.dtypes))}",
                "precision": self.config.train.precision,
            },
            loop=Guard(self.config.guard).state(),
            shapes=self.shapes,
            blocks={},
            files={},
        )
        whole = total_bytes(even_division(self.shapes, 1))
        division = even_division(self.shapes, -(-whole // FILE_BYTES))
        with ProgressBar("import", whole, show_progress, in_bytes=True) as bar:
            write_checkpoint(final, described, division, self._read_into, bar.advance)

    def _read_into(self, kind: str, name: str, box: Rectangle, view: torch.Tensor) -> None:
        if kind != "weight":
            view.zero_()
            return
        source = self.names[name]
        known = max(0, min(box.size[0], self.files.shapes[source][0] - box.start[0]))
        if known:
            self.files.read_into(source, Rectangle(box.start, (known, *box.size[1:])), view[:known])
        if known < box.size[0]:
            view[known:] = self._mean(name)[box.start[1] : box.start[1] + box.size[1]]

    def _mean(self, name: str) -> torch.Tensor:
        """Mean of the rows that the files have, [width]."""
        if name not in self._means:
            source = self.names[name]
            shape = self.files.shapes[source]
            total = torch.zeros(shape[1], dtype=torch.float64)
            for box in row_slices(shape):
                rows = torch.empty(box.size)
                self.files.read_into(source, box, rows)
                total += rows.double().sum(0)
            self._means[name] = (total / shape[0]).float()
        return self._means[name]


def prepare_import(directory: Path, config: RunConfig, tokenizer: Tokenizer, new_rows: str | None) -> Import:
    """Check that the weights in `directory` fit the recipe, whatever its objective; reads no values.

    `new_rows` is `mean` if the recipe may have more ids than the files, whose rows begin as the mean of the others.
    Raises UserError naming the first key, tensor or token that does not fit.
    """
    where = directory / "config.json"
    files = WeightFiles(directory)
    values = read_json(where)
    if not isinstance(values, dict):
        raise UserError(f"{where} holds no keys: restore the file")
    require_same_model(values, str(where), config.model)
    layout = layout_of(values, str(where))
    shapes = model_tensors(config.model)
    names = {name: hugging_face_name(name, layout) for name in shapes}
    tied = is_tied(values, layout) and names["head"] not in files.shapes
    if tied:
        names["head"] = names["embedding"]
    _require_names(directory, names, files.shapes)
    rows = _require_shapes(directory, shapes, names, files.shapes, new_rows)
    compared = _require_tokenizer(directory, tokenizer)
    return Import(directory, layout, config, shapes, names, files, rows, tied, compared)


def _require_names(directory: Path, names: Mapping[str, str], found: Mapping[str, Extent]) -> None:
    missing = [name for name in names.values() if name not in found]
    if missing:
        raise UserError(f"{directory} lacks {missing[0]}{_more(missing)}: the recipe's model.layers wants it")
    expected = set(names.values())
    unknown = [name for name in found if name not in expected and not name.endswith(_DERIVED)]
    if unknown:
        raise UserError(f"{directory} holds {unknown[0]}{_more(unknown)}, which the recipe's model does not have")


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more tensors" if len(names) > 1 else ""


def _require_shapes(
    directory: Path,
    shapes: Mapping[str, Extent],
    names: Mapping[str, str],
    found: Mapping[str, Extent],
    new_rows: str | None,
) -> int:
    """Compare all shapes; returns how many rows by token are new."""
    rows = 0
    for name, wanted in shapes.items():
        given = found[names[name]]
        longer = name in _BY_TOKEN and len(given) == 2 and given[1] == wanted[1] and 0 < given[0] < wanted[0]
        if longer and new_rows == "mean":
            rows = wanted[0] - given[0]
        elif given != wanted:
            mend = _mend(name, given, longer)
            raise UserError(f"{directory}: {names[name]} is {list(given)}, the recipe wants {list(wanted)}{mend}")
    return rows


def _mend(name: str, given: Extent, longer: bool) -> str:
    if name not in _BY_TOKEN:
        return ": change model.* of the recipe"
    more = ", or begin the new rows as the mean of the others with --new-rows mean" if longer else ""
    return f": set model.vocabulary={given[0]}{more}"


def _require_tokenizer(directory: Path, tokenizer: Tokenizer) -> bool:
    """Whether there was a SentencePiece model to compare; ids that both know must be the same pieces."""
    path = directory / TOKENIZER
    if not path.is_file():
        return False
    import sentencepiece

    theirs = sentencepiece.SentencePieceProcessor()
    try:
        theirs.LoadFromSerializedProto(path.read_bytes())
    except (RuntimeError, OSError) as error:
        raise UserError(f"{path} is not a SentencePiece model ({one_line(error)}): restore or remove it") from None
    for number in range(min(theirs.vocab_size(), tokenizer.vocabulary)):
        there, here = theirs.id_to_piece(number), tokenizer.piece(number)
        if there != here:
            raise UserError(
                f"{path}: id {number} is {there!r}, in the recipe's data {here!r}: "
                f"build the data with `tokenizer: {{kind: existing, path: {path}}}`"
            )
    return True
