"""Chats and preferences of a dataset, one by one, for training after the pretraining."""

from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline.chat_template import Span
from data_pipeline.dataset import Split, TokenDataset
from data_pipeline.sources.conversations import ROLES
from runtime.errors import UserError


class Example(NamedTuple):
    """A conversation: token ids with BOS and EOS, shape [tokens], and who speaks where."""

    tokens: npt.NDArray[np.int64]
    spans: list[Span]

    def said_by(self, role: str) -> npt.NDArray[np.bool_]:
        """Which tokens are what `role` says (turn ends included), shape [tokens]: the ones a loss is taken on."""
        mask = np.zeros(self.tokens.size, dtype=bool)
        for span in self.spans:
            if span.role == role:
                mask[span.begin : span.end] = True
        return mask


class ConversationDataset:
    """The conversations of one split, by number. Raises UserError if the dataset holds plain text."""

    def __init__(self, path: str | Path, split: Split = "train") -> None:
        self._dataset = TokenDataset(path, split)
        self.manifest = self._dataset.manifest
        if self.manifest.form == "text":
            raise UserError(f"{path} holds plain text: build it from sources of the kinds `chats` or `preferences`")
        self._first = [0, *accumulate(self._dataset.shards.table.documents.tolist())]
        self._tables: dict[int, tuple[npt.NDArray[np.int64], Any]] = {}

    def __len__(self) -> int:
        """Conversations; of preferences, two for each record."""
        return self._first[-1]

    def example(self, number: int) -> Example:
        """Conversation `number`. Raises UserError naming a damaged shard."""
        assert 0 <= number < len(self), f"conversation {number} of {len(self)}"
        shard = bisect_right(self._first, number) - 1
        place = number - self._first[shard]
        ends, spans = self._table(shard)
        begin = int(ends[place - 1]) if place else 0
        found = [Span(ROLES[span["role"]], span["begin"], span["end"]) for span in spans[place].as_py()]
        views = self._dataset.shards[shard].tokens(begin, int(ends[place]))
        return Example(np.concatenate(views).astype(np.int64), found)

    def pair(self, number: int) -> tuple[Example, Example]:
        """(chosen, rejected) of record `number` of preferences."""
        assert self.manifest.form == "preferences", "only preferences come in pairs"
        return self.example(2 * number), self.example(2 * number + 1)

    def _table(self, shard: int) -> tuple[npt.NDArray[np.int64], Any]:
        if shard not in self._tables:
            table = self._dataset.shards[shard].document_table()
            self._tables[shard] = table.column(0).to_numpy(), table.column(table.schema.names.index("spans"))
        return self._tables[shard]
