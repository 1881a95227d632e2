"""Where a server is: URLs read strictly, and shown without what they may hide.

A URL may carry secrets: a password before the host, a token in the query. The first is refused, the second is sent but
never shown, and no error here repeats what it was given.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from ..errors import KSGenError

PORTS = {"http": 80, "https": 443}

_PRINTABLE = re.compile(r"[!-~]+")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_PLACE = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:]+)(?::(\d{1,5}))?")


@dataclass(frozen=True)
class Address:
    """`target`, a path that may have a query, on `host`:`port` over `scheme`."""

    scheme: str
    host: str
    port: int
    target: str = field(repr=False)

    @property
    def place(self) -> str:
        """`host` or `host:port`, the latter where the port is not the scheme's own; an IPv6 host in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def shown(self) -> str:
        """The URL without its query: fit for errors and logs."""
        return f"{self.scheme}://{self.place}{self.target.partition('?')[0]}"

    @property
    def is_private(self) -> bool:
        """Whether what is sent cannot be read on the way: https, or a machine that talks to itself."""
        if self.scheme == "https" or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def read_address(url: str) -> Address:
    """The address of an http or https URL. Raises `KSGenError`, which does not repeat the URL, for any other."""
    if not isinstance(url, str) or not _PRINTABLE.fullmatch(url):
        raise KSGenError(
            "The server's URL is empty or holds a blank, a control character or a letter outside ASCII. "
            "Give one like http://127.0.0.1:8000/v1."
        )
    scheme = url.partition(":")[0].lower()
    if scheme not in PORTS or not url[len(scheme) :].startswith("://"):
        raise KSGenError(
            "The server's URL must begin with http:// or https://. Give one like http://127.0.0.1:8000/v1."
        )
    rest, _, fragment = url[len(scheme) + 3 :].partition("#")
    if fragment:
        raise KSGenError("The server's URL has a part behind '#', which no server is sent. Take it out.")
    place = re.split("[/?]", rest, maxsplit=1)[0]
    if "@" in place:
        raise KSGenError(
            "The server's URL names a user or a password before '@'. Take it out, "
            "and put the key into the keys file or the environment."
        )
    host, port = read_place(place) or (None, None)
    if host is None:
        raise KSGenError("The server's URL has no proper host and port. Give one like http://127.0.0.1:8000/v1.")
    parts = urlsplit("//host" + rest[len(place) :])
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Address(scheme, host, PORTS[scheme] if port is None else port, target)


def read_place(place: str) -> tuple[str, int | None] | None:
    """`host` or `host:port` -> the host in lower case and the port or None; None where it is neither of the two."""
    found = _PLACE.fullmatch(place.lower())
    if not found:
        return None
    host, port = found[1], int(found[2]) if found[2] else None
    if port is not None and not 1 <= port <= 65535:
        return None
    if host.startswith("["):
        try:
            return str(ipaddress.IPv6Address(host[1:-1])), port
        except ValueError:
            return None
    return (host, port) if _HOST.fullmatch(host) else None
