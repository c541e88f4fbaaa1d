"""Conversations as token ids, in the template that LLaDA and Llama 3 use, with the place of what each role says.

`<s> <|start_header_id|>ROLE<|end_header_id|>\\n\\nCONTENT<|eot_id|> … </s>`; special ids stand in no text, so no
content can forge a turn.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline.sources.conversations import ROLES, Conversation
from data_pipeline.tokenizer import Tokenizer


class Span(NamedTuple):
    """Tokens [begin, end) of a document are what `role` says, the id of the turn's end included."""

    role: str
    begin: int
    end: int


class ChatTemplate:
    """Encodes conversations. Raises UserError if the tokenizer has no special ids for chats."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        header_start, header_end, turn_end = tokenizer.chat_ids()
        gap = tokenizer.encode("\n\n")
        self._tokenizer = tokenizer
        self._headers = {role: [header_start, *tokenizer.encode(role), header_end, *gap] for role in ROLES}
        self._turn_end = turn_end

    def encode(self, conversations: Sequence[Conversation]) -> list[tuple[npt.NDArray[np.int64], list[Span]]]:
        """Ids of each conversation, BOS and EOS included, and its spans."""
        contents = [message.content for conversation in conversations for message in conversation]
        encoded = iter(self._tokenizer.encode_arrays(contents))
        found = []
        for conversation in conversations:
            ids, spans = [self._tokenizer.bos_id], []
            for message in conversation:
                ids += self._headers[message.role]
                begin = len(ids)
                ids += next(encoded).tolist()
                ids.append(self._turn_end)
                spans.append(Span(message.role, begin, len(ids)))
            ids.append(self._tokenizer.eos_id)
            found.append((np.array(ids, dtype=np.int64), spans))
        return found
