"""Any edits of a plan, a graph and its results on disk, in any order: the right steps run, and what is served is what
they would make from nothing; a locked step keeps what it has."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule
from small_graph import SmallGraph, graph_of, look, loop_of, out, paint, picture, planned, repeat, run_loop

from ksgen_core.cache import ResultCache
from ksgen_core.loop.run import Loop
from ksgen_core.pixels import cut_to_uint8, from_uint8
from ksgen_core.types import KeyStep

Recipe = tuple[Any, ...]
"""All that makes a step's frames: strength, where it begins (a shade, or the recipe of the step before), its texts and
its seed."""


def made_by(recipe: Recipe) -> torch.Tensor:
    """The frames of a step, made without a loop, as they lie on disk."""
    strength, begins, text, seed, state, was = recipe
    first = made_by(begins)[-1:] if isinstance(begins, tuple) else picture(begins)
    return from_uint8(cut_to_uint8(repeat(paint(first, text, seed, strength, state=state, was=was), 4)))


@dataclass
class Model:
    """What the folder of results should hold: the recipes of whole results, and the last one of every address."""

    made: set[Recipe] = field(default_factory=set)
    last: dict[Recipe, Recipe] = field(default_factory=dict)

    def run(self, machine: Edits, stop_after: int) -> tuple[list[int], list[torch.Tensor | None]]:
        """The steps that are to run (numbers from 1), and what all are to have then."""
        steps, before, times = machine.plan.steps, None, Counter[str]()
        runs: list[tuple[int, Recipe, Recipe, bool, bool]] = []
        for k, step in enumerate(steps):
            times[step.text] += 1
            address = (machine.name, machine.plan.goal, machine.shade, step.text, times[step.text])
            begins = before if machine.carry and before else machine.shade
            was = steps[k - 1] if k else None
            state = step.before or (was and was.after) or ""
            seed = 3 if step.seed is None else step.seed
            recipe = (machine.strength, begins, step.text, seed, state, was.text if was else "")
            if step.lock and self.last.get(address) in self.made:
                recipe = self.last[address]
            there, wanted = recipe in self.made, machine.chosen is None or k in machine.chosen
            if there:
                self.last[address] = recipe
            if there or wanted:
                before = recipe
            runs.append((k, recipe, address, there, wanted))
        ran: list[int] = []
        for k, recipe, address, there, wanted in runs:
            if there or not wanted or len(ran) == stop_after:
                continue
            if recipe not in self.made:
                ran.append(k + 1)
            self.made.add(recipe)
            self.last[address] = recipe
        return ran, [made_by(recipe) if recipe in self.made else None for _, recipe, *_ in runs]


class Edits(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="ksgen-edits-")
        self.cache, self.model = ResultCache(Path(self.folder.name)), Model()
        self.plan, self.carry, self.strength, self.shade, self.name = planned("a", "b", "c"), True, 0.5, 0.5, ""
        self.chosen: set[int] | None = None

    def teardown(self) -> None:
        self.folder.cleanup()

    def now(self) -> tuple[SmallGraph, Loop]:
        more = {"state": out("before"), "was": out("previous_text")}
        steps = "" if self.chosen is None else ",".join(str(k + 1) for k in sorted(self.chosen))
        loop = loop_of(self.plan, image=self.shade, name=self.name, steps=steps)
        return graph_of(self.carry, strength=self.strength, **more), loop

    def swap(self, steps: list[KeyStep]) -> None:
        self.plan = replace(self.plan, steps=tuple(steps))
        self.chosen = None

    @rule(
        at=st.integers(0, 3), text=st.sampled_from("abcd"), after=st.sampled_from([None, "x"]), seed=st.integers(0, 1)
    )
    def edit(self, at, text, after, seed):
        steps = list(self.plan.steps)
        old = steps[at % len(steps)]
        steps[at % len(steps)] = replace(old, text=text, after=after, seed=seed)
        self.swap(steps)

    @rule(at=st.integers(0, 3))
    def lock_or_unlock(self, at):
        steps = list(self.plan.steps)
        old = steps[at % len(steps)]
        steps[at % len(steps)] = replace(old, lock=not old.lock)
        self.swap(steps)

    @rule(text=st.sampled_from("abcd"), lock=st.booleans())
    def append(self, text, lock):
        self.swap([*self.plan.steps[:4], KeyStep(text, lock=lock)])

    @rule(at=st.integers(0, 3))
    def delete(self, at):
        steps = list(self.plan.steps)
        del steps[at % len(steps)]
        self.swap(steps or [KeyStep("a")])

    @rule(at=st.integers(0, 3))
    def move_to_the_front(self, at):
        steps = list(self.plan.steps)
        self.swap([steps.pop(at % len(steps)), *steps])

    @rule(carry=st.booleans(), strength=st.sampled_from([0.5, 0.25]))
    def change_the_graph(self, carry, strength):
        self.carry, self.strength = carry, strength

    @rule(shade=st.sampled_from([0.5, 0.75]), name=st.sampled_from(["", "x"]), goal=st.sampled_from("gh"))
    def change_what_locks_go_by(self, shade, name, goal):
        self.shade, self.name, self.plan = shade, name, replace(self.plan, goal=goal)

    @rule(chosen=st.sets(st.integers(0, 4), min_size=1))
    def choose(self, chosen):
        self.chosen = {k for k in chosen if k < len(self.plan.steps)} or None

    @rule(at=st.integers(0, 3), how=st.sampled_from(["cleared", "damaged"]))
    def lose(self, at, how):
        """The result of one of the steps as they stand."""
        self.run(stop_after=0)
        step = look(*self.now(), self.cache)[at % len(self.plan.steps)]
        if step.result is None:
            return
        lost = next(one for one in self.model.made if made_by(one).equal(self.frames(step.result.folder)))
        self.model.made.remove(lost)
        if how == "cleared":
            self.cache.clear([step.key], locked=True)
            self.model.last = {address: one for address, one in self.model.last.items() if one != lost}
        else:
            (step.result.folder / "clip.mkv").write_bytes(b"")

    def frames(self, folder: Path) -> torch.Tensor:
        from ksgen_core.video import read_video

        return read_video(folder / "clip.mkv")[0]

    @rule(stop_after=st.sampled_from([0, 1, 2, 99, 99]))
    def run(self, stop_after):
        wanted, frames = self.model.run(self, stop_after)
        ran, served = run_loop(*self.now(), self.cache, stop_after)
        assert ran == wanted
        for got, one in zip(served, frames, strict=True):
            assert (got is None and one is None) or (got is not None and one is not None and got.equal(one))


TestEdits = Edits.TestCase
TestEdits.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """No power fails during these tests."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
