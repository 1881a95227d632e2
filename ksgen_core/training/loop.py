"""One training loop for every model: AdamW under a cosine, moving average, checkpoints, resume, a log of losses.

The random numbers of an iteration depend on its number alone, so a run that was killed and resumed goes on as if it
had not been, and several processes that share an iteration's batch agree on what is in it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..checkpoints import write_atomically
from ..errors import KSGenError

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Recipe:
    """How one part is trained. `ema` 0 keeps no moving average; `clip` is the largest gradient norm."""

    iterations: int
    batch: int
    rate: float
    warm_up: int = 100
    decay: float = 0.01
    ema: float = 0.0
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.batch < 1 or self.warm_up < 1:
            raise ValueError(f"a recipe needs iterations, batch and warm-up of at least 1, got {self}")
        if not (0 < self.rate < math.inf and 0 <= self.decay < math.inf and self.clip > 0 and 0 <= self.ema < 1):
            raise ValueError(
                f"a recipe needs a rate and a largest norm above 0, a decay of at least 0 and an average below 1, "
                f"got {self}"
            )
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"a seed is at least 0 and below 2**32, got {self.seed}")

    def rate_at(self, iteration: int) -> float:
        """Linear warm-up, then half a cosine down to a twentieth."""
        done = iteration / self.iterations
        return (
            self.rate * min(1.0, (iteration + 1) / self.warm_up) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))
        )


@dataclass(frozen=True)
class Progress:
    """After iteration `iteration` of `total`: mean losses and seconds of an iteration since the last report."""

    name: str
    iteration: int
    total: int
    losses: dict[str, float]
    seconds: float

    def __str__(self) -> str:
        losses = " ".join(f"{key} {value:.4f}" for key, value in self.losses.items())
        return f"{self.name} {self.iteration}/{self.total} {losses} {self.seconds:.2f} s/it"


def fit(
    name: str,
    model: nn.Module,
    losses_of: Callable[[int, torch.Generator], dict[str, Tensor]],
    recipe: Recipe,
    run: Path,
    *,
    report: int = 50,
    keep: int = 250,
    seen: str = "",
    accelerator: Accelerator | None = None,
) -> Iterator[Progress]:
    """Train `model` in place; yields a `Progress` every `report` iterations, keeps a checkpoint every `keep` and before
    it yields at such an iteration, so that what the caller does then cannot cost more than itself.

    `losses_of(iteration, generator)` gives named losses; their sum is minimised. State lies in `<run>/<name>.state`,
    the log in `<run>/<name>.log.jsonl`. At the end the moving average, if any, is what the model holds. A finished
    training is not done again: the model is loaded from its state. `seen` stands for what it is trained on, e.g. the
    digest of the models before it. Raises `KSGenError` if the state is that of another training.

    The losses since the last report stay on the device until the next one, and lie in the state: the log of a run that
    was killed and resumed is that of an unbroken one.

    With an `accelerator` of several processes all of them call this with equal models and share one `run`. Each one's
    `losses_of` sees the same generator, takes its own rows of the batch and weighs their losses so that the mean over
    the processes is the loss of the whole batch. Gradients and losses are averaged, all of them read the state, the
    main one alone writes.
    """
    run.mkdir(parents=True, exist_ok=True)
    path = run / f"{name}.state"
    shared = accelerator is not None and accelerator.num_processes > 1
    writes = accelerator is None or accelerator.is_main_process
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=recipe.rate, weight_decay=recipe.decay, betas=(0.9, 0.99))
    average = {k: v.detach().clone() for k, v in model.state_dict().items()} if recipe.ema else {}
    start, since = 0, _Since()
    if path.exists():
        state = torch.load(path, weights_only=True, map_location="cpu")
        if (got := state["of"]) != (wanted := _of(recipe, seen)) or state["iteration"] > recipe.iterations:
            raise KSGenError(
                f"{path} is of another training (iteration {state['iteration']} of {got}, wanted {recipe.iterations} "
                f"of {wanted}). Delete it to train {name} anew."
            )
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        for key, value in state["average"].items():
            average[key].copy_(value)
        start = state["iteration"]
        since = _Since.of(state.get("since"), parameters[0].device)
        del state  # or a second copy of all weights would stay for the whole training
    if writes:
        _forget_after(run / f"{name}.log.jsonl", start)
    # On processors torch's fused attention spends a third of a UNet's iteration on its way back; written out, a tenth.
    on_processor = all(p.device.type == "cpu" for p in parameters)
    process = accelerator.process_index if accelerator is not None else 0
    for iteration in range(start, recipe.iterations):
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate_at(iteration)
        generator = generator_of(recipe, iteration)
        # Dropout: every process has rows of its own.
        torch.manual_seed(generator.initial_seed() + 1_000_000_007 * process)
        optimiser.zero_grad(set_to_none=True)
        with sdpa_kernel(SDPBackend.MATH) if on_processor else nullcontext():
            losses = losses_of(iteration, generator)
            torch.stack(list(losses.values())).sum().backward()
        if shared:
            losses = _average(accelerator, parameters, losses)
        nn.utils.clip_grad_norm_(parameters, recipe.clip)
        optimiser.step()
        if average:
            _follow(average, model, min(recipe.ema, (iteration + 1) / (iteration + 10)))
        since.add(losses)
        done = iteration + 1
        progress = None
        if done % report == 0:
            progress = Progress(name, done, recipe.iterations, *since.means())
            if writes:
                note(run, name, {"iteration": done, "rate": recipe.rate_at(iteration), **progress.losses})
            since = _Since()
        if writes and (done % keep == 0 or done == recipe.iterations):
            _save(path, model, optimiser, average, done, since, _of(recipe, seen))
        if progress is not None:
            yield progress
            since.clock = time.monotonic()
    if average:
        model.load_state_dict(average)


def generator_of(recipe: Recipe, iteration: int) -> torch.Generator:
    """What `fit` hands to the losses of this iteration, as it is before anything was drawn."""
    return torch.Generator().manual_seed(recipe.seed * 1_000_003 + iteration)


class _Since:
    """The losses of the iterations since the last report, and the seconds that these took."""

    def __init__(self) -> None:
        self.losses: dict[str, list[Tensor]] = {}
        self.seconds = 0.0
        self.clock = time.monotonic()

    @classmethod
    def of(cls, state: Mapping[str, Any] | None, device: torch.device) -> _Since:
        """From `state()`; nothing from states that were kept before there was one."""
        since = cls()
        if state is not None:
            since.losses = {key: list(values.to(device).unbind()) for key, values in state["losses"].items()}
            since.seconds = state["seconds"]
        return since

    def state(self) -> dict[str, Any]:
        losses = {key: torch.stack(values) for key, values in self.losses.items()}
        return {"losses": losses, "seconds": self.seconds + time.monotonic() - self.clock}

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Reading a number would wait for the device; a clone lets go of what the loss is a part of."""
        for key, value in losses.items():
            self.losses.setdefault(key, []).append(value.detach().clone())

    def means(self) -> tuple[dict[str, float], float]:
        """Of every loss, and seconds an iteration. Here, and not before, the device is waited for."""
        means = {key: float(torch.stack(values).cpu().double().mean()) for key, values in self.losses.items()}
        count = max(len(values) for values in self.losses.values())
        return means, (self.seconds + time.monotonic() - self.clock) / count


def note(run: Path, name: str, entry: Mapping[str, object]) -> None:
    """Add a line to the log of a training; `entry` says after which iteration."""
    with open(run / f"{name}.log.jsonl", "a") as log:
        log.write(json.dumps(dict(entry)) + "\n")


def noted(run: Path, name: str) -> list[dict[str, Any]]:
    """The log of a training; none without one."""
    path = run / f"{name}.log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _forget_after(log: Path, iteration: int) -> None:
    """Take out of a log what was done after the last checkpoint: it is done, and noted, again."""
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    left = [line for line in lines if line.endswith("\n") and json.loads(line)["iteration"] <= iteration]
    if left != lines:
        write_atomically(log, lambda temporary: Path(temporary).write_text("".join(left)))


def _average(accelerator: Accelerator, parameters: Sequence[Tensor], losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every gradient becomes its mean over the processes, in one message -> the losses' means."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    values = torch.stack([value.detach().to(gradients[0]) for value in losses.values()])
    sent = torch.cat([*(gradient.flatten() for gradient in gradients), values])
    mean = accelerator.reduce(sent, "mean")
    *parts, values = mean.split([*(gradient.numel() for gradient in gradients), len(values)])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))
    return dict(zip(losses, values.unbind(), strict=True))


def _of(recipe: Recipe, seen: str) -> str:
    """What a state must agree in with the training that goes on from it: all but the number of iterations."""
    return f"{replace(recipe, iterations=1)} {seen}".strip()


@torch.no_grad()
def _follow(average: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            average[key].lerp_(value.to(average[key].dtype), 1 - decay)
        else:
            average[key].copy_(value)


def _save(
    path: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    average: dict[str, Tensor],
    iteration: int,
    since: _Since,
    of: str,
) -> None:
    state = {
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "average": average,
        "iteration": iteration,
        "since": since.state(),
        "of": of,
    }
    write_atomically(path, lambda temporary: torch.save(state, temporary))
