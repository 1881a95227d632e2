"""The key of a server: where it comes from, where it may go, and how it stays out of everything else.

A key comes from the first of these that has one for the address:
1. the keys file, a JSON object `{"host" or "host:port": "key"}`; a host without a port is the one at the scheme's own
   port (443 or 80);
2. `OPENAI_API_KEY`, for https://api.openai.com alone;
3. `KSGEN_API_KEY`, for the host in `KSGEN_API_HOST` (written as in the keys file) alone; one without the other is none.

It goes over https, or to the machine itself. No error repeats a key or a line of the keys file.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import KSGenError
from .address import PORTS, Address, read_place

MOST_BYTES = 1_000_000
PIECE = 8
"""So many characters of a key in a row are taken for the key: servers echo it in part, too."""

_KEY = re.compile(r"[!-~]+")
_FORM = '{"host or host:port": "key"}'


@dataclass(frozen=True)
class Key:
    """A key and where it comes from, in words."""

    value: str = field(repr=False)
    source: str


def key_for(address: Address, keys_file: Path | None, environment: Mapping[str, str] = os.environ) -> Key | None:
    """The key for an address by the rules above, or None.

    Raises `KSGenError` for a broken keys file, for a key that is no line of visible ASCII, and for a key that would
    travel readable.
    """
    key = _from_file(address, keys_file) or _from_environment(address, environment)
    if key is None:
        return None
    if not _KEY.fullmatch(key.value):
        raise KSGenError(
            f"The key for {address.place} from {key.source} is empty or holds a blank or a character outside ASCII. "
            "Copy it again."
        )
    if not address.is_private:
        raise KSGenError(
            f"The key for {address.place} from {key.source} would travel over http, where others can read it. "
            "Use https, reach the server through a tunnel to 127.0.0.1, or take the key out."
        )
    return key


def scrub(text: str, key: Key | None) -> str:
    """The text with `[key]` in place of the key and of every `PIECE` characters of it in a row."""
    for start, end in reversed(_found(text, key, PIECE)):
        text = f"{text[:start]}[key]{text[end:]}"
    return text


def holds(text: str, key: Key | None) -> bool:
    """Whether a reply gives the key away, which is then worth nothing.

    Asked for twice as much as `scrub` asks for, since keys may contain words. Keys shorter than `PIECE` are words, such
    as "none", for servers that want to be sent some key.
    """
    return key is not None and len(key.value) >= PIECE and bool(_found(text, key, 2 * PIECE))


def _found(text: str, key: Key | None, size: int) -> list[tuple[int, int]]:
    """Start and end of what the text and the key have in common in `size` characters or more, or in the whole key."""
    value = key.value if key else ""
    size = min(size, len(value))
    pieces = {value[i : i + size] for i in range(len(value) - size + 1)} if size else set()
    found: list[tuple[int, int]] = []
    for start in sorted(start for piece in pieces for start in _places(text, piece)):
        first = found.pop()[0] if found and start <= found[-1][1] else start
        found.append((first, start + size))
    return found


def _places(text: str, piece: str) -> Iterator[int]:
    start = text.find(piece)
    while start >= 0:
        yield start
        start = text.find(piece, start + 1)


def _from_environment(address: Address, environment: Mapping[str, str]) -> Key | None:
    openai = (address.scheme, address.host, address.port) == ("https", "api.openai.com", PORTS["https"])
    if openai and (value := environment.get("OPENAI_API_KEY", "")):
        return Key(value, "OPENAI_API_KEY")
    value, place = environment.get("KSGEN_API_KEY", ""), environment.get("KSGEN_API_HOST", "")
    if not (value and place):
        return None
    if not read_place(place):
        raise KSGenError("KSGEN_API_HOST must be a host or host:port without http:// and path. Set it anew.")
    return Key(value, "KSGEN_API_KEY") if _is_at(place, address) else None


def _from_file(address: Address, path: Path | None) -> Key | None:
    if path is None:
        return None
    entries = _read(path)
    # The more exact name first: the port may be said where it need not be.
    for place in sorted(entries, key=lambda place: read_place(place)[1] is None):  # type: ignore[index]
        if _is_at(place, address):
            return Key(entries[place], f"the keys file {path}")
    return None


def _is_at(place: str, address: Address) -> bool:
    host, port = read_place(place) or (None, None)
    return (host, port or PORTS[address.scheme]) == (address.host, address.port)


def _read(path: Path) -> dict[str, str]:
    """The checked entries of a keys file; none where there is no file.

    What Python says of a broken file holds the file's text, so our error neither repeats nor chains it.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise KSGenError(f"The keys file {path} cannot be read ({error.strerror}). Mend it or take it away.") from None
    if len(data) > MOST_BYTES:
        raise KSGenError(f"The keys file {path} has {len(data)} bytes, which is no list of keys. It holds {_FORM}.")
    line, pairs = _parse(data)
    if line:
        raise KSGenError(f"The keys file {path} is no JSON in UTF-8, see line {line}. It holds {_FORM}.")
    if not isinstance(pairs, _Pairs):
        raise KSGenError(f"The keys file {path} must hold one JSON object, {_FORM}.")
    entries: dict[str, str] = {}
    for number, (place, value) in enumerate(pairs, 1):
        # The name is not repeated either: key and host may have been swapped.
        where = f"The keys file {path}, entry {number}"
        if not read_place(place):
            raise KSGenError(f"{where}: the name must be a host or host:port without http:// and path. Mend the entry.")
        if not isinstance(value, str):
            raise KSGenError(f"{where}: the key must be a text in quotes. Mend the entry.")
        if place in entries:
            raise KSGenError(f"{where}: this name is there twice. Take one out.")
        entries[place] = value
    return entries


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it stands in the file."""


def _parse(data: bytes) -> tuple[int, Any]:
    """(0, what the JSON holds), or (the line that is broken, None)."""
    try:
        return 0, json.loads(data.decode("utf-8-sig"), object_pairs_hook=_Pairs)
    except UnicodeDecodeError as error:
        return data[: error.start].count(b"\n") + 1, None
    except json.JSONDecodeError as error:
        return error.lineno, None
    except (ValueError, RecursionError):
        return 1, None
