"""Stages that are real but tiny: the picture and the film of a step follow from its seed and its key image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from ksgen_core.pipeline import KeyImage, Planned, StepClip, Update
from ksgen_core.types import Clip, Example, KeyStep, Plan, Query

PLAN = Plan("make tea", tuple(KeyStep(text) for text in ("boil water", "pour it into the mug", "add a tea bag")))


def retrieve(_query: Query) -> tuple[Example, ...]:
    return (Example(PLAN, "here", 1.0),)


def make_plan(_query: Query, examples: Sequence[Example]) -> Iterator[Planned]:
    yield Planned(examples[0].plan)


def blobs(seed: int | None, size: tuple[int, int]) -> torch.Tensor:
    """A smooth picture `[H, W, 3]` that follows from the seed alone."""
    noise = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed or 0))
    return torch.nn.functional.interpolate(noise, size, mode="bicubic").clamp(0, 1)[0].permute(1, 2, 0)


def draw(
    image: torch.Tensor, plan: Plan, steps: Sequence[int], made: Mapping[int, torch.Tensor]
) -> Iterator[Update | KeyImage]:
    yield Update("key images", tuple(steps), 1, 1)
    for k in steps:
        yield KeyImage(k, (blobs(plan.steps[k].seed, (image.shape[0], image.shape[1])) + image) / 2)


def render(image: torch.Tensor, plan: Plan, step: int, next_image: torch.Tensor | None) -> Iterator[Update | StepClip]:
    end = blobs(plan.steps[step].seed, (image.shape[0], image.shape[1]))
    for number in (1, 2):
        yield Update("clip", (step,), number, 2)
    yield StepClip(step, Clip.of(torch.stack([torch.lerp(image, end, k / 4) for k in range(5)]), 8.0))
