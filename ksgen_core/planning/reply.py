"""A language model's reply, read strictly and once.

What is read:
- One JSON object, `{"steps": [{"text": ..., "before"?: ..., "after"?: ...}, ...]}`, alone, in a fence or with prose
  around it. A bare list of steps, an object inside another, an unknown field and null are refused.
- Prose holds no `{` or `[` with JSON's quote, bracket, number or word behind it: there a JSON value begins, which must
  then be whole. Values without "steps" beside the plan are passed over.
- Two plans: the same ones count as one, different ones are refused.
- What a model thinks is skipped, up to the first `</think>`, unless the reply begins with the object or a fence. A
  reply that begins with `<think>` and never ends it is refused.
- Texts are of any script and of `LONGEST` characters at most. Runs of blanks, line ends and tabs become one blank, at
  the ends none. Other control characters and half characters (lone surrogates) are refused, and texts of blanks alone.
- Never more than `LONGEST_REPLY` characters, no field twice, no NaN, nothing cut off, no nesting past Python's limit.

Numbered lines are not read here. Time grows with the reply's length and no faster.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from ..errors import KSGenError
from ..types import MAX_STEPS, KeyStep, Plan
from .wording import FEWEST, MOST

LONGEST = 240
"""Of a text, in characters; the longest sentence of the built-in library has less than half."""
LONGEST_REPLY = 100_000
FIELDS = ("text", "before", "after")

BLANK = "\t\n\r \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
UNSEEN = BLANK + "\u00ad\u200b-\u200f\u2060-\u2065\u206a-\u206f\u2800\u3164\ufeff"
# Literal characters, no escapes: every engine of regular expressions reads them the same, and those that know no
# surrogates have none to refuse.
ALLOWED = "\t\n\r -~\u00a0-\u2029\u202f-\u2065\u206a-\ud7ff\ue000-\U0010ffff"
SEEN = (
    "!-~\u00a1-\u00ac\u00ae-\u167f\u1681-\u1fff\u2010-\u2027\u2030-\u205e\u2070-\u27ff\u2801-\u2fff"
    "\u3001-\u3163\u3165-\ud7ff\ue000-\ufefe\uff00-\U0010ffff"
)
"""ALLOWED without UNSEEN, as ranges: a pattern that is never ambiguous is matched in one pass."""

_VALUE = re.compile(r'\{\s*["}]|\[\s*(?:[\[{"\]0-9-]|true\b|false\b|null\b|NaN\b|Infinity\b)')
_FIRST = re.compile(r"\s*(?:```\w*\s*)?\{")
_NOT_ALLOWED, _BLANKS = re.compile(f"[^{ALLOWED}]"), re.compile(f"[{BLANK}]+")
_SEEN = re.compile(f"[{SEEN}]")


class ReplyError(KSGenError):
    """The reply is no plan; `raw` is the whole reply."""

    def __init__(self, message: str, raw: str = "") -> None:
        super().__init__(message)
        self.raw = raw


def reply_schema(fewest: int = FEWEST, most: int = MOST, *, patterns: bool = True) -> dict[str, Any]:
    """The JSON Schema of what `plan_from_reply` reads where nothing stands around the object.

    Without `patterns` it lets control characters and blank texts through, which the parser refuses: for servers that
    hold a pattern against the characters between the quotes, so that a quote in a text ends it (llama.cpp).
    """
    _check_counts(fewest, most)
    text: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": LONGEST}
    if patterns:
        text["pattern"] = f"^[{UNSEEN}]*[{SEEN}][{ALLOWED}]*$"
    step = {
        "type": "object",
        "properties": {name: dict(text) for name in FIELDS},
        "required": ["text"],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {"steps": {"type": "array", "minItems": fewest, "maxItems": most, "items": step}},
        "required": ["steps"],
        "additionalProperties": False,
    }


def plan_from_reply(
    reply: str,
    goal: str,
    *,
    sources: Sequence[str] = (),
    planner: str = "text",
    fewest: int = FEWEST,
    most: int = MOST,
) -> Plan:
    """The plan that a reply holds, by the rules above. Raises `ReplyError` for everything else."""
    _check_counts(fewest, most)
    try:
        plans = [value for value in _values(reply) if isinstance(value, dict) and "steps" in value]
        if not plans:
            raise _Fault('there is no JSON object with "steps" in it')
        first, *others = [_steps(plan, fewest, most) for plan in plans]
        if any(other != first for other in others):
            raise _Fault(f"it holds {len(plans)} different plans")
    except _Fault as fault:
        wanted = '{"steps": [{"text": "..."}, ...]}'
        raise ReplyError(
            f"The planner's reply is no plan: {fault}. The reply, {len(reply)} characters, begins {_extract(reply)}. "
            f"Ask again, or write the plan yourself; wanted is one object {wanted} of {fewest} to {most} steps.",
            reply,
        ) from None
    return Plan(goal, first, tuple(sources), planner)


class _Fault(Exception):
    """What is wrong with a reply, in words; becomes a `ReplyError`."""


def _check_counts(fewest: int, most: int) -> None:
    if not 1 <= fewest <= most <= MAX_STEPS:
        raise ValueError(f"fewest and most are numbers of steps, 1 <= fewest <= most <= {MAX_STEPS}: {fewest}, {most}")


def _values(reply: str) -> Iterator[Any]:
    """Every JSON object and list of the reply that stands in no other, in order."""
    if len(reply) > LONGEST_REPLY:
        raise _Fault(f"it is longer than {LONGEST_REPLY} characters")
    position = 0
    if not _FIRST.match(reply):
        end = reply.find("</think>")
        if end < 0 and reply.lstrip().startswith("<think>"):
            raise _Fault("it begins to think and never ends; allow more tokens")
        position = max(0, end)
    decoder = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)
    while found := _VALUE.search(reply, position):
        try:
            value, position = decoder.raw_decode(reply, found.start())
        except json.JSONDecodeError as error:
            cut = error.msg.startswith("Unterminated") or error.pos >= len(reply.rstrip())
            advice = "; it breaks off there, allow more tokens" if cut else ""
            where = f"{error.msg} at character {error.pos}, {_extract(reply[error.pos :], 30)}"
            raise _Fault(f"its JSON is broken ({where}){advice}") from None
        except RecursionError:
            raise _Fault("its JSON is nested too deeply") from None
        except ValueError:
            # Python's own bound on the digits of a whole number.
            raise _Fault("its JSON holds a number of thousands of digits") from None
        yield value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _Fault(f"its JSON gives the field {_extract(name)} twice")
        found[name] = value
    return found


def _constant(name: str) -> NoReturn:
    raise _Fault(f"{name} is no JSON")


def _steps(plan: dict[str, Any], fewest: int, most: int) -> tuple[KeyStep, ...]:
    _check_names(plan, "the object", ("steps",))
    steps = plan["steps"]
    if not isinstance(steps, list):
        raise _Fault(f'"steps" must be a list, got {_kind(steps)}')
    if not fewest <= len(steps) <= most:
        raise _Fault(f"it has {len(steps)} step(s)")
    return tuple(_step(step, f"step {number}") for number, step in enumerate(steps, 1))


def _step(step: Any, what: str) -> KeyStep:
    if not isinstance(step, dict):
        raise _Fault(f"{what} must be an object, got {_kind(step)}")
    _check_names(step, what, FIELDS)
    if "text" not in step:
        raise _Fault(f'{what} lacks "text"')
    before, after = (_text(step[s], f'"{s}" of {what}') if s in step else None for s in ("before", "after"))
    return KeyStep(_text(step["text"], f'"text" of {what}'), before, after)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise _Fault(f"{what} must be a text, got {_kind(value)}")
    if len(value) > LONGEST:
        raise _Fault(f"{what} has {len(value)} characters, at most {LONGEST} are read: {_extract(value)}")
    if bad := _NOT_ALLOWED.search(value):
        raise _Fault(f"{what} holds the character U+{ord(bad[0]):04X}, which is none to print: {_extract(value)}")
    if not _SEEN.search(value):
        raise _Fault(f"{what} is empty")
    return _BLANKS.sub(" ", value).strip(" ")


def _check_names(value: dict[str, Any], what: str, known: tuple[str, ...]) -> None:
    if extra := [name for name in value if name not in known]:
        raise _Fault(f"{what} has the unknown field {_extract(extra[0])}; known are {', '.join(known)}")


def _kind(value: Any) -> str:
    """A JSON value's type, in JSON's words."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _extract(text: str, length: int = 80) -> str:
    """The beginning of a text, in quotes, fit for any terminal: what does not print is escaped."""
    return repr(text if len(text) <= length else text[:length] + "...")
