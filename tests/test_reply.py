"""A model's reply becomes a plan by stated rules, or an error that holds it whole."""

from __future__ import annotations

import copy
import json
import pickle
import re
import sys
import unicodedata

import jsonschema
import pytest

from ksgen_core.planning.reply import (
    ALLOWED,
    LONGEST,
    LONGEST_REPLY,
    SEEN,
    UNSEEN,
    ReplyError,
    plan_from_reply,
    reply_schema,
)
from ksgen_core.types import KeyStep, Plan

STEPS = [
    {"text": "put the tea bag into the mug", "before": "An empty mug stands there.", "after": "A bag is in the mug."},
    {"text": "pour hot water into the mug"},
]
PLAIN = json.dumps({"steps": STEPS})
OTHER = json.dumps({"steps": STEPS[::-1]})
PLAN = Plan("make tea", tuple(KeyStep(**step) for step in STEPS), ("tea 1",), "mllm")


def read(reply: str, **more) -> Plan:
    return plan_from_reply(reply, "make tea", sources=["tea 1"], planner="mllm", **more)


def refused(reply: str, **more) -> str:
    with pytest.raises(ReplyError) as error:
        read(reply, **more)
    assert error.value.raw == reply
    message = str(error.value)
    assert len(message) < 700 and message.isprintable() and "Ask again" in message
    message.encode("utf-8")
    return message


def steps(*texts: object) -> str:
    return json.dumps({"steps": [{"text": text} for text in texts]})


@pytest.mark.parametrize(
    "reply",
    [
        PLAIN,
        json.dumps({"steps": STEPS}, indent=4),
        f"\ufeff \n{PLAIN}\n",
        f"```json\n{PLAIN}\n```",
        f"Sure! Here is the plan:\n```\n{PLAIN}\n```\nEnjoy your tea {{and cake}} [1], [x] or (a) [ ].",
        f"<think>First {{the bag}}, then {OTHER}: no, the other way.</think>\n{PLAIN}",
        f"I would pour first: {OTHER}. No.\n</think>\n\n{PLAIN}",
        f"<think>\n</think>{PLAIN} <think>",
        f"{PLAIN}\nOnce more: {PLAIN}",
        f'The goal is {{"goal": "tea"}}, so [1, 2] and {{}}: {PLAIN}',
        f"{{braces}} [brackets] {PLAIN}",
    ],
)
def test_one_plan_is_read_whatever_stands_around_it(reply):
    assert read(reply) == PLAN


def test_blanks_and_line_ends_in_a_text_become_one_blank():
    plan = read(json.dumps({"steps": [{"text": "  pour\u3000 \n\tthe  tea "}, {"text": "a\u00a0b", "after": " c "}]}))
    assert plan.steps == (KeyStep("pour the tea"), KeyStep("a b", after="c"))


@pytest.mark.parametrize(
    "text",
    [
        "把茶包放进杯子",
        "चाय में दूध डालें",
        "ضع كيس الشاي",
        "ใส่ถุงชา",
        "הכנס תיון",
        "Löffel für die Kanne",
        "👩‍🍳 🫖",
        'say "tea" \\ {x}',
    ],
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_any_script_is_kept(text, ascii_only):
    assert read(json.dumps({"steps": [{"text": text}] * 2}, ensure_ascii=ascii_only)).steps[1].text == text


def test_a_text_that_looks_like_the_end_of_thinking_or_like_a_plan_is_a_text():
    for text in ("</think>", "<think>", PLAIN, "```json {}```", "ignore the rules"):
        for reply in (steps(text, "wait"), f"```json\n{steps(text, 'wait')}\n```"):
            assert read(reply).steps[0].text == text


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ("", "no JSON object"),
        ("I cannot see a picture.", "no JSON object"),
        ("1. pour water\n2. add tea", "no JSON object"),
        (json.dumps(STEPS), 'no JSON object with "steps"'),
        (json.dumps([{"steps": STEPS}]), 'no JSON object with "steps"'),
        (json.dumps({"plan": {"steps": STEPS}}), 'no JSON object with "steps"'),
        (json.dumps(PLAIN), "broken"),
        ("null", "no JSON object"),
        (f"{PLAIN} or {OTHER}", "2 different plans"),
        (f"{PLAIN} {{'steps'}} {{\"steps\": [", "breaks off"),
        (PLAIN[:-1], "breaks off"),
        (PLAIN[:30], "breaks off"),
        (PLAIN[:-2] + ",]}", "broken"),
        (PLAIN.replace('"', "'"), "broken"),
        (f"<think>so {PLAIN}", "never ends"),
        (json.dumps({"steps": STEPS, "goal": "tea"}), "unknown field 'goal'"),
        (json.dumps({"steps": [{**STEPS[0], "n": 1}, STEPS[1]]}), "step 1 has the unknown field 'n'"),
        (json.dumps({"steps": {"1": "pour"}}), '"steps" must be a list, got an object'),
        (json.dumps({"steps": ["pour", "stir"]}), "step 1 must be an object, got a text"),
        (json.dumps({"steps": [STEPS[0], {"before": "x"}]}), 'step 2 lacks "text"'),
        (json.dumps({"steps": [STEPS[1], {"text": "x", "after": None}]}), '"after" of step 2 must be a text, got null'),
        (steps("pour", 5), '"text" of step 2 must be a text, got a number'),
        (steps("pour", True), "got true or false"),
        (steps("pour", ""), '"text" of step 2 is empty'),
        (steps("pour", " \n\u3000"), "is empty"),
        (steps("pour", "\u200b\ufeff"), "is empty"),
        (json.dumps({"steps": [STEPS[0], {"text": "x", "before": " "}]}), '"before" of step 2 is empty'),
        (steps("pour", "a\u0000b"), "U+0000"),
        (steps("pour", "a\u001b[31mb"), "U+001B"),
        (steps("pour", "a\u0085b"), "U+0085"),
        (steps("pour", "\ud800"), "U+D800"),
        ('{"steps": [{"text": "a\nb"}, {"text": "c"}]}', "broken"),
        (steps("pour", "\ud800").encode().decode("unicode_escape"), "U+D800"),
        (steps("pour", "x" * (LONGEST + 1)), f"at most {LONGEST}"),
        ('{"steps": [], "steps": []}', "'steps' twice"),
        ('{"steps": [{"text": "a", "text": "b"}, {"text": "c"}]}', "'text' twice"),
        ('{"steps": NaN}', "NaN is no JSON"),
        ('{"steps": -Infinity}', "Infinity is no JSON"),
        ('{"steps": ' + "9" * 50_000 + "}", ""),
        ("[" * 90_000, "nested too deeply"),
        ('{"steps":' * 10_000, ""),
        ('{"a":' * 10_000 + "1" + "}" * 10_000, "nested too deeply"),
        (PLAIN + " " * LONGEST_REPLY, f"longer than {LONGEST_REPLY}"),
    ],
)
def test_what_is_no_plan_is_refused_and_said(reply, says):
    assert says in refused(reply)


@pytest.mark.parametrize(("fewest", "most"), [(2, 7), (3, 3), (1, 2)])
def test_the_number_of_steps_is_held(fewest, most):
    for count in range(most + 3):
        reply = json.dumps({"steps": [{"text": f"do {k}"} for k in range(count)]})
        if fewest <= count <= most:
            assert len(read(reply, fewest=fewest, most=most).steps) == count
        else:
            message = refused(reply, fewest=fewest, most=most)
            assert f"has {count} step(s)" in message and f"of {fewest} to {most} steps" in message
    with pytest.raises(ValueError, match="fewest"):
        read(PLAIN, fewest=most + 1, most=most)
    with pytest.raises(ValueError, match="fewest"):
        reply_schema(0, 3)


def test_the_error_survives_copying_with_its_reply():
    with pytest.raises(ReplyError) as error:
        read("no plan")
    for again in (copy.copy(error.value), pickle.loads(pickle.dumps(error.value))):
        assert (str(again), again.raw) == (str(error.value), "no plan")


def test_the_classes_of_characters_are_what_python_calls_them():
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    allowed, seen, unseen = (set(re.findall(f"[{kind}]", everything)) for kind in (ALLOWED, SEEN, UNSEEN))
    assert allowed == seen | unseen and not seen & unseen
    assert not any(c.isspace() for c in seen)
    refused_ones = set(everything) - allowed
    controls = {c for c in everything if unicodedata.category(c) in ("Cc", "Cs")}
    turning = {c for c in everything if unicodedata.bidirectional(c) in ("LRE", "RLE", "PDF", "LRO", "RLO")}
    turning |= {c for c in everything if unicodedata.bidirectional(c) in ("LRI", "RLI", "FSI", "PDI")}
    assert refused_ones | set("\t\n\r") == controls | turning
    assert not set("\u00ad\u2800\u3164\u200e\u2062") & seen


def test_the_schema_is_one_and_gives_the_fields_in_order():
    schema = reply_schema(3, 5)
    jsonschema.Draft202012Validator.check_schema(schema)
    items = schema["properties"]["steps"]
    assert (items["minItems"], items["maxItems"]) == (3, 5)
    assert list(items["items"]["properties"]) == ["text", "before", "after"]
    assert json.loads(json.dumps(schema)) == schema
    assert "pattern" not in json.dumps(reply_schema(patterns=False))


SHAPES = ("{", "[", '{"', '{"a":', "{}", "[]", '{"a":1},', "[1,", "</think>", "```", "<think>", "{ ", '{"a":"', "[[1],")


@pytest.mark.parametrize("shape", SHAPES)
def test_time_grows_no_faster_than_the_reply(shape):
    """Counted in calls: twice the reply may cost twice of them. What calls do not show would take minutes here."""

    def calls_for(length: int) -> int:
        calls = 0

        def count(*_):
            nonlocal calls
            calls += 1

        reply = (shape * length)[:length]
        sys.setprofile(count)
        try:
            with pytest.raises(ReplyError):
                read(reply)
        finally:
            sys.setprofile(None)
        return calls

    assert calls_for(LONGEST_REPLY) < 2.1 * calls_for(LONGEST_REPLY // 2) + 200
