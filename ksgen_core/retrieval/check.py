"""What a skill of a good library keeps to: drawable steps, states that are image prompts, no second telling."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from .lexical import words_of
from .library import Skill, SkillStep

LEAST_STEPS, MOST_STEPS = 2, 7
GOAL_WORDS, STEP_WORDS, STATE_WORDS = (2, 8), (3, 16), (5, 26)
SAME_GOAL, SAME_STEPS = 0.8, 0.75
"""From this overlap of words on two goals say the same; and two programs whose goals share a word."""
NOT_SEEN = re.compile(
    r"\b(wait|gather|read|check|think|repeat|enjoy|ensure|make sure|prepare|remember|decide|ready|you|your)\b", re.I
)
"""Words of what no picture shows, or of talking to a reader."""


def faults(skills: Sequence[Skill]) -> Iterator[tuple[int, str]]:
    """(number of the skill from 0, what is wrong) for everything that breaks the rules."""
    goals = [frozenset(words_of(skill.goal)) for skill in skills]
    programs = [frozenset(w for step in skill.steps for w in words_of(step.text)) for skill in skills]
    for n, skill in enumerate(skills):
        yield from ((n, fault) for fault in _faults(skill))
        for m in range(n):
            if _overlap(goals[n], goals[m]) >= SAME_GOAL:
                yield n, f"its goal says the same as {skills[m].goal!r}"
            elif goals[n] & goals[m] and _overlap(programs[n], programs[m]) >= SAME_STEPS:
                yield n, f"its steps are nearly those of {skills[m].goal!r}"


def _faults(skill: Skill) -> Iterator[str]:
    if not GOAL_WORDS[0] <= len(skill.goal.split()) <= GOAL_WORDS[1]:
        yield f"its goal has {len(skill.goal.split())} word(s), wanted {GOAL_WORDS[0]} to {GOAL_WORDS[1]}"
    if not skill.domain:
        yield "it has no domain"
    if not skill.source or not skill.licence:
        yield "it does not say its source and licence"
    if not LEAST_STEPS <= len(skill.steps) <= MOST_STEPS:
        yield f"it has {len(skill.steps)} step(s), wanted {LEAST_STEPS} to {MOST_STEPS}"
    if len({step.text.casefold() for step in skill.steps}) < len(skill.steps):
        yield "it says one step twice"
    for number, step in enumerate(skill.steps, 1):
        yield from (f"step {number} {fault}" for fault in _faults_of_step(step))


def _faults_of_step(step: SkillStep) -> Iterator[str]:
    words = step.text.split()
    if not STEP_WORDS[0] <= len(words) <= STEP_WORDS[1]:
        yield f"has {len(words)} word(s), wanted {STEP_WORDS[0]} to {STEP_WORDS[1]}: {step.text!r}"
    if found := NOT_SEEN.search(step.text):
        yield f"says {found[0]!r}, which no picture shows: {step.text!r}"
    if len(words_of(step.text)) < 2:
        yield f"names no action with an object: {step.text!r}"
    for side in ("before", "after"):
        text = getattr(step, side)
        if not text:
            yield f"has no sentence for {side}"
        elif not STATE_WORDS[0] <= len(text.split()) <= STATE_WORDS[1] or not text.endswith("."):
            yield f"{side} is no sentence of {STATE_WORDS[0]} to {STATE_WORDS[1]} words: {text!r}"
        elif found := NOT_SEEN.search(text):
            yield f"{side} says {found[0]!r}: {text!r}"
    if step.before and step.before == step.after:
        yield "changes nothing that is seen: before and after are the same"


def _overlap(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b) if a | b else 0.0
