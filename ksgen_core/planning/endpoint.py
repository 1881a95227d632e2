"""The planner that asks a server: anything that speaks OpenAI's chat completions.

vLLM, SGLang, Ollama, llama.cpp, OpenAI and OpenRouter do. The reply is asked for as a stream under the plan's JSON
Schema; whether the server heeds it or not, the strict parser decides. What is tried again and what is refused stands in
`endpoint_talk`, where keys come from in `endpoint_keys`, what travels how in `http_post`.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .. import pixels
from ..errors import KSGenError
from ..pipeline import Planned, Planner, Writing
from ..types import Example, Query
from .chat_reply import Piece
from .endpoint_keys import holds
from .endpoint_settings import EndpointSettings
from .endpoint_talk import Refused, ask
from .http_post import Unreachable
from .reply import ReplyError, plan_from_reply, reply_schema
from .wording import system_text, user_text

if TYPE_CHECKING:
    import torch

__all__ = ["EndpointSettings", "Refused", "Unreachable", "ask_endpoint", "data_url", "write_plan"]

PICTURE_SIDE = 1024
"""Pixels; vision models of today see little more, and the servers' limits on a request are kept."""


def ask_endpoint(settings: EndpointSettings) -> Planner:
    """The planner of these settings."""
    return lambda query, examples: write_plan(query, examples, settings)


def write_plan(query: Query, examples: Sequence[Example], settings: EndpointSettings) -> Iterator[Writing | Planned]:
    """Yields what the server writes, at least every `TICK` seconds, and the plan; closing it closes the connection.

    Raises `ReplyError` for a reply that is no plan, `Refused` where the server answers with an error, `Unreachable`
    where there is no connection, `KSGenError` for all else. None of them holds a key.
    """
    reply, key = yield from ask(_request(query, examples, settings), settings)
    fault = None
    try:
        plan = plan_from_reply(
            reply.text,
            query.goal,
            sources=[example.source for example in examples],
            planner=f"endpoint {settings.model}",
            fewest=settings.fewest,
            most=settings.most,
        )
        # What was cut off behind a whole plan may have been about to throw it away.
        if reply.finish in ("length", "content_filter") and not reply.text.rstrip("` \n\t").endswith("}"):
            raise ReplyError("The reply was cut off behind a plan, which may be a draft.", reply.text)
        said = json.dumps(plan.to_json(), ensure_ascii=False)
    except ReplyError as error:
        plan, said, fault = None, str(error), error
    # JSON's escapes can hide the key from the first look, and its reading shows it.
    if holds(reply.text, key) or holds(said, key):
        raise KSGenError(f"{settings.completions.shown} has put the key that it was sent into its reply. Distrust it.")
    if plan is None:
        raise ReplyError(f"{fault}{_advice(reply, settings)}", reply.text)
    yield Planned(plan)


def _advice(reply: Piece, settings: EndpointSettings) -> str:
    """What may have spoiled a reply that is no plan."""
    if reply.finish == "length":
        return f" The model was cut off after {settings.max_tokens} tokens (max_tokens)."
    if reply.finish == "content_filter":
        return " The server's content filter has cut in."
    return " The model has thought and then written nothing." if reply.thinks and not reply.text else ""


def _request(query: Query, examples: Sequence[Example], settings: EndpointSettings) -> dict[str, Any]:
    asked: Any = user_text(query.goal, examples, settings.done)
    if settings.picture:
        asked = [
            {"type": "image_url", "image_url": {"url": data_url(query.image)}},
            {"type": "text", "text": asked},
        ]
    schema = reply_schema(settings.fewest, settings.most, patterns=False)
    # OpenAI's own models of today refuse the old name, which most other servers know alone, and some a temperature.
    openai = settings.completions.host == "api.openai.com"
    tokens = "max_completion_tokens" if openai else "max_tokens"
    request = {
        "model": settings.model,
        "messages": [
            {"role": "system", "content": system_text(settings.fewest, settings.most, settings.picture)},
            {"role": "user", "content": asked},
        ],
        "stream": True,
        tokens: settings.max_tokens,
        "temperature": None if openai and not settings.temperature else settings.temperature,
        "seed": settings.seed,
        # Without "strict", which at OpenAI allows neither lengths nor fields that may be left out.
        "response_format": {"type": "json_schema", "json_schema": {"name": "plan", "schema": schema}},
    }
    return {name: value for name, value in request.items() if value is not None}


def data_url(picture: torch.Tensor) -> str:
    """`[H, W, 3]` -> a JPEG of `PICTURE_SIDE` pixels at most on its longer side, as a data URL."""
    image = pixels.to_pil(pixels.one_picture(picture))
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
