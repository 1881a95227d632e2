"""The skill library: what people know how to do, one `ksgen.skill/1` JSON object a line.

{"kind": "ksgen.skill/1", "goal": "pump up a bicycle tyre", "aliases": ["inflate a bike tire"], "domain": "bicycle",
 "steps": [{"text": ..., "before": ..., "after": ..., "seconds": 4.0, "optional": true}, ...],
 "source": "ksgen:bicycle/1", "licence": "Apache-2.0"}

`goal` and `steps` with their `text` must be there, the rest may be left out. Before and after are sentences on what is
seen, fit to be image prompts. A library may hold several skills with one goal: people do it in several ways.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..checkpoints import read_json_lines, write_atomically
from ..errors import KSGenError
from ..types import PLAN_KIND, KeyStep, Plan, check_fields

SKILL_KIND = "ksgen.skill/1"
LIBRARY_FILES = "*.jsonl"
BUILT_IN = Path(__file__).parent / "skills"
"""The library that ships with the pack: one file a domain."""


@dataclass(frozen=True)
class SkillStep:
    """One step of a skill: what is done, what is seen before and after, how long it takes to show, whether many leave
    it out."""

    text: str
    before: str | None = None
    after: str | None = None
    seconds: float | None = None
    optional: bool = False

    def __post_init__(self) -> None:
        # The rules for text and seconds are a key step's.
        self.key_step()

    def key_step(self) -> KeyStep:
        return KeyStep(self.text, self.before, self.after, self.seconds)


@dataclass(frozen=True)
class Skill:
    """How something is done: ordered steps to a goal, with other words for the goal and where it is from."""

    goal: str
    steps: tuple[SkillStep, ...]
    aliases: tuple[str, ...] = ()
    domain: str = ""
    source: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        self.plan()

    def plan(self) -> Plan:
        """All its steps as a plan."""
        return Plan(
            self.goal, tuple(s.key_step() for s in self.steps), (self.source,) if self.source else (), "library"
        )

    def to_json(self) -> dict[str, Any]:
        """A `ksgen.skill/1` document; `from_json` gives an equal skill back."""
        steps = [{f.name: v for f in fields(s) if (v := getattr(s, f.name)) != f.default} for s in self.steps]
        given = {"kind": SKILL_KIND, "goal": self.goal, "aliases": list(self.aliases), "domain": self.domain}
        given |= {"steps": steps, "source": self.source, "licence": self.licence}
        return {name: value for name, value in given.items() if value}

    @classmethod
    def from_json(cls, data: Any) -> Skill:
        """Read a `ksgen.skill/1` document strictly, or a `ksgen.plan/1` one as a skill without other names.

        Raises `KSGenError` for a missing, extra or wrongly typed field.
        """
        if isinstance(data, dict) and data.get("kind") == PLAN_KIND:
            return cls.of_plan(Plan.from_json(data))
        required = {"kind": str, "goal": str, "steps": list}
        optional = {"aliases": list, "domain": str, "source": str, "licence": str}
        document = check_fields(data, "The skill", required, optional)
        if document.pop("kind") != SKILL_KIND:
            raise KSGenError(f"The skill's kind is {data['kind']!r}, wanted {SKILL_KIND!r}.")
        parts = {"before": str, "after": str, "seconds": float, "optional": bool}
        steps = (
            SkillStep(**check_fields(item, f"Step {number} of the skill", {"text": str}, parts))
            for number, item in enumerate(document.pop("steps"), 1)
        )
        aliases = document.pop("aliases", [])
        if not all(isinstance(alias, str) and alias.strip() for alias in aliases):
            raise KSGenError(f"The skill's aliases must be a list of texts that are not empty, got {aliases!r}.")
        return cls(steps=tuple(steps), aliases=tuple(aliases), **document)

    @classmethod
    def of_plan(cls, plan: Plan) -> Skill:
        """A plan as a skill without other names, from the plan's first source; seeds and locks are a run's own."""
        steps = (SkillStep(s.text, s.before, s.after, s.seconds) for s in plan.steps)
        return cls(plan.goal, tuple(steps), source=plan.sources[0] if plan.sources else "")


def read_library(*places: str | Path) -> tuple[Skill, ...]:
    """The skills of these JSON Lines files and of all such files in these folders, in the order of their names.

    Raises `KSGenError` naming file and line of what cannot be read.
    """
    broken = "Line {number} of {path} is no skill"
    return tuple(
        skill
        for place in places
        for path in library_files(place)
        for skill in read_json_lines(path, "The skill library", Skill.from_json, broken)
    )


def library_files(place: str | Path) -> list[Path]:
    """The library files of a folder, or the one file. Raises `KSGenError` if there is none."""
    path = Path(place)
    found = sorted(path.glob(LIBRARY_FILES)) if path.is_dir() else [path]
    if not found or not found[0].is_file():
        raise KSGenError(f"{path} holds no skill library. Give a {LIBRARY_FILES} file, or a folder with such files.")
    return found


def write_library(skills: Iterable[Skill], path: str | Path) -> int:
    """Write the skills as JSON Lines, whole or not at all, and give their number."""
    lines = [json.dumps(skill.to_json(), ensure_ascii=False) + "\n" for skill in skills]
    write_atomically(path, lambda temporary: Path(temporary).write_text("".join(lines), encoding="utf-8"))
    return len(lines)
