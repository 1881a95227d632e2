"""Which server writes the plan, and how: checked before anything is sent."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl

from ..errors import KSGenError
from ..types import MAX_STEPS
from .address import Address, read_address
from .wording import FEWEST, MOST

_SECRET = re.compile("key|token|secret|password|auth|sig", re.IGNORECASE)
LONGEST_WAIT = 60
"""Seconds between two tries."""


@dataclass(frozen=True)
class EndpointSettings:
    """Which server writes the plan, and how.

    `url` is the API's base, to which `/chat/completions` is added: http://127.0.0.1:8000/v1. `picture` says whether the
    model is shown the initial picture, and `done` are texts of steps already done. `timeout_seconds` is the longest
    silence that is borne, `total_seconds` the longest time for everything. A `temperature` or `seed` of None is left to
    the server. `keys_file` is the file in which keys are looked for first.
    """

    url: str = field(repr=False)
    model: str
    fewest: int = FEWEST
    most: int = MOST
    done: tuple[str, ...] = ()
    picture: bool = True
    temperature: float | None = 0.0
    seed: int | None = None
    max_tokens: int = 2048
    timeout_seconds: float = 120.0
    total_seconds: float = 900.0
    retries: int = 2
    backoff_seconds: float = 1.0
    keys_file: Path | None = None

    def __post_init__(self) -> None:
        path, _, query = read_address(self.url).target.partition("?")
        if any(_SECRET.search(name) for name, _ in parse_qsl(query, keep_blank_values=True)):
            raise KSGenError(
                "The server's URL seems to hold a key. It would be saved with every graph: take it out, and put it "
                "into the keys file or the environment."
            )
        if path.rstrip("/").endswith("/chat/completions"):
            raise KSGenError("The server's URL is wanted without /chat/completions, e.g. http://127.0.0.1:8000/v1.")
        if not isinstance(self.model, str) or not self.model.strip() or not self.model.isprintable():
            raise KSGenError(f"Name the model as the server lists it, got {self.model!r}.")
        for name, kinds, low, high in (
            ("fewest", (int,), 1, MAX_STEPS),
            ("most", (int,), 1, MAX_STEPS),
            ("temperature", (int, float), 0, 2),
            ("seed", (int,), 0, 2**31 - 1),
            ("max_tokens", (int,), 16, 100_000),
            ("timeout_seconds", (int, float), 0.1, 3600),
            ("total_seconds", (int, float), 0.1, 86_400),
            ("retries", (int,), 0, 10),
            ("backoff_seconds", (int, float), 0, LONGEST_WAIT),
        ):
            value = getattr(self, name)
            left_open = name in ("temperature", "seed") and getattr(self, name) is None
            # NaN is in no range, and True is a number to Python alone.
            if not left_open and (type(value) not in kinds or not low <= value <= high):
                raise KSGenError(f"{name} must be a number from {low} to {high}, got {value!r}.")
        if self.fewest > self.most:
            raise KSGenError(f"fewest must not be more than most, got {self.fewest} and {self.most}.")
        if not isinstance(self.done, tuple) or not all(isinstance(text, str) and text.strip() for text in self.done):
            raise KSGenError(f"The steps already done must be a tuple of texts, got {self.done!r}.")

    @property
    def completions(self) -> Address:
        """Where the request goes."""
        base = read_address(self.url)
        path, mark, query = base.target.partition("?")
        return Address(base.scheme, base.host, base.port, f"{path.rstrip('/')}/chat/completions{mark}{query}")
