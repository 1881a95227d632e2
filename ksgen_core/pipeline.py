"""The product in one sentence: retrieve, plan, draw, render.

Stages are protocols with `__call__`, so a function, a model or a test's lambda fits. Planning, drawing and rendering
are generators: they yield a `Writing` for every token or an `Update` for every sampler update, and a `Planned`,
`KeyImage` or `StepClip` for what is finished, so progress, previews, cancelling (stop iterating) and saving belong to
the caller.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from . import pixels
from .types import Clip, Example, Plan, Query, Storyboard, with_seeds

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Writing:
    """The planner has written `text` so far; token `number` of at most `total`, or 0 of 0 while it waits for others."""

    text: str
    number: int
    total: int


@dataclass(frozen=True)
class Planned:
    """The plan is finished. In the events of a whole run every step has a seed."""

    plan: Plan


@dataclass(frozen=True)
class Update:
    """Sampler update `number` of `total` is done; `preview` is a rough picture `[H, W, 3]` of what comes, or None.

    `steps` are the numbers (from 0) of the key steps in work.
    """

    stage: str
    steps: tuple[int, ...]
    number: int
    total: int
    preview: torch.Tensor | None = None


@dataclass(frozen=True)
class KeyImage:
    """The key image `[H, W, 3]` of step `step` (from 0) is finished."""

    step: int
    image: torch.Tensor


@dataclass(frozen=True)
class StepClip:
    """The clip of step `step` (from 0) is finished."""

    step: int
    clip: Clip


@dataclass(frozen=True)
class Fallback:
    """Memory ran out while `stage` worked at `steps`: it begins these again and takes less, by `rung` of memory.LADDER
    or by drawing fewer together; `text` says what that means."""

    stage: str
    steps: tuple[int, ...]
    rung: str
    text: str


Event = Writing | Planned | Update | KeyImage | StepClip | Fallback


class Retriever(Protocol):
    """Finds plans that resemble the query, the best one first."""

    def __call__(self, query: Query, /) -> Sequence[Example]: ...


class Planner(Protocol):
    """Writes the plan for a query, given examples, the best one first; its last event is `Planned`."""

    def __call__(self, query: Query, examples: Sequence[Example], /) -> Iterator[Writing | Planned]: ...


class Drawer(Protocol):
    """Draws the first picture of every step in `steps` (numbers from 0) from the initial picture and the whole plan.

    `made` are the key images that are there already, for those who draw a step from the one before it.
    """

    def __call__(
        self, image: torch.Tensor, plan: Plan, steps: Sequence[int], made: Mapping[int, torch.Tensor], /
    ) -> Iterator[Update | KeyImage | Fallback]: ...


class Renderer(Protocol):
    """Renders the clip of step `step` (number from 0) from its key image.

    `end` is the next step's key image, for those who end a clip in it; None for the last step.
    """

    def __call__(
        self, image: torch.Tensor, plan: Plan, step: int, end: torch.Tensor | None, /
    ) -> Iterator[Update | StepClip | Fallback]: ...


@dataclass(frozen=True)
class Made:
    """What is there already, by the number (from 0) of the step: none of it is made again."""

    key_images: Mapping[int, torch.Tensor] = field(default_factory=dict)
    clips: Mapping[int, Clip] = field(default_factory=dict)


def run(
    query: Query,
    retrieve: Retriever,
    make_plan: Planner,
    draw: Drawer,
    render: Renderer,
    *,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    chain: bool = False,
    made: Made | None = None,
    end_image: torch.Tensor | None = None,
) -> Generator[Event, None, None]:
    """The whole way from a query to its clips, one event at a time; stop iterating to cancel.

    Step k gets the seed `seed + k` unless the plan gives it one. `size` (height, width) is that of the key images;
    without it they have the initial picture's. The first key image is the initial picture. With `chain` nothing is
    drawn: the last frame of a clip is the next key image (the baseline `last_frame`). `end_image` is what the last clip
    ends in, for renderers that end clips in the next key image. Key images lie on the 8-bit grid, so that a run that is
    resumed from files equals one that is not.
    """
    plan: Plan | None = None
    for event in make_plan(query, retrieve(query)):
        if isinstance(event, Planned):
            plan = with_seeds(event.plan, seed)
            event = Planned(plan)
        yield event
    if plan is None:
        raise ValueError("the planner ended without a Planned event")

    picture = pixels.one_picture(query.image)
    image = pixels.fit(picture, *size) if size else pixels.on_8_bit_grid(picture)
    made = made or Made()
    images, clips = dict(made.key_images), made.clips
    if 0 not in images:
        images[0] = image
        yield KeyImage(0, image)
    missing = [] if chain else [k for k in range(len(plan.steps)) if k not in images]
    if missing:
        for event in draw(image, plan, missing, dict(images)):
            if isinstance(event, KeyImage):
                event = KeyImage(event.step, pixels.on_8_bit_grid(event.image))
                images[event.step] = event.image
            yield event
    for k in range(len(plan.steps)):
        if k in clips and (not chain or k + 1 == len(plan.steps) or k + 1 in images):
            continue
        end = images.get(k + 1, end_image) if not chain else end_image if k + 1 == len(plan.steps) else None
        for event in render(images[k], plan, k, end):
            if chain and isinstance(event, StepClip) and k + 1 < len(plan.steps) and k + 1 not in images:
                # Before the clip itself: a clip file is lossy, so the picture could not be had from it exactly.
                images[k + 1] = pixels.on_8_bit_grid(event.clip.frames[-1])
                yield KeyImage(k + 1, images[k + 1])
            yield event


def collect(events: Iterable[Event], made: Made | None = None) -> Storyboard:
    """The storyboard that a whole run's events, with what was made before, come to."""
    made = made or Made()
    plan, images, clips = None, dict(made.key_images), dict(made.clips)
    for event in events:
        if isinstance(event, Planned):
            plan = event.plan
        elif isinstance(event, KeyImage):
            images[event.step] = event.image
        elif isinstance(event, StepClip):
            clips[event.step] = event.clip
    if plan is None:
        raise ValueError("the events hold no Planned: they are not those of a whole run")
    steps = range(len(plan.steps))
    return Storyboard(plan, tuple(images[k] for k in steps), tuple(clips[k] for k in steps))
