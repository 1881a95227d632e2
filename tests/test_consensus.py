"""The consensus: what the plans of one skill agree on, whatever order the examples come in, and nothing of others."""

from __future__ import annotations

import random
from itertools import combinations, permutations
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ksgen_core.errors import KSGenError
from ksgen_core.orders import edit_score, edit_scores, iou, ious
from ksgen_core.planning.alignment import aligned
from ksgen_core.planning.consensus import Consensus, best_order
from ksgen_core.retrieval.lexical import step_words_of, words_of
from ksgen_core.retrieval.library import BUILT_IN, read_library
from ksgen_core.types import Example, KeyStep, Plan, Query

TABLETOP = Path(__file__).resolve().parent.parent / "ksgen_core" / "mini" / "library.jsonl"
WORDS = {"a": "boil water", "b": "warm the pot", "c": "add tea leaves", "d": "pour the water", "e": "add honey"}
ORDERS = st.lists(st.sampled_from("abcde"), min_size=1, max_size=9).map("".join)
EXAMPLES = st.lists(st.tuples(ORDERS, st.integers(1, 4)), min_size=1, max_size=9)


def example(letters: str, source: str = "s", score: float = 1.0, count: int = 1, goal: str = "brew tea") -> Example:
    return Example(Plan(goal, tuple(KeyStep(WORDS.get(x, x)) for x in letters)), source, score, count)


def planned(*examples: Example, goal: str = "brew tea", **more) -> Plan:
    return Consensus(words_of, **more).plan(goal, examples)


def letters(plan: Plan) -> str:
    back = {text: letter for letter, text in WORDS.items()}
    return "".join(back.get(step.text, step.text) for step in plan.steps)


@settings(deadline=None, max_examples=40)
@given(ORDERS)
def test_one_plan_gives_that_plan_cut_to_the_most(order):
    plan = planned(example(order), most=9)
    assert letters(plan) == order and plan.sources == ("s",)
    cut = letters(planned(example(order), most=4))
    assert len(cut) <= 4 and (len(order) <= 4) == (cut == order)
    left = iter(order)
    assert all(letter in left for letter in cut), "what is left keeps its order"


@settings(deadline=None, max_examples=40)
@given(EXAMPLES, st.randoms())
def test_the_order_of_the_examples_does_not_matter(drawn, chance: random.Random):
    examples = [example(order, f"s{n}", 1 / (1 + n), count) for n, (order, count) in enumerate(drawn)]
    mixed = examples[:]
    chance.shuffle(mixed)
    assert planned(*mixed) == planned(*examples)


@settings(deadline=None, max_examples=40)
@given(EXAMPLES)
@hypothesis.example([("b", 2), ("aaaaaabc", 1)])  # none is similar: the sources are those of one alone
def test_an_example_that_counts_n_plans_is_n_examples(drawn):
    counted = planned(*(example(order, count=count) for order, count in drawn))
    repeated = planned(*(example(order) for order, count in drawn for _ in range(count)))
    assert counted == repeated


@settings(deadline=None, max_examples=40)
@given(EXAMPLES)
def test_the_result_is_bounded_and_made_of_the_examples_steps(drawn):
    plan = planned(*(example(order, count=count) for order, count in drawn), fewest=2, most=4)
    assert min(2, max(len(order) for order, _ in drawn)) <= len(plan.steps) <= 4
    assert set(letters(plan)) <= set("".join(order for order, _ in drawn))
    name, _, confidence = plan.planner.rpartition(" ")
    assert name == "retrieval, confidence" and 0 < float(confidence) < 1


def test_the_majority_beats_a_nearest_outlier():
    outlier = example("eda", "odd", score=1.2)
    others = [example("abcd", "1"), example("abcd", "2"), example("acd", "3"), example("abcde", "4")]
    plan = planned(outlier, *others)
    assert letters(plan) == "abcd"
    assert "odd" not in plan.sources and plan.sources[:2] == ("1", "2")


def test_the_consensus_can_be_a_plan_that_no_example_has():
    """Everyone leaves out another step; together they know all of them."""
    assert (
        letters(planned(example("bcd", "1"), example("acd", "2"), example("abd", "3"), example("abc", "4"))) == "abcd"
    )


def test_a_better_score_weighs_more():
    near, far = example("abc", "near", 1.0), example("ade", "far", 0.4)
    assert letters(planned(near, far)) == "abc"
    assert letters(planned(example("abc", "near", 0.4), example("ade", "far", 1.0))) == "ade"
    # Scores need not be positive: cosines are not.
    assert letters(planned(example("abc", "1", -0.2), example("abc", "2", -0.3), example("ade", "3", -0.1))) == "abc"


def test_no_step_of_another_skill_leaks():
    tea = [example("ac", "tea 1", 0.9), example("abc", "tea 2", 0.8), example("acd", "tea 3", 0.8)]
    soup = [example("ade", f"soup {n}", 0.7, count=9, goal="cook a soup") for n in range(5)]
    assert planned(*tea, *soup) == planned(*tea)
    assert planned(*soup, *tea) == planned(*tea), "the query's own words decide"
    assert set(planned(*tea, *soup, goal="heat a broth").sources) <= {e.source for e in tea}, "else the best score does"


def test_goals_that_say_the_same_are_one_skill():
    plan = planned(example("abcd", "1", goal="make a cup of tea"), example("abd", "2", goal="brew a mug of tea"))
    assert set(plan.sources) == {"1", "2"}


def test_more_plans_that_agree_are_more_certain_and_disagreement_less():
    def confidence(*examples: Example) -> float:
        return float(planned(*examples).planner.split()[-1])

    one, three = confidence(example("abc")), confidence(example("abc", count=3))
    assert (one, three) == (0.5, 0.75)
    assert confidence(example("abc"), example("cab"), example("de")) < three


def timed(order: str, start: float) -> Example:
    """An example whose steps can be told apart by their seconds; they have seeds and locks of their own."""
    steps = (KeyStep(WORDS[x], seconds=start + k, seed=k, lock=True) for k, x in enumerate(order))
    return Example(Plan("brew tea", tuple(steps)), order, 1.0)


@pytest.mark.parametrize("order", ["abcd", "abab", "aaaaa"])
def test_steps_are_those_of_the_example_without_their_seeds_and_locks(order):
    given_one = timed(order, 1)
    plan = planned(given_one)
    assert [step.seconds for step in plan.steps] == [1 + k for k in range(len(order))]
    assert all(step.seed is None and not step.lock for step in plan.steps)
    assert given_one == timed(order, 1), "what was given is as it was"


def test_a_step_comes_from_a_plan_where_its_neighbours_are_the_same():
    """Its state sentences are true there. Only in "bcd" stands c between b and d as it does in the result."""
    plan = planned(timed("acd", 10), timed("abd", 20), timed("bcd", 30), timed("abc", 40))
    assert letters(plan) == "abcd" and plan.steps[2].seconds == 31


def plan_of(*steps: KeyStep | str) -> Plan:
    return Plan("brew tea", tuple(KeyStep(step) if isinstance(step, str) else step for step in steps))


def test_steps_are_aligned_by_their_words_or_by_both_states():
    def nodes(*plans: Plan) -> list[tuple[int, ...]]:
        return aligned(plans, [1.0] * len(plans), words_of)

    assert len({*nodes(plan_of("Put the tea in the pot"), plan_of("putting tea into a pot"))}) == 1
    assert len({*nodes(plan_of("open the cover"), plan_of("close the cover"))}) == 2
    assert len({*nodes(plan_of("cut the wire"), plan_of("wire the cut"))}) == 2
    on = [KeyStep(text, "The lamp is dark.", "The lamp is lit.") for text in ("press the switch", "turn the knob")]
    assert len({*nodes(plan_of(on[0]), plan_of(on[1]))}) == 1
    assert nodes(plan_of(on[0], on[1])) != nodes(plan_of(on[0], on[0])), "two texts of one plan are two steps"
    assert len({*nodes(plan_of("泡茶"), plan_of("加水"), plan_of("!?"), plan_of("?!"))}) == 4


@settings(deadline=None, max_examples=40)
@given(st.lists(st.permutations(range(6)).map(lambda order: tuple(order[:4])), min_size=2, max_size=6))
def test_two_nodes_stand_together_only_as_they_do_in_some_plan(orders):
    """So two ways of doing or of saying one step, each in half of the plans, never stand in one plan."""
    known = {pair for order in orders for pair in combinations(order, 2)}
    assert set(combinations(best_order(orders, [1.0] * len(orders), 1, 6), 2)) <= known


@settings(deadline=None, max_examples=40)
@given(st.lists(ORDERS, min_size=1, max_size=5), st.lists(ORDERS, min_size=1, max_size=5))
def test_comparisons_of_many_are_those_of_two(a, b):
    def numbers(orders: list[str]) -> list[tuple[int, ...]]:
        return [tuple(ord(letter) - ord("a") for letter in order) for order in orders]

    edit, common = edit_scores(numbers(a), numbers(b)), ious(numbers(a), numbers(b))
    assert np.allclose(edit, [[edit_score(x, y) for y in b] for x in a])
    assert np.allclose(common, [[iou(x, y) for y in b] for x in a])


def test_the_search_finds_what_trying_all_paths_finds():
    """Every order of up to four of four nodes is tried; the graph allows all of them."""
    chance = random.Random(4)
    every = [order for n in range(1, 5) for order in permutations(range(4), n)]
    missed = 0
    for _ in range(20):
        orders = [*every[-24:], *chance.choices(every, k=9)]
        weights = [0.01] * 24 + [chance.random() for _ in range(9)]

        def value(order, orders=orders, weights=weights):
            alike = [(edit_score(order, o) + iou(order, o)) / 2 + 0.2 * (o == order) for o in orders]
            return sum(s * w for s, w in zip(alike, weights, strict=True))

        missed += value(best_order(orders, weights, 1, 4)) < max(map(value, every)) - 1e-6
    assert missed <= 1


@pytest.mark.parametrize("place", [TABLETOP, BUILT_IN], ids=["tabletop", "everyday"])
def test_skills_of_the_libraries_are_not_blended(place):
    """With plans of many skills as examples: only steps of the one that is meant, and its plan if it has one."""
    skills = read_library(place)[::5]
    examples = [Example(skill.plan(), f"{n}", 0.3) for n, skill in enumerate(skills)]
    for skill in skills[:12]:
        own = [s for s in skills if set(words_of(s.goal)) == set(words_of(skill.goal))]
        made = Consensus(words_of).plan(skill.goal, examples)
        assert {step.text for step in made.steps} <= {step.text for s in own for step in s.steps}
        if len(own) == 1:
            assert made.steps == skill.plan().steps


def test_as_a_stage_it_yields_one_plan_with_the_querys_goal():
    (event,) = Consensus(words_of)(Query(torch.zeros(8, 8, 3), "tea, please"), [example("abc")])
    assert event.plan.goal == "tea, please" and letters(event.plan) == "abc"


def test_no_example_and_impossible_bounds_are_refused():
    with pytest.raises(KSGenError, match="No step found for the goal 'brew tea'"):
        planned()
    with pytest.raises(KSGenError, match="got 3 to 2"):
        Consensus(words_of, 3, 2)


def test_repeats_go_only_as_long_as_enough_steps_are_left():
    assert len(planned(example("aaaaa"), fewest=2, most=4).steps) == 4
    assert letters(planned(example("ababc"), fewest=2, most=3)) == "abc"


def test_a_plan_names_at_least_the_most_similar_source():
    assert len(planned(example("abc", "x"), example("de", "y"), fewest=1, most=1).sources) >= 1


def test_into_and_from_are_two_steps():
    def one(text: str) -> Plan:
        return Plan("move the bike", (KeyStep(text),))

    plans = [one("lift the bike into the car"), one("lift the bike from the car"), one("lift a bike in the car")]
    into, out, again = aligned(plans, [1.0] * 3, step_words_of)
    assert into == again != out
