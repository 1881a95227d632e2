"""A peer to talk to: a little server on 127.0.0.1 that speaks OpenAI's chat completions, well or badly.

`Server(*answers)` gives the first answer to the first request and so on, the last one to all that follow. An answer is
a function of the handler.
"""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PLAN = json.dumps({"steps": [{"text": "fill the kettle"}, {"text": "pour the tea", "after": "The cup is full."}]})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        answer = self.server.answers[min(len(self.server.requests), len(self.server.answers) - 1)]
        self.asked: dict[str, Any] = {}
        if answer is not too_large:
            self.asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, dict(self.headers.items()), self.asked))
        self.server.came.set()
        try:
            answer(self)
        except OSError:
            pass  # the client has gone
        self.close_connection = True

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers.items()), {}))
        self.send_error(405)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def begin(self, status: int = 200, kind: str = "text/event-stream", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def write(self, data: bytes) -> None:
        self.wfile.write(data)
        self.wfile.flush()

    def wait_until_gone(self) -> None:
        """Blocks until the client closes the connection."""
        try:
            while self.connection.recv(1):
                pass
        except OSError:
            pass
        self.server.gone.set()


Answer = Callable[[Handler], None]


class Server(ThreadingHTTPServer):
    """`with Server(stream(PLAN)) as server`: `requests` are (path, headers, JSON) in the order of their coming."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, *answers: Answer, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.requests = answers, []
        self.came, self.gone = threading.Event(), threading.Event()
        self.scheme = "https" if tls else "http"
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.place}/v1"

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # e.g. a client that does not trust the certificate


def event(text: str = "", finish: str | None = None, **delta: Any) -> bytes:
    """One event of a stream, as servers write it."""
    choice = {"index": 0, "delta": {"content": text, **delta}, "finish_reason": finish}
    return b"data: " + json.dumps({"object": "chat.completion.chunk", "choices": [choice]}).encode() + b"\n\n"


def tokens(text: str, size: int = 7) -> list[bytes]:
    return [event(text[i : i + size]) for i in range(0, len(text), size)]


def stream(text: str = PLAN, finish: str | None = "stop", done: bool = True, first: bytes = b"") -> Answer:
    """The text in small events."""

    def answer(handler: Handler) -> None:
        handler.begin()
        handler.write(first)
        for data in tokens(text):
            handler.write(data)
        handler.write(event("", finish) if finish else b"")
        handler.write(b"data: [DONE]\n\n" if done else b"")

    return answer


def raw(*pieces: bytes, status: int = 200, kind: str = "text/event-stream", **headers: str) -> Answer:
    """These bytes."""

    def answer(handler: Handler) -> None:
        handler.begin(status, kind, **headers)
        for piece in pieces:
            handler.write(piece)

    return answer


def whole(text: str = PLAN, finish: str = "stop") -> Answer:
    """One JSON document, though a stream was asked for."""
    document = {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}]}
    return raw(json.dumps(document).encode(), kind="application/json; charset=utf-8")


def refuse(status: int, words: str = "no", **headers: str) -> Answer:
    return raw(json.dumps({"error": {"message": words}}).encode(), status=status, kind="application/json", **headers)


def echo_key(status: int = 401, form: str = "the key {} is wrong") -> Answer:
    """Repeats the key, as some servers do."""

    def answer(handler: Handler) -> None:
        key = handler.headers.get("Authorization", "").removeprefix("Bearer ")
        refuse(status, form.format(key))(handler)

    return answer


def redirect(location: str, status: int = 307) -> Answer:
    return raw(status=status, Location=location)


def break_off(text: str = PLAN) -> Answer:
    """Half of the stream, then no more of what the header has promised."""

    def answer(handler: Handler) -> None:
        handler.begin(Content_Length="100000")
        for data in tokens(text)[:3]:
            handler.write(data)
        handler.connection.shutdown(socket.SHUT_RDWR)

    return answer


def chunked(text: str = PLAN, whole: bool = True) -> Answer:
    """The stream in HTTP/1.1's chunks, cut off within one if it is not `whole`."""

    def answer(handler: Handler) -> None:
        handler.begin(Transfer_Encoding="chunked")
        for data in [*tokens(text), event("", "stop")] if whole else tokens(text)[:3]:
            handler.write(b"%x\r\n%b\r\n" % (len(data), data))
        handler.write(b"0\r\n\r\n" if whole else b"ff\r\ndata: ")

    return answer


def too_large(handler: Handler) -> None:
    """Answers before it has read the request, and reads no more of it."""
    refuse(413, "picture too large")(handler)
    handler.connection.shutdown(socket.SHUT_RDWR)


def hang_up(handler: Handler) -> None:
    """No answer at all."""
    handler.connection.shutdown(socket.SHUT_RDWR)


def stall(handler: Handler) -> None:
    """Silence until the client goes."""
    handler.wait_until_gone()


def stall_within(text: str = "{") -> Answer:
    """Some of the stream, then silence until the client goes."""

    def answer(handler: Handler) -> None:
        handler.begin()
        handler.write(event(text))
        handler.wait_until_gone()

    return answer


def schema_refused(handler: Handler) -> None:
    """As servers that do not know JSON schemas do."""
    if "response_format" in handler.asked:
        refuse(400, "response_format: unknown field")(handler)
    else:
        stream()(handler)
