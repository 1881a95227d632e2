"""The nouns: what the stages hand to each other.

Pictures are `torch.Tensor` float32 RGB 0..1, `[H, W, 3]`, films `[F, H, W, 3]`, on the CPU.
torch itself is not imported here, so that a plan can be read without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import KSGenError

if TYPE_CHECKING:
    import torch

PLAN_KIND = "ksgen.plan/1"
MAX_STEPS = 999


@dataclass(frozen=True)
class KeyStep:
    """One key step of a plan.

    `before` and `after` are optional sentences on the state of the scene, `seconds` the wished length of the clip,
    `seed` fixes the random numbers of this step alone, `lock` asks every stage to keep what it already made.
    """

    text: str
    before: str | None = None
    after: str | None = None
    seconds: float | None = None
    seed: int | None = None
    lock: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not self.text.strip():
            raise KSGenError(f"A key step needs a text that is not empty, got {self.text!r}. Describe what is done.")
        for text, name in ((self.text, "text"), (self.before, "state before"), (self.after, "state after")):
            _check_whole(text, f"The {name} of a key step")
        if self.seconds is not None and not 0 < self.seconds <= 600:
            raise KSGenError(f"A key step lasts more than 0 and at most 600 seconds, got {self.seconds}.")
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise KSGenError(f"A step's seed is a whole number from 0 to 2**64 - 1, got {self.seed}.")


@dataclass(frozen=True)
class Plan:
    """Ordered key steps that reach `goal`, with where they come from."""

    goal: str
    steps: tuple[KeyStep, ...]
    sources: tuple[str, ...] = ()
    planner: str = "by hand"

    def __post_init__(self) -> None:
        if not isinstance(self.goal, str) or not self.goal.strip():
            raise KSGenError("The goal is empty. Say in a few words which skill is wanted, e.g. 'make a cup of tea'.")
        for text, name in ((self.goal, "goal"), (self.planner, "planner"), *((one, "source") for one in self.sources)):
            _check_whole(text, f"The {name} of a plan")
        if not self.steps:
            raise KSGenError(f"The plan for {self.goal!r} has no steps. A plan needs at least one key step.")
        if len(self.steps) > MAX_STEPS:
            raise KSGenError(f"The plan has {len(self.steps)} steps; at most {MAX_STEPS} are allowed. Split the skill.")

    def to_json(self) -> dict[str, Any]:
        """The plan as a `ksgen.plan/1` document; `from_json` gives an equal plan back."""
        steps = [
            {f.name: value for f in fields(step) if (value := getattr(step, f.name)) != f.default}
            for step in self.steps
        ]
        return {
            "kind": PLAN_KIND,
            "goal": self.goal,
            "steps": steps,
            "sources": list(self.sources),
            "planner": self.planner,
        }

    @classmethod
    def from_json(cls, data: Any) -> Plan:
        """Read a `ksgen.plan/1` document strictly: a missing, extra or wrongly typed field raises `KSGenError`."""
        required = {"kind": str, "goal": str, "steps": list}
        document = check_fields(data, "The plan", required, {"sources": list, "planner": str})
        if document["kind"] != PLAN_KIND:
            raise KSGenError(f"The plan's kind is {document['kind']!r}, wanted {PLAN_KIND!r}.")
        steps = []
        for number, item in enumerate(document["steps"], 1):
            optional = {"before": str, "after": str, "seconds": float, "seed": int, "lock": bool}
            steps.append(KeyStep(**check_fields(item, f"Step {number} of the plan", {"text": str}, optional)))
        sources = document.get("sources", [])
        if not all(isinstance(source, str) for source in sources):
            raise KSGenError(f"The plan's sources must be a list of strings, got {sources!r}.")
        return cls(document["goal"], tuple(steps), tuple(sources), document.get("planner", "by hand"))


def _check_whole(text: str | None, what: str) -> None:
    """Raise `KSGenError` for half a surrogate pair, which JSON and Python's texts can hold and no file or film can."""
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        raise KSGenError(
            f"{what} holds half a character, U+{ord(error.object[error.start]):04X}: {text!r}. Write it anew; that is "
            "left of an emoji that was cut in two."
        ) from error


def check_fields(data: Any, what: str, required: Mapping[str, type], optional: Mapping[str, type]) -> dict[str, Any]:
    """The fields of a JSON object, after a strict look at their names and types."""
    if not isinstance(data, dict):
        raise KSGenError(f"{what} must be a JSON object, got {type(data).__name__}.")
    known = {**required, **optional}
    if missing := sorted(required.keys() - data.keys()):
        raise KSGenError(f"{what} lacks {', '.join(missing)}. Add the missing field(s); known are {', '.join(known)}.")
    if extra := sorted(map(str, data.keys() - known.keys())):
        raise KSGenError(f"{what} has unknown field(s) {', '.join(extra)}. Remove them; known are {', '.join(known)}.")
    checked = {}
    for name, value in data.items():
        wanted = known[name]
        if wanted is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
            raise KSGenError(f"{what}: {name} must be of type {wanted.__name__}, got {value!r}.")
        checked[name] = value
    return checked


@dataclass(frozen=True, eq=False)
class Query:
    """What the user asks: the initial picture `[H, W, 3]` and the description of the skill."""

    image: torch.Tensor
    goal: str

    def __post_init__(self) -> None:
        if not self.goal.strip():
            raise KSGenError("The goal is empty. Say in a few words which skill is wanted, e.g. 'make a cup of tea'.")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Query):
            return NotImplemented
        return self.goal == other.goal and self.image.equal(other.image)

    def to_json(self) -> dict[str, Any]:
        """What survives JSON: the goal. The picture travels beside it."""
        return {"goal": self.goal}

    @classmethod
    def from_json(cls, data: Any, image: torch.Tensor) -> Query:
        """The query of a JSON object and its picture. Raises `KSGenError` for missing or extra fields."""
        return cls(image, **check_fields(data, "The query", {"goal": str}, {}))


@dataclass(frozen=True)
class Example:
    """A retrieved plan, where it comes from, how well it fits (higher is better), and how many plans of the library
    have the same steps."""

    plan: Plan
    source: str
    score: float
    count: int = 1

    def to_json(self) -> dict[str, Any]:
        return {"plan": self.plan.to_json(), "source": self.source, "score": self.score, "count": self.count}

    @classmethod
    def from_json(cls, data: Any) -> Example:
        """Read what `to_json` wrote. Raises `KSGenError` for missing, extra or wrongly typed fields."""
        required = {"plan": dict, "source": str, "score": float}
        document = check_fields(data, "The example", required, {"count": int})
        return cls(Plan.from_json(document.pop("plan")), **document)


@dataclass(frozen=True, eq=False)
class Sound:
    """What is heard with a clip in memory: samples `[C, N]`, float32 -1..1 on the CPU, `rate` of them a second."""

    samples: torch.Tensor
    rate: int

    def __post_init__(self) -> None:
        if self.samples.ndim != 2 or not len(self.samples) or self.rate < 1:
            got = f"{tuple(self.samples.shape)} at {self.rate}"
            raise ValueError(f"sound is [C, N] at a rate of 1 or more, got {got}")


@dataclass(frozen=True, eq=False)
class Clip:
    """The film of one step: frames `[F, H, W, 3]` at `fps`, in memory or, read when asked for, in a video file.

    `sound` is that of a clip in memory; a file has its own. Two clips are equal if their rate and their frames are.
    What survives JSON is the storyboard folder's file. Who reads the file itself calls `check` first: it raises
    `KSGenError` if the file is not what was once made.
    """

    fps: float
    read: Callable[[], torch.Tensor] = field(repr=False)
    path: Path | None = None
    check: Callable[[], object] = field(default=lambda: None, repr=False)
    sound: Sound | None = field(default=None, repr=False)

    @property
    def frames(self) -> torch.Tensor:
        return self.read()

    @classmethod
    def of(cls, frames: torch.Tensor, fps: float, sound: Sound | None = None) -> Clip:
        if frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
            raise ValueError(f"frames must be [F, H, W, 3], got {tuple(frames.shape)}")
        return cls(fps, lambda: frames, sound=sound)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Clip):
            return NotImplemented
        return self.fps == other.fps and self.frames.equal(other.frames)


@dataclass(frozen=True, eq=False)
class Storyboard:
    """A plan with one key image and one clip per step."""

    plan: Plan
    key_images: tuple[torch.Tensor, ...]
    clips: tuple[Clip, ...]

    def __post_init__(self) -> None:
        got = (len(self.plan.steps), len(self.key_images), len(self.clips))
        if len(set(got)) != 1:
            raise ValueError(f"a storyboard needs a key image and a clip per step; got steps, images, clips = {got}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Storyboard):
            return NotImplemented
        # Equal plans have as many steps, so the pictures pair up.
        return (
            self.plan == other.plan
            and all(a.equal(b) for a, b in zip(self.key_images, other.key_images, strict=True))
            and self.clips == other.clips
        )


def with_seeds(plan: Plan, seed: int) -> Plan:
    """The plan with a seed for every step that has none: step k gets `seed + k`, whatever the other steps are."""
    steps = (replace(s, seed=(seed + k) % 2**64) if s.seed is None else s for k, s in enumerate(plan.steps))
    return replace(plan, steps=tuple(steps))
