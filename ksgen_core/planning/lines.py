"""Plans as plain text to edit by hand, one line a step.

A line is the step's text, after it, each behind a `|`, what may be fixed: `4 s`, `seed 7`, `lock`. Empty lines are
skipped, and so is a number or a dash that a list starts a line with.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import replace

from ..errors import KSGenError
from ..types import KeyStep, Plan

_ITEM = re.compile(r"^\s*(?:\d+[.)]|[-*•])\s+")
_SECONDS = re.compile(r"(\d+(?:\.\d+)?(?:e-\d+)?)\s*s")
_SEED = re.compile(r"seed\s+(\d+)")


def write_lines(plan: Plan) -> str:
    """The plan as numbered lines; `edit_plan` with them gives an equal plan back."""
    return "\n".join(f"{number}. {_line(step)}" for number, step in enumerate(plan.steps, 1))


def read_lines(text: str) -> tuple[KeyStep, ...]:
    """The steps of a text with one line a step. Raises `KSGenError` naming the line with an unknown part."""
    return tuple(_read_line(line, number) for number, line in enumerate(text.splitlines(), 1) if line.strip())


def edit_plan(plan: Plan, text: str) -> Plan:
    """The plan with the steps of `text` in their order; an empty text changes nothing.

    A line with the words of a step of the plan is that step and keeps its states; the rest is what the line says.
    Text that starts with { is a whole ksgen.plan/1 JSON document and takes the plan's place.
    Raises `KSGenError` for a line or a document that cannot be read.
    """
    if not text.strip():
        return plan
    if text.lstrip().startswith("{"):
        return read_json(text)
    known: defaultdict[str, list[KeyStep]] = defaultdict(list)
    for step in plan.steps:
        known[_words(step)].append(step)
    steps = []
    for given in read_lines(text):
        same = known[_words(given)]
        # The last one stays, for a step that is done once more.
        old = same.pop(0) if len(same) > 1 else (same or [given])[0]
        steps.append(
            replace(
                given,
                text=old.text if _flat(old.text) == given.text else given.text,
                before=old.before,
                after=old.after,
            )
        )
    return replace(plan, steps=tuple(steps))


def read_json(text: str) -> Plan:
    """The plan of a ksgen.plan/1 JSON text. Raises `KSGenError` if it is none."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError for numbers of thousands of digits, too
        raise KSGenError(f"The text is not valid JSON: {error}. A plan is a ksgen.plan/1 JSON document.") from error
    return Plan.from_json(document)


def _line(step: KeyStep) -> str:
    # Python writes the shortest digits that give the number back, small ones with an exponent.
    seconds = f"{step.seconds!r} s" if step.seconds is not None else ""
    seed = f"seed {step.seed}" if step.seed is not None else ""
    return " | ".join(filter(None, (_flat(step.text), seconds, seed, "lock" if step.lock else "")))


def _read_line(line: str, number: int) -> KeyStep:
    text, *parts = (part.strip() for part in _ITEM.sub("", line, count=1).split("|"))
    if not text:
        raise KSGenError(f"Line {number} has no text for its step: {line.strip()!r}. Write what is done.")
    seconds, seed, lock = None, None, False
    for part in parts:
        if found := _SECONDS.fullmatch(part):
            seconds = float(found[1])
        elif found := _SEED.fullmatch(part):
            seed = int(found[1])
        elif part == "lock":
            lock = True
        else:
            raise KSGenError(f"Line {number} has {part!r} behind a |; known are '4 s', 'seed 7' and 'lock'.")
    return KeyStep(text, seconds=seconds, seed=seed, lock=lock)


def _words(step: KeyStep) -> str:
    return _flat(step.text).casefold()


def _flat(text: str) -> str:
    """A text as it fits on a line: `|` stands between the parts of one."""
    return " ".join(text.replace("|", "/").split())
