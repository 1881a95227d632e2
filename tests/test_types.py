"""The nouns survive JSON, and a plan file is read strictly."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ksgen_core
from ksgen_core.errors import KSGenError
from ksgen_core.types import Clip, Example, KeyStep, Plan, Query, Storyboard, with_seeds

SCHEMA = json.loads((Path(ksgen_core.__file__).parent / "plan.schema.json").read_text(encoding="utf-8"))
SMALL = {"kind": "ksgen.plan/1", "goal": "make tea", "steps": [{"text": "boil water"}]}

HALF = "light \ud83d now"
"""Of an emoji cut in two."""

sentences = st.text(min_size=1, max_size=20).filter(str.strip)
key_steps = st.builds(
    KeyStep,
    text=sentences,
    before=st.none() | st.text(max_size=9),
    after=st.none() | st.text(max_size=9),
    seconds=st.none() | st.floats(0, 600, exclude_min=True),
    seed=st.none() | st.integers(0, 2**64 - 1),
    lock=st.booleans(),
)
plans = st.builds(
    Plan,
    goal=sentences,
    steps=st.lists(key_steps, min_size=1, max_size=4).map(tuple),
    sources=st.lists(st.text(max_size=9), max_size=3).map(tuple),
    planner=st.text(max_size=9),
)


def agrees(document) -> bool:
    """Whether `Plan.from_json` takes the document; the schema must say the same."""
    try:
        Plan.from_json(document)
        taken = True
    except KSGenError:
        taken = False
    assert taken == jsonschema.Draft202012Validator(SCHEMA).is_valid(document), document
    return taken


@given(plans)
@settings(max_examples=60, deadline=None)
def test_every_plan_survives_json_and_fits_the_schema(plan):
    document = json.loads(json.dumps(plan.to_json()))
    assert agrees(document)
    assert Plan.from_json(document) == plan


def test_the_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"goal": None}, "goal must be of type str"),
        ({"goal": " "}, "goal is empty"),
        ({"kind": "ksgen.plan/2"}, "ksgen.plan/2"),
        ({"steps": []}, "no steps"),
        ({"steps": {}}, "steps must be of type list"),
        ({"steps": ["boil water"]}, "Step 1 of the plan must be a JSON object"),
        ({"steps": [{"text": "a"}, {}]}, "Step 2 of the plan lacks text"),
        ({"steps": [{"text": ""}]}, "not empty"),
        ({"steps": [{"text": "a", "title": "b"}]}, "unknown field(s) title"),
        ({"steps": [{"text": "a", "before": None}]}, "before must be of type str"),
        ({"steps": [{"text": "a", "seconds": 0}]}, "seconds"),
        ({"steps": [{"text": "a", "seconds": "2"}]}, "seconds must be of type float"),
        ({"steps": [{"text": "a", "seconds": True}]}, "seconds must be of type float"),
        ({"steps": [{"text": "a", "seed": -1}]}, "seed"),
        ({"steps": [{"text": "a", "seed": True}]}, "seed must be of type int"),
        ({"steps": [{"text": "a", "lock": 1}]}, "lock must be of type bool"),
        ({"steps": [{"text": "a"}] * 1000}, "at most 999"),
        ({"sources": [1]}, "list of strings"),
        ({"extra": 1}, "unknown field(s) extra"),
    ],
)
def test_a_wrong_plan_is_refused_by_reader_and_schema(change, says):
    document = {**SMALL, **change}
    assert not agrees(document)
    with pytest.raises(KSGenError) as error:
        Plan.from_json(document)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"goal": HALF}, "The goal of a plan"),
        ({"planner": HALF}, "The planner of a plan"),
        ({"sources": ["a book", HALF]}, "The source of a plan"),
        ({"steps": [{"text": "a"}, {"text": HALF}]}, "The text of a key step"),
        ({"steps": [{"text": "a", "before": HALF}]}, "The state before of a key step"),
        ({"steps": [{"text": "a", "after": HALF}]}, "The state after of a key step"),
    ],
)
def test_half_a_character_is_refused_in_words_that_can_be_written(change, says):
    """JSON holds it as an escape, and it would break whatever is written of the plan: films, subtitles, JSON."""
    document = json.loads(json.dumps({**SMALL, **change}))
    with pytest.raises(KSGenError) as error:
        Plan.from_json(document)
    words = str(error.value)
    assert words.startswith(f"{says} holds half a character, U+D83D") and words.encode()
    whole = json.loads(json.dumps({**SMALL, **change}).replace("\\ud83d", "\\ud83d\\udd25"))
    assert Plan.from_json(whole).to_json() == {"sources": [], "planner": "by hand", **whole}


@pytest.mark.parametrize("missing", ["kind", "goal", "steps"])
def test_a_missing_field_is_named(missing):
    document = {key: value for key, value in SMALL.items() if key != missing}
    assert not agrees(document)
    with pytest.raises(KSGenError, match=f"lacks {missing}"):
        Plan.from_json(document)


@pytest.mark.parametrize("document", [None, [], "plan", 3])
def test_what_is_no_object_is_refused(document):
    assert not agrees(document)


def test_query_and_example_survive_json():
    query = Query(torch.rand(32, 32, 3), "make tea")
    assert Query.from_json(json.loads(json.dumps(query.to_json())), query.image.clone()) == query
    assert query != Query(query.image + 0.1, "make tea")
    example = Example(Plan.from_json(SMALL), "library, line 3", 1.5)
    assert Example.from_json(json.loads(json.dumps(example.to_json()))) == example


@pytest.mark.parametrize("goal", ["", "  \n"])
def test_an_empty_goal_is_refused(goal):
    with pytest.raises(KSGenError, match="goal is empty"):
        Query(torch.rand(32, 32, 3), goal)


def test_clips_and_storyboards_are_equal_if_their_pictures_are():
    plan, frames, image = Plan.from_json(SMALL), torch.rand(5, 8, 8, 3), torch.rand(8, 8, 3)
    assert Clip.of(frames, 8.0) == Clip.of(frames.clone(), 8.0)
    assert Clip.of(frames, 8.0) != Clip.of(frames, 9.0)
    assert Clip.of(frames, 8.0) != Clip.of(frames * 0.5, 8.0)
    board = Storyboard(plan, (image,), (Clip.of(frames, 8.0),))
    assert board == Storyboard(plan, (image.clone(),), (Clip.of(frames.clone(), 8.0),))
    assert board != Storyboard(plan, (image * 0.5,), (Clip.of(frames, 8.0),))
    longer = Plan("make tea", plan.steps * 2)
    assert board != Storyboard(longer, (image, image), (Clip.of(frames, 8.0),) * 2)
    with pytest.raises(ValueError, match="per step"):
        Storyboard(longer, (image,), (Clip.of(frames, 8.0),))
    with pytest.raises(ValueError, match="frames must be"):
        Clip.of(image, 8.0)


def test_a_steps_seed_depends_on_its_own_place_alone():
    plan = Plan("g", tuple(KeyStep(text) for text in "abcd"))
    assert [step.seed for step in with_seeds(plan, 7).steps] == [7, 8, 9, 10]
    shorter = Plan("g", plan.steps[:2] + (KeyStep("c", seed=1),))
    assert [step.seed for step in with_seeds(shorter, 7).steps] == [7, 8, 1]
    assert with_seeds(with_seeds(plan, 7), 99) == with_seeds(plan, 7)
