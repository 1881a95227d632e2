"""Ten thousand broken replies: a whole plan or a ReplyError with the whole reply, never anything else."""

from __future__ import annotations

import json
import random

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ksgen_core.planning.reply import LONGEST, ReplyError, plan_from_reply, reply_schema
from ksgen_core.types import Plan

PLAN = {
    "steps": [
        {"text": "put the tea bag into the mug", "before": "An empty mug.", "after": "A bag is in the mug."},
        {"text": "把热水倒进杯子"},
        {"text": 'stir with the "long" spoon \U0001f944', "after": "The tea is brown."},
    ]
}
SEEDS = (
    json.dumps(PLAN),
    json.dumps(PLAN, ensure_ascii=False, indent=1),
    f"Here you are:\n```json\n{json.dumps(PLAN)}\n```\nEnjoy!",
    f"<think>Tea {{first}}. {json.dumps(PLAN)}</think>{json.dumps(PLAN)}",
    json.dumps([PLAN, PLAN]),
)
PIECES = (
    *'{}[]",:\\',
    *("NaN", "-Infinity", "1e999", "null", "true", "\\u0000", "\\ud800", "\\udc00", "\ud800", "\x00", "\x1b", "\u202e"),
    *('"steps":', '"text":', '"text": ""', "<think>", "</think>", "```", "```json\n", "\n", "\u3000", "9" * 5000),
    *("[" * 3000, '{"a":' * 3000, " " * 3000, '{"steps": [{"text": "x"}, {"text": "y"}]}', "é", "𝄞"),
)


def mutated(rng: random.Random) -> str:
    """A reply with 1 to 6 things done to it: pieces put in, taken out, doubled, moved, cut off, characters changed."""
    text = rng.choice(SEEDS)
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        a, b = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        b = min(b, a + rng.choice((1, 2, 10, 60)))
        match rng.randrange(8):
            case 0:
                text = text[:a] + rng.choice(PIECES) + text[a:]
            case 1:
                text = text[:a] + text[b:]
            case 2:
                text = text[:b] + text[a:b] + text[b:]
            case 3:
                text = text[:a] + rng.choice(PIECES) + text[b:]
            case 4:
                text = text[:b] if rng.random() < 0.5 else text[a:]
            case 5:
                text = text[:a] + chr(rng.choice((rng.randrange(256), rng.randrange(0x110000)))) + text[a + 1 :]
            case 6:
                text = text + rng.choice(SEEDS)
            case 7:
                text = text[:a] + text[a:b].swapcase() + text[b:]
    return text


def outcome(reply: str, fewest: int = 2, most: int = 7) -> Plan | ReplyError:
    try:
        plan = plan_from_reply(reply, "make tea", sources=("a", "b"), planner="mllm", fewest=fewest, most=most)
    except ReplyError as error:
        assert error.raw == reply
        message = str(error)
        assert len(message) < 700 and message.isprintable()
        return error
    assert fewest <= len(plan.steps) <= most
    assert (plan.goal, plan.sources, plan.planner) == ("make tea", ("a", "b"), "mllm")
    for step in plan.steps:
        for text in filter(lambda t: t is not None, (step.text, step.before, step.after)):
            assert 0 < len(text) <= LONGEST and text == " ".join(text.split()) and text.encode("utf-8")
        assert (step.seconds, step.seed, step.lock) == (None, None, False)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    return plan


def whole_plans(reply: str) -> list[list[str]]:
    """The step texts of every JSON object of the reply that has steps, as Python's own parser reads it."""
    found = []
    for start in (k for k, letter in enumerate(reply) if letter == "{"):
        try:
            value, _ = json.JSONDecoder().raw_decode(reply, start)
            found.append([" ".join(step["text"].split()) for step in value["steps"]])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass
    return found


def test_ten_thousand_mutated_replies():
    """Whatever is read is the whole of one JSON object that stands in the reply."""
    rng = random.Random(20)
    read = 0
    for _ in range(10_000):
        reply = mutated(rng)
        if isinstance(plan := outcome(reply), Plan):
            read += 1
            assert [step.text for step in plan.steps] in whole_plans(reply)
    assert 500 < read < 9_500, "the mutations are too mild or too wild to show anything"


@pytest.mark.parametrize("seed", SEEDS[:3])
def test_a_reply_that_breaks_off_anywhere_is_refused(seed):
    """A prefix that is read holds every step: there is no half plan."""
    whole = outcome(seed)
    assert isinstance(whole, Plan)
    for end in range(len(seed)):
        got = outcome(seed[:end])
        assert isinstance(got, ReplyError) or got == whole


@settings(max_examples=500, deadline=None)
@given(st.text() | st.text(st.sampled_from('{}[]":,\\ ntu0dsep<>/hk`')))
def test_any_text_at_all(reply):
    outcome(reply)


CHARACTERS = st.characters(codec=None) | st.sampled_from('\t\n\r \u00a0\u3000\u200b\x00\x1f\x7f\x85\ud800\udfff"\\{')
TEXT = (
    st.text(CHARACTERS, max_size=8)
    | st.integers(LONGEST - 1, LONGEST + 1).map(lambda n: "x" * n)
    | st.sampled_from(["a", "pour water", "é" * LONGEST])
)
VALUE = TEXT | TEXT | TEXT | st.none() | st.booleans() | st.integers() | st.lists(TEXT, max_size=1)
STEP = st.dictionaries(st.sampled_from(["text", "text", "before", "after", "seconds"]), VALUE, max_size=4) | (
    st.fixed_dictionaries({"text": TEXT}, optional={"before": TEXT, "after": TEXT})
)
REPLY = (
    st.fixed_dictionaries({"steps": st.lists(STEP, max_size=5)})
    | st.dictionaries(st.sampled_from(["steps", "goal"]), VALUE | st.lists(STEP, max_size=4), max_size=2)
    | st.lists(st.fixed_dictionaries({"steps": st.lists(STEP, max_size=3)}), max_size=2)
    | VALUE
)


@settings(max_examples=1500, deadline=None)
@given(REPLY, st.booleans())
def test_the_schema_accepts_exactly_what_the_parser_accepts(document, ascii_only):
    plain = json.dumps(document, ensure_ascii=ascii_only)
    valid = jsonschema.Draft202012Validator(reply_schema(2, 4)).is_valid(document)
    assert isinstance(outcome(plain, 2, 4), Plan) == valid, document


def test_the_comparison_with_the_schema_sees_both_sides():
    """Half of what is compared above must be valid, or the test would show nothing."""
    validator = jsonschema.Draft202012Validator(reply_schema(2, 4))
    assert validator.is_valid({"steps": [{"text": "é" * LONGEST}, {"text": "x\n", "before": "\u200b\u3000y"}]})
    for wrong in ("", " ", "\u200b", "a\x00", "\ud800", "x" * (LONGEST + 1), "\x85", "a\x7f"):
        assert not validator.is_valid({"steps": [{"text": wrong}, {"text": "x"}]}), wrong
