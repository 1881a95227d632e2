"""What the commands that train on your own data have in common: options, their checks, and what is looked at when."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch

from ..errors import KSGenError
from ..ladder_diffusers import out_of_memory
from ..residence_diffusers import free_now
from .loop import Recipe


def adder(parser: argparse.ArgumentParser) -> Callable[..., None]:
    """Adds an option to `parser` by its name, what it is, and its default, whose type it takes if that is a number."""

    def add(name: str, what: str, default: Any = None, **options: Any) -> None:
        if isinstance(default, int | float) and not isinstance(default, bool):
            what, options = f"{what} (default: {default})", {"type": type(default), "metavar": "N", **options}
        parser.add_argument(name, help=what, default=default, **options)

    return add


def add_recipe(add: Callable[..., None], recipe: Recipe, batch_of: str) -> None:
    """The options that `recipe_of` reads."""
    add("--iterations", "how long to train", recipe.iterations)
    add("--batch", f"{batch_of} of an iteration, over all processes", recipe.batch)
    add("--rate", "learning rate at its highest", recipe.rate)
    add("--warm-up", "iterations until the rate is that high", recipe.warm_up)
    add("--decay", "weight decay", recipe.decay)
    add("--ema", "moving average of the weights, 0 for none", recipe.ema)
    add("--max-norm", "largest norm of a gradient", recipe.clip, dest="clip")
    add("--seed", "of weights and batches", recipe.seed)


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """Raises `KSGenError` for what makes none."""
    try:
        return Recipe(**{field.name: getattr(arguments, field.name) for field in fields(Recipe)})
    except ValueError as error:
        raise KSGenError(f"These options do not make a training: {error}.") from error


def add_rhythm(add: Callable[..., None]) -> None:
    """How often something is told and kept, and the dry run."""
    add("--report-every", "iterations", 50)
    add("--keep-every", "iterations between two states on disk", 250)
    add("--dry-run", "check data set and folder, say what memory and time it takes, and stop", False,
        action="store_true")  # fmt: skip


def check_least(arguments: argparse.Namespace, **least: float) -> None:
    """Raises `KSGenError` for an option, given by its name, that is less than that, or no number."""
    for name, value in {"report_every": 1, "keep_every": 1, "validate_every": 0, **least}.items():
        if not (got := getattr(arguments, name)) >= value:
            raise KSGenError(f"--{name.replace('_', '-')} is at least {value}, got {got}.")


def due(iteration: int, every: int, arguments: argparse.Namespace) -> bool:
    """Is this the end, or the first report after a multiple of `every`? Never, if that is 0."""
    return bool(every) and (iteration == arguments.iterations or iteration % every < arguments.report_every)


def show(write: Callable[[], object], option: str, device: torch.device, told: Callable[[str], object]) -> None:
    """`write` what the model makes now; without memory for it that is told, and the training goes on."""
    try:
        write()
        return
    except Exception as error:
        if not out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0]
    # Outside the handler: the error's traceback holds the tensors that filled the memory.
    free_now(device)
    told(f"There is no memory to show what is learned ({reason}). The training goes on; {option} 0 does not try it.")
