"""LoRA weights beside a backbone's own, read by diffusers' loaders: its own format, kohya's and others it knows."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checkpoints import read_metadata, read_tensors
from .checkpoints_diffusers import LIBRARY_ERRORS, quietly
from .errors import KSGenError

NAME = "ksgen_"
"""Begins the names under which LoRAs are known to peft."""


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

    `model` has `pipe`, `parts()`, `denoisers` and `folder`. Raises `KSGenError`, naming the file, if one is missing or
    broken, fits nothing in this model, or diffusers has no way to put one on it.
    """
    if not loras:
        return
    backbones = [model.parts()[name] for name in model.denoisers]
    if not hasattr(model.pipe, "load_lora_weights") and not hasattr(backbones[0], "load_lora_adapter"):
        raise KSGenError(f"diffusers has no way to put a LoRA on a {type(model.pipe).__name__}. Leave the LoRA out.")
    if importlib.util.find_spec("peft") is None:
        raise KSGenError(
            "LoRAs are put on a diffusers model with the Python package peft, which is not installed. Install it with "
            "the Python that runs this: python -m pip install peft"
        )
    for number, lora in enumerate(loras):
        if lora.expert > len(backbones):
            raise KSGenError(f"{lora.path} is for a second expert, and {model.folder} has only one transformer.")
        read_metadata(lora.path)  # whole, and safetensors
        _load(model, lora, backbones[lora.expert - 1], f"{NAME}{number}")
    for part in model.parts().values():
        names = _names(part)
        if names:
            _set_strengths(part, names, [loras[int(name.removeprefix(NAME))].strength for name in names])


def _set_strengths(part: Any, names: list[str], strengths: list[float]) -> None:
    if hasattr(part, "set_adapters"):
        part.set_adapters(names, strengths)
        return
    # A text encoder, of transformers, on which kohya's LoRAs often are too.
    from diffusers.utils import set_weights_and_activate_adapters

    set_weights_and_activate_adapters(part, names, strengths)


def _load(model: Any, lora: Lora, backbone: Any, name: str) -> None:
    pipe = model.pipe
    try:
        with quietly():
            # By its file, and not as tensors: peft's alpha is in the metadata. The name keeps diffusers from others.
            file = {"weight_name": lora.path.name, "adapter_name": name, "local_files_only": True}
            if hasattr(pipe, "load_lora_weights"):
                more = {"load_into_transformer_2": True} if lora.expert == 2 else {}
                pipe.load_lora_weights(str(lora.path.parent), **file, **more)
            else:
                # HunyuanVideo 1.5's. Files are as a pipeline would write them, or the transformer itself.
                tensors = read_tensors(lora.path)
                prefix = "transformer" if any(key.startswith("transformer.") for key in tensors) else None
                backbone.load_lora_adapter(str(lora.path.parent), prefix=prefix, **file)
    # KeyError and others: what a converter of another family's names says.
    except (*LIBRARY_ERRORS, AttributeError, IndexError) as error:
        raise KSGenError(
            f"The LoRA {lora.path} does not fit {model.folder}: {error} Choose one that was made for this model."
        ) from error
    if name not in _names(backbone):
        raise KSGenError(
            f"The LoRA {lora.path} fits no layer of {model.folder}, a {type(pipe).__name__}. Choose one that was made "
            "for this model."
        )


def _names(backbone: Any) -> list[str]:
    """The LoRAs on some layer of the backbone. diffusers itself also names those that it could not put on."""
    found = {name for module in backbone.modules() for name in getattr(module, "lora_A", ())}
    return sorted(found, key=lambda name: int(name.removeprefix(NAME)))
