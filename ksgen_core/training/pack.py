"""Put what was trained together into a models folder: what ships as `ksgen_core/mini`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from random import Random

import torch

from ..checkpoints import write_atomically, write_folder
from ..clips.wan_diffusers import WanClipModel
from ..keysteps.sdxl_diffusers import KeyStepModel
from ..pixels import from_uint8, to_pil
from ..tabletop.instances import make, plan_of, skills_of
from ..tabletop.skills import BY_NAME, Skill, unfold
from ..types import Plan
from .planner_folder import PlannerModel

DEMO_SKILL, DEMO_SEED = "tea", 13
PLANS_A_SKILL = 6
"""Variants of every trained skill in the library of plans."""


def pack(key_steps: KeyStepModel, clips: WanClipModel, folder: Path, planner: PlannerModel | None = None) -> None:
    """Write the models folder in half precision, with its library of plans and the demo's picture and goal.

    Each stage that is there stays until its successor is whole.
    """
    for stage, model in (("keysteps", key_steps), ("clips", clips)):
        write_folder(folder / stage, partial(model.save, dtype=torch.float16), replace=True)
    if planner is not None:
        pack_planner(planner, folder)
    write_library(folder / "library.jsonl")
    write_demo(folder)


def pack_planner(planner: PlannerModel, folder: Path) -> None:
    """The planner alone. Half the bits, and of these the ones that processors are quick with."""
    write_folder(folder / "planner", partial(planner.save, dtype=torch.bfloat16), replace=True)


def write_library(path: Path) -> None:
    """Plans of the trained skills, several variants each, as ksgen.plan/1, one a line. Unseen skills stay out.

    Whole plans only: the planner of these embedded models does not look which steps are done already.
    """
    lines = [json.dumps(plan.to_json(), sort_keys=True) for plan in library_plans(skills_of("train"))]
    text = "\n".join(lines) + "\n"
    write_atomically(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))


def library_plans(skills: Iterable[Skill]) -> list[Plan]:
    """Several variants of a whole plan for every skill, none twice."""
    plans = {}
    for skill in skills:
        for seed in range(PLANS_A_SKILL):
            plan = plan_of(unfold(skill, Random(f"library/{skill.name}/{seed}"), skip=0))
            plans[plan.goal, tuple(step.text for step in plan.steps)] = plan
    return list(plans.values())


def write_demo(folder: Path) -> None:
    """`demo.png`, a picture that no model was trained on, and `demo.json` with the goal."""
    instance = make("demo", DEMO_SEED, [BY_NAME[DEMO_SKILL]])
    write_atomically(folder / "demo.png", to_pil(from_uint8(instance.first_frame(0))).save)
    text = json.dumps({"goal": instance.run.goal}) + "\n"
    write_atomically(folder / "demo.json", lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))
