"""Retrieval by words finds the skill that is meant, gives distinct plans, and says so when there is none."""

from __future__ import annotations

import pytest
import torch

from ksgen_core import build
from ksgen_core.errors import KSGenError
from ksgen_core.planning.consensus import Consensus
from ksgen_core.retrieval.lexical import SAME, step_words_of, words_of
from ksgen_core.retrieval.library import BUILT_IN, Skill, read_library
from ksgen_core.retrieval.search import SkillSearch
from ksgen_core.types import KeyStep, Plan, Query

IMAGE = torch.zeros(32, 32, 3)


def plan(goal: str, *texts: str, **more) -> Plan:
    return Plan(goal, tuple(KeyStep(text) for text in texts), **more)


LIBRARY = (
    plan("make a mug of tea", "put the tea bag into the mug", "pour hot water from the kettle", sources=("tea 1",)),
    plan("make a mug of tea", "pour hot water from the kettle", "put the tea bag into the mug", sources=("tea 2",)),
    plan("make a mug of tea", "pour hot water from the kettle", "put the tea bag into the mug", sources=("tea 3",)),
    plan("fry an egg", "put the pan on the stove", "crack the egg into the pan", sources=("egg",)),
    plan("chop a carrot", "put the carrot on the board", "cut the carrot with the knife", sources=("carrot",)),
    plan("light the candle", "take the lighter", "light the candle with the lighter", sources=("candle",)),
    plan("water the plant", "take the watering can", "pour water on the plant", sources=("plant",)),
)


def find(goal: str, count: int = 4):
    return SkillSearch([Skill.of_plan(plan) for plan in LIBRARY], count=count)(Query(IMAGE, goal))


@pytest.mark.parametrize(
    ("goal", "source"),
    [
        ("make a cup of tea", "tea"),
        ("Brewing tea!", "tea"),
        ("I want to fry some eggs", "egg"),
        ("slice carrots", "carrot"),
        ("cutting the carrot", "carrot"),
        ("lighting candles, please", "candle"),
        ("how do I water plants?", "plant"),
    ],
)
def test_the_meant_skill_comes_first(goal, source):
    examples = find(goal)
    assert examples[0].source.startswith(source)
    assert [e.score for e in examples] == sorted((e.score for e in examples), reverse=True)


def test_plans_are_distinct_and_the_commonest_order_leads():
    examples = find("make tea")
    assert [example.source for example in examples[:2]] == ["tea 2", "tea 1"]
    assert [example.count for example in examples[:2]] == [2, 1]
    assert len({example.plan.steps for example in examples}) == len(examples)
    assert len(find("make tea", count=1)) == 1


@pytest.mark.parametrize("goal", ["repair a bicycle", "knit a red scarf", "of the and", "?!", "泡茶"])
def test_a_goal_that_the_library_lacks_is_refused(goal):
    with pytest.raises(KSGenError, match="No step found") as error:
        find(goal)
    assert repr(goal) in str(error.value)


def test_an_empty_library_is_refused():
    with pytest.raises(KSGenError, match="empty"):
        SkillSearch(())


def test_endings_and_small_words_do_not_count():
    assert words_of("Slicing the carrots") == words_of("slice a carrot") == words_of("sliced carrot")
    assert words_of("glasses") == words_of("glass") and words_of("stirring") == words_of("stir")
    assert words_of("how do I make it") == []


def test_the_planner_makes_a_plan_of_the_examples_with_the_querys_goal():
    query = Query(IMAGE, "a cup of tea")
    made = next(Consensus(words_of)(query, find(query.goal))).plan
    assert made.goal == "a cup of tea" and made.planner.startswith("retrieval")
    assert made.steps in (LIBRARY[0].steps, LIBRARY[1].steps) and made.sources[0].startswith("tea")


TABLETOP = sorted({(plan.goal, plan.sources[0]) for plan in build.embedded().library()})


def test_tabletop_goals_find_tabletop_plans_among_everyday_skills():
    own = map(Skill.of_plan, build.embedded().library())
    together = SkillSearch((*own, *read_library(BUILT_IN)))
    found = {goal: together.find(goal)[0].source for goal, _ in TABLETOP}
    assert found == dict(TABLETOP) and len(found) > 50
    assert together.find("pump up a bike tyre")[0].source.startswith("ksgen:bicycle")


def test_a_models_folders_own_plans_come_before_everyday_skills():
    retrieve, alone = build.retriever(build.embedded()), build.retriever(build.embedded(), ())
    for goal, source in TABLETOP:
        examples = retrieve(Query(IMAGE, goal))
        assert examples[0].source == source and {e.source.split(":")[0] for e in examples} == {"tabletop"}
        assert alone(Query(IMAGE, goal))[0].source == source
    assert retrieve(Query(IMAGE, "pump up a bike tyre"))[0].source.startswith("ksgen:bicycle")
    # Tabletop has "fit a new light bulb", which alone would be near enough.
    assert retrieve(Query(IMAGE, "fitting a new battery in the car"))[0].source.startswith("ksgen:car")
    with pytest.raises(KSGenError, match="No step found"):
        alone(Query(IMAGE, "pump up a bike tyre"))


@pytest.mark.parametrize(
    "word", "string ceiling dressing painting earring speed cake glass tape slice dish egg".split()
)
def test_one_and_several_of_a_thing_are_one_word(word):
    several = word + ("es" if word.endswith(("ss", "sh")) else "s")
    assert words_of(word) == words_of(several)


def test_words_for_one_thing_are_written_as_they_are_compared():
    assert words_of("saute onions") == words_of("fry onions")
    assert all(words_of(word) == [same] for word, same in SAME.items())


def test_where_to_tells_steps_apart_and_not_goals():
    assert step_words_of("lift the bike into the car") != step_words_of("lift the bike from the car")
    assert step_words_of("put a bag in the mug") == step_words_of("put the bag into a mug")
    assert words_of("get into the car") == words_of("get in a car")
