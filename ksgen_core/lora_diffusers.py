"""LoRA weights beside a backbone's own, read by diffusers' loaders: its own format, kohya's and others it knows."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checkpoints import read_metadata
from .checkpoints_diffusers import LIBRARY_ERRORS, quietly
from .errors import KSGenError


@dataclass(frozen=True)
class Lora:
    """A LoRA file and how strongly it works; `expert` 2 is Wan 2.2's transformer for little noise."""

    path: Path
    strength: float = 1.0
    expert: int = 1

    def __post_init__(self) -> None:
        if not -20 <= self.strength <= 20:
            raise KSGenError(f"The strength of a LoRA is from -20 to 20, got {self.strength!r}.")
        if self.expert not in (1, 2):
            raise KSGenError(f"A LoRA is for expert 1 or 2 of its model, got {self.expert!r}.")

    @classmethod
    def parse(cls, text: str) -> Lora:
        """`FILE`, `FILE:STRENGTH` or `FILE:STRENGTH:EXPERT`, as the command line has it."""
        path, *numbers = text, 1.0, 1
        for place in (1, 2):
            rest, colon, last = path.rpartition(":")
            try:
                value = float(last) if colon and rest else None
            except ValueError:
                value = None
            if value is None:
                break
            path, numbers = rest, ([value, 1] if place == 1 else [value, int(numbers[0])])
        return cls(Path(path).expanduser(), float(numbers[0]), int(numbers[1]))


def load_loras(model: Any, loras: Sequence[Lora]) -> None:
    """Put the LoRAs on a model's backbone, in order; before its components are settled.

    `model` has `pipe` and `folder`. Raises `KSGenError`, naming the file, if one is missing or broken, fits nothing in
    this model, or the pipeline takes none.
    """
    if not loras:
        return
    pipe = model.pipe
    if not hasattr(pipe, "load_lora_weights"):
        raise KSGenError(f"diffusers has no way to put a LoRA on a {type(pipe).__name__}. Leave the LoRA out.")
    if importlib.util.find_spec("peft") is None:
        raise KSGenError(
            "LoRAs are put on a diffusers model with the Python package peft, which is not installed. Install it with "
            "the Python that runs this: python -m pip install peft"
        )
    for number, lora in enumerate(loras):
        read_metadata(lora.path)  # whole, and safetensors
        _load(model, lora, f"ksgen_{number}")
    with quietly():
        for component, names in pipe.get_list_adapters().items():
            strengths = [loras[int(name.removeprefix("ksgen_"))].strength for name in names]
            getattr(pipe, component).set_adapters(names, strengths)


def _load(model: Any, lora: Lora, name: str) -> None:
    pipe = model.pipe
    more = {}
    if lora.expert == 2:
        if getattr(pipe, "transformer_2", None) is None:
            raise KSGenError(f"{lora.path} is for a second expert, and {model.folder} has only one transformer.")
        more["load_into_transformer_2"] = True
    try:
        with quietly():
            pipe.load_lora_weights(
                str(lora.path.parent), weight_name=lora.path.name, adapter_name=name, local_files_only=True, **more
            )
            placed = [component for component, names in pipe.get_list_adapters().items() if name in names]
    except LIBRARY_ERRORS as error:
        raise KSGenError(
            f"The LoRA {lora.path} does not fit {model.folder}: {error} Choose one that was made for this model."
        ) from error
    if not placed:
        raise KSGenError(
            f"The LoRA {lora.path} fits no layer of {model.folder}, a {type(pipe).__name__}. Choose one that was made "
            "for this model."
        )
