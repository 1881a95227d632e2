"""One conversation with a server: tries, redirects, refusals, and the reply as it comes.

- 429, 5xx and connections that cannot be made or break off are tried again, `retries` times, with doubled waits; a wait
  that the server asks for is kept up to `LONGEST_WAIT`, a longer one is an error. Silence is not tried again: the
  server may still be at work.
- A server that refuses the JSON Schema (400 or 422) is asked once more without it, and a warning says so.
- The answer's Content-Type says whether it is a stream or one JSON document; any other type is refused.
- Redirects are followed with the same POST, on the same host and port or from http to https there; others are refused.
- What a server says in a refusal is shown without the key, should it repeat it.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urljoin

from ..errors import KSGenError
from ..pipeline import Writing
from .address import PORTS, Address, read_address
from .chat_reply import DONE, EventReader, Piece, ServerFault, error_words, read_chunk, read_whole, whole_characters
from .endpoint_keys import Key, key_for, scrub
from .endpoint_settings import LONGEST_WAIT, EndpointSettings
from .http_post import TICK, Head, Unreachable, post
from .reply import LONGEST_REPLY

CONNECT_SECONDS = 10
MOST_BYTES = 4_000_000
"""Of an answer. A streamed token takes about 300 bytes, and some models think in thousands of tokens."""
MOST_REFUSAL_BYTES = 65_536
MOST_REDIRECTS = 3

log = logging.getLogger("ksgen")


class Refused(KSGenError):
    """The server answered with an error: its HTTP status, 0 where it names none, and the seconds it asks to wait."""

    def __init__(self, message: str, status: int, wait: float = 0) -> None:
        super().__init__(message)
        self.status, self.wait = status, wait


def ask(request: dict[str, Any], settings: EndpointSettings) -> Generator[Writing, None, tuple[Piece, Key | None]]:
    """Yields the reply so far at least every `TICK` seconds; returns the whole reply and the key that was sent for it.

    Raises `Refused` where the server answers with an error, `Unreachable` where there is no connection, `KSGenError`
    for an answer that cannot be used. None of them holds the key.
    """
    deadline = time.monotonic() + settings.total_seconds
    tries, wait = settings.retries, settings.backoff_seconds
    while True:
        try:
            return (yield from _try(request, settings, deadline))
        except Refused as refusal:
            if refusal.status in (400, 422) and "response_format" in request:
                log.warning("%s Asking once more without the JSON schema.", refusal)
                request = {name: value for name, value in request.items() if name != "response_format"}
                continue
            if refusal.status != 429 and not 500 <= refusal.status < 600:
                raise
            error, pause = refusal, max(wait, refusal.wait)
        except Unreachable as unreachable:
            error, pause = unreachable, wait
        if not tries or pause > LONGEST_WAIT or time.monotonic() + pause > deadline:
            raise error
        log.warning("%s Trying again in %.1f seconds; %d more tries are left.", error, pause, tries)
        yield from _pause(pause)
        tries, wait = tries - 1, min(wait * 2, LONGEST_WAIT)


def _pause(seconds: float) -> Iterator[Writing]:
    end = time.monotonic() + seconds
    while (rest := end - time.monotonic()) > 0:
        yield Writing("", 0, 0)
        time.sleep(min(rest, TICK))


def _try(
    request: dict[str, Any], settings: EndpointSettings, deadline: float
) -> Generator[Writing, None, tuple[Piece, Key | None]]:
    """One request with its redirects."""
    address, body = settings.completions, json.dumps(request).encode()
    for _ in range(MOST_REDIRECTS + 1):
        key = key_for(address, settings.keys_file)
        headers = {
            "Content-Type": "application/json",
            "Accept": "text/event-stream, application/json",
            "User-Agent": "ksgen",
        }
        if key:
            headers["Authorization"] = f"Bearer {key.value}"
        line = post(
            address,
            headers,
            body,
            connect_seconds=CONNECT_SECONDS,
            silence_seconds=settings.timeout_seconds,
            deadline=deadline,
            most_bytes=MOST_BYTES,
        )
        with closing(line):
            answer = _Answer(line, address, key, settings)
            head = yield from answer.head()
            if head.status in (301, 302, 307, 308):
                address = redirected(address, head.headers.get("location", ""), key)
            elif head.status == 200:
                return (yield from answer.read(head)), key
            else:
                raise (yield from answer.refusal(head))
    raise KSGenError(f"{settings.completions.shown} redirects more than {MOST_REDIRECTS} times. Give the final URL.")


@dataclass(frozen=True)
class _Answer:
    """What comes over `line` from the address, which was sent the key."""

    line: Iterator[Head | bytes | None]
    address: Address
    key: Key | None
    settings: EndpointSettings

    def head(self) -> Generator[Writing, None, Head]:
        for event in self.line:
            if isinstance(event, Head):
                return event
            yield Writing("", 0, 0)
        raise ValueError("an answer without a head")

    def read(self, head: Head) -> Generator[Writing, None, Piece]:
        """The reply of an answer that began well."""
        kind = head.headers.get("content-type", "").partition(";")[0].strip().lower()
        coding = head.headers.get("content-encoding", "identity")
        if kind not in ("text/event-stream", "application/json") or coding != "identity":
            got = scrub(f"{kind or 'no type'}, {coding}", self.key)
            raise KSGenError(
                f"{self.address.shown} answers with {got!r}, not with an event stream or JSON. "
                "Is the URL that of an OpenAI-compatible API? It often ends in /v1."
            )
        try:
            return (yield from self._document() if kind == "application/json" else self._stream())
        except ServerFault as error:
            fault = error
        raise self._refused(f"has failed with {fault.code}" if fault.code else "has failed", fault.words, fault.code)

    def _document(self) -> Generator[Writing, None, Piece]:
        body = bytearray()
        for event in self.line:
            body += event if isinstance(event, bytes) else b""
            yield Writing("", 0, 0)
        piece = read_whole(bytes(body))
        return Piece(whole_characters(piece.text), piece.finish, piece.thinks)

    def _stream(self) -> Generator[Writing, None, Piece]:
        total = self.settings.max_tokens
        text, number, thinks = "", 0, False
        for events in self._events():
            for data in events:
                piece = Piece(finish="stop") if data.strip() == DONE else read_chunk(data)
                text, number, thinks = text + piece.text, number + bool(piece.text), thinks or piece.thinks
                # Nothing of use comes behind the end, and what is longer the parser refuses.
                if piece.finish or len(text) > LONGEST_REPLY:
                    return Piece(whole_characters(text), piece.finish, thinks)
            shown = scrub(whole_characters(text, "replace"), self.key)
            yield Writing(shown, min(number, total), total) if shown else Writing("", 0, 0)
        raise Unreachable(f"{self.address.shown}: the reply broke off after {number} tokens. Look at the server.")

    def _events(self) -> Iterator[list[str]]:
        reader = EventReader()
        for event in self.line:
            yield reader.feed(event) if isinstance(event, bytes) else []
        yield reader.end()

    def refusal(self, head: Head) -> Generator[Writing, None, Refused]:
        """What to raise for an answer with an error's status: its words, and what may mend it."""
        body = bytearray()
        try:
            for event in self.line:
                body += event if isinstance(event, bytes) else b""
                if len(body) > MOST_REFUSAL_BYTES:
                    break
                yield Writing("", 0, 0)
        except Unreachable:
            pass  # the status stands, even where its reasons broke off
        words = error_words(bytes(body[:MOST_REFUSAL_BYTES]))
        wait = _seconds(head.headers.get("retry-after", ""))
        return self._refused(f"answers {head.status}", words, head.status, self._advice(head.status), wait)

    def _advice(self, status: int) -> str:
        if status in (401, 403):
            file = f" {self.settings.keys_file}" if self.settings.keys_file else ""
            if self.key is None:
                return f"No key was sent. Put one into the keys file{file} under {self.address.place!r}."
            return f"The key came from {self.key.source}. Look whether it is right."
        if status == 404:
            return "Check the model's name, and the URL: it often ends in /v1."
        if self.settings.picture and status in (400, 413, 415, 422, 500):
            return "If the model cannot see, turn the picture off."
        return ""

    def _refused(self, what: str, words: str, status: int, advice: str = "", wait: float = 0) -> Refused:
        # The key first: cut through the middle it would not be found.
        words = "".join(c if c.isprintable() else " " for c in scrub(words, self.key)).strip() or "without a word"
        words = words if len(words) <= 300 else words[:300] + "..."
        return Refused(f"{self.address.shown} {what}: {words} {advice}".strip(), status, wait)


def redirected(here: Address, location: str, key: Key | None) -> Address:
    """Where to ask instead. Raises `KSGenError` for another host or port and for https left for http."""
    there = None
    try:
        there = read_address(urljoin(f"{here.scheme}://{here.place}{here.target}", location))
    except (KSGenError, ValueError):
        pass  # urljoin's own error holds the URL, and ours is not to be chained to it
    if there is None:
        raise KSGenError(f"{here.shown} redirects to something that is no URL. Look at the server.")
    own = (there.scheme, there.host, there.port) == (here.scheme, here.host, here.port)
    ports = (PORTS["http"], PORTS["https"])
    safer = (here.scheme, there.scheme) == ("http", "https") and (here.port, there.port) == ports
    if not own and not (safer and there.host == here.host):
        place = scrub(f"{there.scheme}://{there.place}", key)
        raise KSGenError(f"{here.shown} redirects to {place}, which is not followed. If it is right, give that URL.")
    if scrub(there.target, key) != there.target:
        # The URL is shown in errors.
        raise KSGenError(f"{here.shown} redirects to a URL that holds the key, which is not followed.")
    return there


def _seconds(retry_after: str) -> float:
    """A Retry-After header -> seconds; 0 where it says nothing that can be read."""
    try:
        if retry_after.strip().isdecimal():
            return float(retry_after)
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return 0.0
