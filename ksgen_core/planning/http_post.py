"""One POST whose answer comes piece by piece, on the standard library, and which can be cut off at any moment.

A thread of its own owns the connection, because neither a look-up of a name nor a TLS handshake nor a slow server can
be waited for in small steps; the caller is handed something at least every `TICK` seconds. Proxies that the environment
names are not used: what is sent, a picture and perhaps a key, goes to the host in the URL and nowhere else.
Certificates are checked against the system's; `SSL_CERT_FILE` names others.
"""

from __future__ import annotations

import http.client
import queue
import socket
import ssl
import threading
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass

from ..errors import KSGenError
from .address import Address

TICK = 0.25
"""Seconds; a host that looks whether it was cancelled has to be heard at about this pace."""
READ_BYTES = 65_536


class Unreachable(KSGenError):
    """The connection could not be made, or broke: another try may go well."""


@dataclass(frozen=True)
class Head:
    """The answer's status, and the headers by their names in lower case."""

    status: int
    headers: Mapping[str, str]


def post(
    address: Address,
    headers: Mapping[str, str],
    body: bytes,
    *,
    connect_seconds: float,
    silence_seconds: float,
    deadline: float,
    most_bytes: int,
) -> Generator[Head | bytes | None, None, None]:
    """Yields None while it waits, a `Head`, then the answer's pieces; closing it closes the connection.

    `deadline` is a moment of `time.monotonic()`. A connection that is still being made when all is cut off ends by
    itself within `connect_seconds` for each of the host's addresses. Raises `Unreachable` where the connection cannot
    be made or breaks off, `KSGenError` for a silent, slow, long or unreadable answer and an untrusted certificate.
    """
    line, heard = _Line(), queue.SimpleQueue[Head | bytes | Exception]()
    request = (address, dict(headers), body, connect_seconds, silence_seconds, most_bytes)
    threading.Thread(target=_talk, args=(line, heard, *request), name="ksgen-post", daemon=True).start()
    try:
        while True:
            try:
                event = heard.get(timeout=TICK)
            except queue.Empty:
                event = None
            if time.monotonic() > deadline:
                raise KSGenError(
                    f"{address.shown} has not finished its answer in time. Ask for less, or allow more time."
                )
            if isinstance(event, Exception):
                raise _told(event, address, line.is_held, connect_seconds, silence_seconds)
            if event == b"":
                return
            yield event
    finally:
        line.cut()


class _Line:
    """The socket, which one thread uses and the other cuts."""

    def __init__(self) -> None:
        self._lock, self._socket, self._is_cut = threading.Lock(), None, False

    @property
    def is_held(self) -> bool:
        return self._socket is not None

    def hold(self, connected: socket.socket) -> bool:
        """Whether it is still wanted."""
        with self._lock:
            self._socket = connected
            return not self._is_cut

    def cut(self) -> None:
        with self._lock:
            self._is_cut = True
            if self._socket is not None:
                try:
                    # Wakes the thread that reads. TLS sockets replace the method by one that is not safe here.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
                except OSError:
                    pass  # closed already, by either side


def _talk(
    line: _Line,
    heard: queue.SimpleQueue[Head | bytes | Exception],
    address: Address,
    headers: dict[str, str],
    body: bytes,
    connect_seconds: float,
    silence_seconds: float,
    most_bytes: int,
) -> None:
    """Puts the head, the pieces and at the end b"" into `heard`, or the error.

    The size is bounded here: nobody may be taking out what comes in.
    """
    connection = response = None
    try:
        if address.scheme == "https":
            context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(
                address.host, address.port, timeout=connect_seconds, context=context
            )
        else:
            connection = http.client.HTTPConnection(address.host, address.port, timeout=connect_seconds)
        connection.connect()
        if not line.hold(connection.sock):
            return
        connection.sock.settimeout(silence_seconds)
        try:
            connection.request("POST", address.target, body, headers)
        except ConnectionError:
            pass  # it has answered before it has read all, e.g. that the picture is too large
        response = connection.getresponse()
        heard.put(Head(response.status, {name.lower(): v for name, v in response.getheaders()}))
        size = 0
        while piece := response.read1(READ_BYTES):
            size += len(piece)
            if size > most_bytes:
                raise KSGenError(f"{address.shown} answers with more than {most_bytes} bytes. Ask for fewer tokens.")
            heard.put(piece)
        if response.length:
            raise http.client.IncompleteRead(b"", response.length)
        heard.put(b"")
    except Exception as error:  # all of them are raised again, where the caller is
        heard.put(error)
    finally:
        # Where the answer's end is the connection's, the connection has left it to the response.
        for held in (response, connection):
            if held is not None:
                held.close()


def _told(error: Exception, address: Address, connected: bool, connect_seconds: float, silence_seconds: float):
    """The error to raise. What the server sent stays out of it: it may have sent back the key."""
    where = address.shown
    if isinstance(error, ssl.SSLCertVerificationError):
        return KSGenError(
            f"{where}: the certificate is not trusted ({error.verify_message}). "
            "Check the host's name, or name the certificate's authority in SSL_CERT_FILE."
        )
    if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return KSGenError(f"{where} does not speak TLS as it should ({error.reason}). Is it an http server?")
    if isinstance(error, TimeoutError) and connected:
        # Not tried again: it may still be at work on this request, and would then have two.
        return KSGenError(
            f"{where} has been silent for {silence_seconds:g} seconds. Allow more, or look at the server."
        )
    if isinstance(error, TimeoutError):
        return Unreachable(f"{where} does not answer within {connect_seconds:g} seconds. Is the server running there?")
    if isinstance(error, socket.gaierror):
        return Unreachable(f"{where}: no host of this name is found. Check the URL and the network.")
    if isinstance(error, ConnectionRefusedError):
        return Unreachable(f"{where}: the connection is refused. Is the server running, and at this port?")
    if isinstance(error, OSError | http.client.IncompleteRead):
        return Unreachable(
            f"{where}: the connection broke off ({type(error).__name__}). Look at the server, try again."
        )
    if isinstance(error, http.client.HTTPException):
        return KSGenError(f"{where} does not speak HTTP as it should ({type(error).__name__}). Check the URL's port.")
    return error
