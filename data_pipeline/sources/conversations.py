"""Chats and preferences: records as conversations, and conversations as the text that the passes carry."""

import json
from typing import Any, NamedTuple

from data_pipeline.fates import Fate
from data_pipeline.sources.config import Chats, Preferences
from data_pipeline.sources.document import SourceDocument
from data_pipeline.sources.json_lines import is_text, look_up, plain

ROLES = ("system", "user", "assistant", "tool")
"""Who speaks; stored as the place in this list."""
_OTHER_NAMES = {"human": "user", "gpt": "assistant", "model": "assistant", "function": "tool"}


class Message(NamedTuple):
    """What one of `ROLES` says."""

    role: str
    content: str


Conversation = list[Message]


def from_chat(record: Any, source: Chats) -> SourceDocument:
    """A record's chat; it has a fate if it is no chat, or no assistant says anything in it."""
    if isinstance(record, Fate):
        return SourceDocument(None, record)
    if source.messages_field is not None:
        messages = _messages(look_up(record, source.messages_field), "user")
    else:
        messages = _exchange(look_up(record, source.prompt_field), look_up(record, source.response_field))
    return _document([messages], record, source)


def from_preference(record: Any, source: Preferences) -> SourceDocument:
    """A record's chosen and rejected conversation, each with the prompt."""
    if isinstance(record, Fate):
        return SourceDocument(None, record)
    prompt, chosen, rejected = (
        look_up(record, field) for field in (source.prompt_field, source.chosen_field, source.rejected_field)
    )
    return _document([_exchange(prompt, chosen), _exchange(prompt, rejected)], record, source)


def to_text(conversations: list[Conversation]) -> str:
    """Conversations as JSON without blanks: equal ones give equal text."""
    return json.dumps(conversations, ensure_ascii=False, separators=(",", ":"))


def from_text(text: str) -> list[Conversation]:
    """What `to_text` wrote."""
    return [[Message(*message) for message in conversation] for conversation in json.loads(text)]


def _document(found: list[Conversation | None], record: Any, source: Chats | Preferences) -> SourceDocument:
    name = None if source.id_field is None else plain(look_up(record, source.id_field))
    kept = {key: value for key in source.metadata_fields if (value := look_up(record, key)) is not None}
    metadata = json.dumps(kept, sort_keys=True, default=str) if kept else None
    conversations = [one for one in found if one is not None]
    if len(conversations) < len(found):
        return SourceDocument(None, Fate.WITHOUT_TEXT, name, metadata)
    text = to_text(conversations)
    if not is_text(text):
        return SourceDocument(None, Fate.UNDECODABLE, name, metadata)
    answered = all(any(m.role == "assistant" and m.content.strip() for m in one) for one in conversations)
    differ = len(conversations) == 1 or conversations[0] != conversations[1]
    return SourceDocument(text, Fate.KEPT if answered and differ else Fate.EMPTY, name, metadata)


def _exchange(prompt: Any, answer: Any) -> Conversation | None:
    before, after = _messages(prompt, "user"), _messages(answer, "assistant")
    if before is None or after is None:
        return None
    # chosen and rejected often repeat the prompt's messages
    return after if isinstance(answer, list) and after[: len(before)] == before else before + after


def _messages(value: Any, role: str) -> Conversation | None:
    """Messages of a list, or a text as one message of `role`; None for anything else."""
    if isinstance(value, str):
        return [Message(role, value)]
    if not isinstance(value, list):
        return None
    found = [_message(one) for one in value]
    messages = [one for one in found if one is not None]
    return messages if messages and len(messages) == len(found) else None


def _message(value: Any) -> Message | None:
    if not isinstance(value, dict):
        return None
    role = value.get("role", value.get("from"))
    content = value.get("content", value.get("value"))
    if not isinstance(role, str) or not isinstance(content, str):
        return None
    role = _OTHER_NAMES.get(role, role)
    return Message(role, content) if role in ROLES else None
