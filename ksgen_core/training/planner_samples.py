"""What the mini MLLM is trained on: pictures of started instances, prompts as retrieval would make them, and replies.

Every sample is drawn from a seed. Only skills of the splits `train` and `mixed` occur, as query or as example.

Legend: N pictures, H = len(HEADS) facts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from random import Random

import numpy as np

from ..checkpoints import read_json, write_atomically, write_json
from ..tabletop.instances import Instance, skills_of
from ..tabletop.mixtures import held_out
from ..tabletop.skills import BY_NAME, Skill, Step, all_texts, unfold
from ..tabletop.started import Started, make_started
from ..types import Example, KeyStep, Plan
from .pool import facts

SPLITS, PICTURES = ("train", "mixed"), 16_000
"""So many started instances of each split, their number being the seed."""
VARIANTS = 24
"""Plans of a skill that examples are drawn from."""
COPYING = 0.35
"""The share of samples that can only be copied: real plans are soon known by heart. STRANGE of it has real steps."""
STRANGE, REPLACED = 0.75, 0.2
"""REPLACED is the share of words that are others in strange steps."""
GREY = 127
"""Of the picture that shows nothing."""


@dataclass(frozen=True)
class Pictures:
    """`images` uint8 [N, 128, 128, 3] (on disk), what each of them shows, and that as `facts` [N, H], see `pool`."""

    images: np.ndarray
    started: list[Started]
    facts: np.ndarray


def build_pictures(folder: Path, count: int = PICTURES, workers: int = 2) -> Pictures:
    """Render `count` started instances of each split into `folder`, unless they are there already."""
    stamp = {"splits": list(SPLITS), "count": count}
    tasks = [(split, seed) for split in SPLITS for seed in range(count)]
    path = folder / "images.npy"
    if not (folder / "stamp.json").exists() or read_json(folder / "stamp.json") != stamp:
        folder.mkdir(parents=True, exist_ok=True)
        images = np.empty((len(tasks), 128, 128, 3), np.uint8)
        with get_context("spawn").Pool(workers) as processes:
            for number, image in enumerate(processes.imap(_render, tasks, chunksize=32)):
                images[number] = image
        write_atomically(path, lambda temporary: np.save(temporary, images))
        write_json(folder / "stamp.json", stamp)
    started = [make_started(*task) for task in tasks]
    return Pictures(np.load(path, mmap_mode="r"), started, np.stack([facts_of(one) for one in started]))


def facts_of(started: Started) -> np.ndarray:
    """Labels [H] of the picture."""
    return facts(Instance(started.run, started.room, (started.shot,)), 0)


def _render(task: tuple[str, int]) -> np.ndarray:
    return make_started(*task).picture()


@dataclass(frozen=True)
class Sample:
    """A prompt and its reply. `marks[i][j]` says of step j of example i whether it is done (1), is not (0), or is of
    another skill (-1); `seen` is False where the picture is to be grey. `skills` are those that occur in it, `copied`
    says that the steps have nothing to do with the picture."""

    goal: str
    examples: tuple[Example, ...]
    done: tuple[str, ...]
    reply: str
    marks: tuple[tuple[int, ...], ...]
    seen: bool
    skills: tuple[Skill, ...]
    copied: bool = False

    @property
    def length(self) -> int:
        """About how long it is, in letters."""
        steps = (step.text for example in self.examples for step in example.plan.steps)
        return sum(map(len, steps)) + len(self.reply)


def reply_of(texts: Sequence[str]) -> str:
    """The reply that a planner is asked for, as the default separators of `json` write it."""
    return json.dumps({"steps": [{"text": text} for text in texts]})


def draw_sample(started: Started, random: Random, count: int) -> Sample:
    """A prompt with `count` examples for this picture, and the reply: the first example of the skill that is asked for,
    without what is done.

    Without examples a trained skill's steps come in their own order and first wording.
    """
    if count and random.random() < COPYING:
        return strange(started, random, count) if random.random() < STRANGE else copying(random, count)
    skill, done = started.run.skill, started.done
    named = skill.name in BY_NAME
    invented = not named and random.random() < 0.6
    goals = _invented_goals(random) if invented else skill.goals
    goal = random.choice(goals)
    if not count and not named:
        count = 1
    examples, programs = [], []
    if count:
        own = 1 if random.random() < 0.25 else random.randint(1, count)
        for plan, steps in _own_plans(skill, goals, goal, own, random):
            examples.append(plan)
            programs.append((skill, steps))
        for other in _others(skill, count - own, random):
            plan, steps = random.choice(_variants(other))
            examples.append(plan)
            programs.append((other, steps))
        order = list(range(len(examples)))
        if random.random() < 0.2:
            random.shuffle(order)
        examples, programs = [examples[k] for k in order], [programs[k] for k in order]
        first = next(k for k, (whose, _) in enumerate(programs) if whose is skill)
        pairs = list(zip(programs[first][1], (step.text for step in examples[first].steps), strict=True))
    else:
        pairs = [(step, step.texts[0]) for step in skill.steps]
    chance = random.random()
    seen, told = chance >= 0.08, done and (chance < 0.04 or chance > 0.94)
    shown = done if seen or told else ()
    marks = tuple(tuple(int(step in shown) if whose is skill else -1 for step in steps) for whose, steps in programs)
    left = [text for step, text in pairs if step not in shown]
    told_texts = tuple(next((t for s, t in pairs if s == step), step.texts[0]) for step in done) if told else ()
    skills = (skill, *(whose for whose, _ in programs))
    return Sample(goal, _as_examples(examples), told_texts, reply_of(left), marks, seen, skills)


def _own_plans(
    skill: Skill, goals: Sequence[str], goal: str, count: int, random: Random
) -> list[tuple[Plan, tuple[Step, ...]]]:
    """Whole plans of the skill, those with the goal's own words first."""
    found = []
    for number in range(count):
        run = unfold(skill, random, skip=0)
        words = goal if random.random() < (0.8 if number == 0 else 0.3) else random.choice(goals)
        found.append((_plan(words, run.texts), run.steps))
    return sorted(found, key=lambda pair: pair[0].goal != goal)


def _others(skill: Skill, count: int, random: Random) -> list[Skill]:
    """Skills for plans that do not help: half the time those that share steps or words with the one asked for."""
    near = [s for s in skills_of("train") if s is not skill and set(s.steps) & set(skill.steps)]
    far = [s for s in skills_of("train") if s is not skill]
    return [random.choice(near if near and random.random() < 0.5 else far) for _ in range(count)]


@cache
def _variants(skill: Skill) -> list[tuple[Plan, tuple[Step, ...]]]:
    runs = [unfold(skill, Random(f"variant/{skill.name}/{k}"), skip=0) for k in range(VARIANTS)]
    return [(_plan(run.goal, run.texts), run.steps) for run in runs]


def _plan(goal: str, texts: Sequence[str]) -> Plan:
    return Plan(goal, tuple(KeyStep(text) for text in texts))


def _as_examples(plans: Sequence[Plan]) -> tuple[Example, ...]:
    return tuple(Example(plan, "tabletop", 1.0) for plan in plans)


@cache
def _words() -> tuple[str, ...]:
    """Every word of this world: so each has been copied at least."""
    return tuple(sorted({word for text in all_texts() for word in re.findall(r"[^\W\d_]+", text)}))


def _made_up(random: Random, fewest: int, most: int) -> str:
    words = [
        random.choice(_words())
        if random.random() < 0.97
        else "".join(random.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(random.randint(2, 6)))
        for _ in range(random.randint(fewest, most))
    ]
    return " ".join(words)


def _invented_goals(random: Random) -> list[str]:
    """Three wordings of a goal that means nothing: most words of the first stay in the others."""
    first = _made_up(random, 3, 7).split()
    found = [" ".join(first)]
    for _ in range(2):
        words = [word if random.random() < 0.75 else random.choice(_words()) for word in first]
        found.append(" ".join(words))
    return found


def copying(random: Random, count: int, steps: int = 6, words: int = 8) -> Sample:
    """Steps of words at random, which no picture shows as done: copying alone, from one of `count` examples.

    A plan has at most so many steps, of at most so many words each.
    """
    plans = []
    for _ in range(count):
        texts = [_made_up(random, 2, words) for _ in range(random.randint(2, steps))]
        plans.append(_plan(_made_up(random, 1, words - 1), texts))
    wanted = 0 if random.random() < 0.7 else random.randrange(count)
    marks = tuple(tuple(0 if k == wanted else -1 for _ in plan.steps) for k, plan in enumerate(plans))
    reply = reply_of([step.text for step in plans[wanted].steps])
    goal = plans[wanted].goal
    return Sample(goal, _as_examples(plans), (), reply, marks, True, (), True)


def strange(started: Started, random: Random, count: int) -> Sample:
    """Real steps of things that the picture does not show, in an order that makes no sense, some of their words others;
    among plans of real skills."""
    away = [
        step
        for skill in skills_of("train")
        for step in skill.steps
        if not {step.target, step.obj, step.beside} & started.shot.places.keys()
    ]
    while True:
        steps = tuple(dict.fromkeys(random.sample(away, random.randint(2, 6))))
        if len(steps) > 1 and not held_out(steps):
            break
    texts = [_other_words(random.choice(step.texts), random) for step in steps]
    goal = random.choice(random.choice(skills_of("train")).goals)
    goal = _made_up(random, 2, 6) if random.random() < 0.3 else _other_words(goal, random)
    examples, whose = [_plan(goal, texts)], [Skill("strange", (goal,), steps)]
    for other in _others(whose[0], count - 1, random):
        examples.append(random.choice(_variants(other))[0])
        whose.append(other)
    order = list(range(count))
    if random.random() < 0.2:
        random.shuffle(order)
    marks = tuple(tuple(-1 if k else 0 for _ in examples[k].steps) for k in order)
    shown = _as_examples([examples[k] for k in order])
    return Sample(goal, shown, (), reply_of(texts), marks, True, tuple(whose), True)


def _other_words(text: str, random: Random) -> str:
    words = text.split()
    return " ".join(random.choice(_words()) if random.random() < REPLACED else word for word in words)
