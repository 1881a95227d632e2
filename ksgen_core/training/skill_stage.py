"""The Skill Transformer's training: next-image-token prediction on plans that are encoded already (METHOD.md).

Legend: B plans, T steps, S key images, N image tokens of width C.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import KSGenError
from ..keysteps.skill_transformer import SkillTransformer
from .encoded_plans import EncodedPlans
from .loop import Progress, Recipe, fit, generator_of

if TYPE_CHECKING:
    from accelerate import Accelerator

ROLL_OUT_BATCH = 64
"""Plans rolled out together in a validation."""


def draw_batch(lengths: Tensor, batch: int, generator: torch.Generator) -> tuple[int, list[int]]:
    """The number of steps of this batch, uniformly 2..the most there are, and `batch` plans: lengths [P] -> numbers.

    Nearly all plans are read in a batch of many steps, the short ones padded; only pairs keep to themselves.
    """
    steps = int(torch.randint(2, int(lengths.max()) + 1, (), generator=generator))
    fits = torch.nonzero(lengths >= min(steps, 3))[:, 0]
    return steps, fits[torch.randint(len(fits), (batch,), generator=generator)].tolist()


def train_skill_transformer(
    skill: SkillTransformer,
    plans: EncodedPlans,
    run: Path,
    recipe: Recipe,
    *,
    precision: torch.dtype = torch.bfloat16,
    context_weight: float = 0.0,
    seen: str = "",
    accelerator: Accelerator | None = None,
    report: int = 50,
    keep: int = 250,
) -> Iterator[Progress]:
    """Train `skill` in place, on the device where it is, by teacher forcing; see `fit` for state, log and events.

    `precision` below float32 means autocast; weights and losses stay float32. Several processes share a batch of
    `recipe.batch` plans: each takes every so-manieth, and counts as much as it has targets. Raises `KSGenError` if
    there are more processes than plans in a batch. `seen` stands for what else must be as it was when a state goes on.
    """
    lengths = torch.tensor([len(images) for images in plans.images])
    device = next(skill.parameters()).device
    number, processes = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    if recipe.batch < processes:
        raise KSGenError(
            f"A batch of {recipe.batch} plans does not reach {processes} processes. Give a larger --batch."
        )
    half = nullcontext() if precision == torch.float32 else torch.autocast(device.type, precision)
    context = f"context {context_weight}" if context_weight else ""
    seen = " ".join(part for part in (plans.seen, context, seen) if part)

    def batch_of(iteration: int) -> tuple[list[Tensor], float]:
        """This process's part of a batch, and how much it counts."""
        steps, chosen = draw_batch(lengths, recipe.batch, generator_of(recipe, iteration))
        mine = chosen[number::processes]
        batch = plans.batch(mine, steps)
        targets = [int((lengths[some].clamp(max=steps) - 1).sum()) for some in (mine, chosen)]
        # The loss is a mean over real targets, of which the processes have different numbers.
        weight = processes * targets[0] / targets[1]
        return [tensor.pin_memory() if device.type == "cuda" else tensor for tensor in batch], weight

    def losses_of(iteration: int, _: torch.Generator) -> dict[str, Tensor]:
        batch, weight = (ahead.pop(iteration, None) or reader.submit(batch_of, iteration)).result()
        if iteration + 1 < recipe.iterations:
            ahead[iteration + 1] = reader.submit(batch_of, iteration + 1)
        tokens, texts, mask, is_step = (tensor.to(device, non_blocking=True) for tensor in batch)
        with half:
            loss = skill.loss(tokens.float(), texts.float(), mask, is_step, context_weight)
        return {"loss": loss.float() * weight}

    ahead: dict[int, Future] = {}
    skill.train()
    with ThreadPoolExecutor(1) as reader:  # makes the next batch while one is trained on
        yield from fit(
            "skill", skill, losses_of, recipe, run, report=report, keep=keep, seen=seen, accelerator=accelerator
        )
    skill.eval()


def target_mean(plans: EncodedPlans) -> Tensor:
    """The mean [N, C] of all tokens that are to be foreseen: the best that one answer for everything could do."""
    total, count = torch.zeros(plans.zero.shape, dtype=torch.float64), 0
    for images in plans.images:
        total += images[1:].double().sum(0)
        count += len(images) - 1
    return (total / count).float()


@torch.no_grad()
def validate(
    skill: SkillTransformer, plans: EncodedPlans, mean: Tensor, precision: torch.dtype = torch.bfloat16
) -> dict[str, dict[str, float]]:
    """How near the roll-out from the initial picture comes to the true tokens, beside two baselines.

    "roll_out", "initial" (the initial picture's tokens again and again) and "mean" (`mean` [N, C], see `target_mean`),
    each with "error", the mean squared error, and "cosine", of an image's tokens as one vector, over all key images
    but the initial ones. The model stays as it is.
    """
    device = next(skill.parameters()).device
    half = nullcontext() if precision == torch.float32 else torch.autocast(device.type, precision)
    training = skill.training
    skill.eval()
    sums = {name: torch.zeros(2, dtype=torch.float64) for name in ("roll_out", "initial", "mean")}
    count = 0
    for start in range(0, len(plans.images), ROLL_OUT_BATCH):
        chosen = range(start, min(start + ROLL_OUT_BATCH, len(plans.images)))
        tokens, texts, mask, is_step = (t.to(device) for t in plans.batch(chosen))
        tokens, texts = tokens.float(), texts.float()
        with half:
            foreseen = skill.roll_out(tokens[:, 0], texts, mask).float()
        there = is_step[:, 1:]
        true = tokens[:, 1:][there].flatten(1)
        answers = {
            "roll_out": foreseen[:, 1:][there],
            "initial": tokens[:, :1].expand_as(tokens[:, 1:])[there],
            "mean": mean.to(device).expand_as(tokens[:, 1:])[there],
        }
        count += len(true)
        for name, answer in answers.items():
            answer = answer.flatten(1)
            errors = (answer - true).square().mean(1), F.cosine_similarity(answer, true)
            sums[name] += torch.stack(errors).double().sum(1).cpu()
    skill.train(training)
    return {name: {"error": float(e) / count, "cosine": float(c) / count} for name, (e, c) in sums.items()}


def spoken(figures: dict[str, dict[str, float]]) -> str:
    """The figures of `validate` in a line."""
    return ", ".join(f"{name} error {f['error']:.4f} cosine {f['cosine']:.4f}" for name, f in figures.items())
