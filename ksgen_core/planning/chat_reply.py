"""What an OpenAI-compatible server answers, read strictly: events of a stream, or one JSON document.

Sources: the chat completion object and its chunks in OpenAI's API reference; server-sent events in the HTML standard,
9.2, of which the fields besides `data` mean nothing here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ..errors import KSGenError

DONE = "[DONE]"
_NONE = object()


@dataclass(frozen=True)
class Piece:
    """A part of the reply, or all of it. `finish` says why the model ended, "" while it goes on."""

    text: str = ""
    finish: str = ""
    thinks: bool = False


class ServerFault(Exception):
    """The server reports an error inside an answer that began well: its `code` (0: none) and its words."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(words)
        self.code, self.words = code, words


class EventReader:
    """Bytes in any portions -> the data of server-sent events."""

    def __init__(self) -> None:
        self._bytes, self._data, self._first = bytearray(), [], True

    def feed(self, portion: bytes) -> list[str]:
        """The events that are complete with this portion. Raises `KSGenError` where they are not UTF-8."""
        self._bytes += portion
        if b"\n" not in portion and b"\r" not in portion:
            return []
        lines = self._bytes.splitlines(keepends=True)
        # A carriage return at the very end may be half a line end.
        self._bytes = bytearray() if lines[-1].endswith(b"\n") else lines.pop()
        return [event for line in lines for event in self._line(bytes(line))]

    def end(self) -> list[str]:
        """What remains when the stream ends; some servers leave out the blank line behind the last event."""
        rest, self._bytes = bytes(self._bytes), bytearray()
        return [event for line in (rest, b"") for event in self._line(line)]

    def _line(self, raw: bytes) -> list[str]:
        line = _text(raw.rstrip(b"\r\n"), "utf-8")
        if line is None:
            raise KSGenError("The server's reply is not UTF-8. Look at the server.")
        if self._first:
            line, self._first = line.removeprefix("\ufeff"), False
        if line.startswith("data:"):
            self._data.append(line[5:].removeprefix(" "))
        if line or not self._data:
            return []
        event, self._data = "\n".join(self._data), []
        return [event]


def read_chunk(data: str) -> Piece:
    """One event of a stream. Raises `KSGenError` where it is none, `ServerFault` where it is an error."""
    return _piece(data, "delta")


def read_whole(data: bytes) -> Piece:
    """An answer in one document. Raises as `read_chunk` does."""
    return _piece(data, "message")


def error_words(body: bytes) -> str:
    """What a refusal says: the message in OpenAI's shape or another server's, else the text as it is."""
    text = body.decode("utf-8", "replace")
    document = _json(text)
    return _fault(document)[1] if isinstance(document, dict) else text


def whole_characters(text: str, errors: str = "strict") -> str:
    """Halves of characters that came in two pieces are put together. Raises `KSGenError` where one is left alone."""
    whole = _text(text.encode("utf-16", "surrogatepass"), "utf-16", errors)
    if whole is None:
        raise KSGenError("The server's reply holds half a character. Ask again.")
    return whole


def _text(data: bytes, coding: str, errors: str = "strict") -> str | None:
    """The text, or None: Python's own error holds the data, and our errors are not to be chained to that."""
    try:
        return data.decode(coding, errors)
    except UnicodeDecodeError:
        return None


def _json(data: str | bytes) -> Any:
    """What the JSON holds, or `_NONE`, for the same reason."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return _NONE


def _piece(data: str | bytes, name: str) -> Piece:
    document = _json(data)
    if document is _NONE:
        raise KSGenError("The server's reply is no JSON. Is the URL that of an OpenAI-compatible API?")
    if not isinstance(document, dict):
        raise KSGenError("The server's reply is no JSON object. Is the URL that of an OpenAI-compatible API?")
    if document.get("error"):
        raise ServerFault(*_fault(document))
    choices = document.get("choices")
    if not isinstance(choices, list):
        raise KSGenError('The server\'s reply has no "choices". Is the URL that of an OpenAI-compatible API?')
    if not choices:  # e.g. the count of tokens used
        return Piece()
    choice = choices[0] if isinstance(choices[0], dict) else {}
    message = choice.get(name) or {}
    content = (message.get("content") or "") if isinstance(message, dict) else None
    finish = choice.get("finish_reason") or ""
    if not isinstance(content, str) or not isinstance(finish, str):
        raise KSGenError(f'The server\'s reply has no text in its "{name}". Choose a model that answers in text.')
    if message.get("refusal"):
        raise ServerFault(0, f"the model refuses: {message['refusal']}")
    return Piece(content, finish, bool(message.get("reasoning_content") or message.get("reasoning")))


def _fault(document: dict[str, Any]) -> tuple[int, str]:
    """Code and words of an error document: `{"error": {"message", "code"}}`, `{"error": words}`, `{"detail": ...}`."""
    error = document.get("error") or document
    if isinstance(error, str):
        return 0, error
    if not isinstance(error, dict):
        return 0, json.dumps(document, ensure_ascii=False)
    code = error.get("code")
    words = next((error[k] for k in ("message", "detail") if error.get(k)), document)
    return (
        code if isinstance(code, int) and not isinstance(code, bool) else 0,
        words if isinstance(words, str) else json.dumps(words, ensure_ascii=False),
    )
