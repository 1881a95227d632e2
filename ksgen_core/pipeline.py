"""The product in one sentence: retrieve, plan, draw, render.

Stages are protocols with `__call__`, so a function, a model or a test's lambda fits. Drawing and rendering are
generators: they yield an `Update` for every sampler update and a `Done` for every finished step, so progress,
previews, cancelling (stop iterating) and saving belong to the caller.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from .types import Clip, Example, Plan, Query

if TYPE_CHECKING:
    import torch


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


Event = Update | KeyImage | StepClip


class Retriever(Protocol):
    def __call__(self, query: Query) -> Sequence[Example]: ...


class Planner(Protocol):
    def __call__(self, query: Query, examples: Sequence[Example]) -> Plan: ...


class Drawer(Protocol):
    """Draws the first picture of every step in `steps` (numbers from 0) from the initial picture and the whole plan."""

    def __call__(self, image: torch.Tensor, plan: Plan, steps: Sequence[int]) -> Iterator[Update | KeyImage]: ...


class Renderer(Protocol):
    """Renders the clip of step `step` (number from 0) from its key image."""

    def __call__(self, image: torch.Tensor, plan: Plan, step: int) -> Iterator[Update | StepClip]: ...
