"""What a family of text-to-image folders has of its own, and SDXL's. Kolors' stands in `kolors_diffusers.py`.

Legend: T texts, L tokens per text, C their width, P pooled width.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import KSGenError
from .families import FAMILIES

Texts = tuple[Tensor, Tensor, Tensor]
"""Tokens [T, L, C], mask [T, L] (False: padding) and pooled [T, P]."""


@dataclass(frozen=True)
class Backbone:
    """One family: its name, how its pipelines' class names begin, and the parts that read texts.

    `named` are the classes that a folder may give these parts and their tokenizers by name. `classes` imports the
    classes of "pipeline" and of these parts, `encode` reads texts with a pipeline on a device, `text_width` is the C of
    what it gives, `arguments` what its pipeline is made with, `packages` what it needs beyond requirements.txt.
    """

    name: str
    prefix: str
    text_encoders: tuple[str, ...]
    tokenizers: tuple[str, ...]
    named: Mapping[str, tuple[str, ...]]
    classes: Callable[[], dict[str, Any]]
    encode: Callable[[Any, list[str], torch.device], Texts]
    text_width: Callable[[Any], int]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    packages: tuple[str, ...] = ()

    @property
    def defaults(self) -> dict[str, Any]:
        """The family's own settings, see the table of families."""
        family = next(family for family in FAMILIES if family.name == self.name.lower())
        return {"updates": family.updates, "guidance": family.guidance}

    @property
    def weights(self) -> tuple[str, ...]:
        """The parts with weights that every folder of the family has."""
        return ("unet", "vae", *self.text_encoders)

    @property
    def needed(self) -> tuple[str, ...]:
        """The files and folders that every folder of the family has."""
        configs = (f"{part}/config.json" for part in self.weights)
        return ("model_index.json", "scheduler/scheduler_config.json", *self.tokenizers, *configs)

    def require(self) -> None:
        """Raise `KSGenError` with the remedy if a package is missing that this family alone needs."""
        for package in self.packages:
            try:
                importlib.import_module(package)
            except ImportError as error:
                raise KSGenError(
                    f"{self.name} needs the Python package {package}, which is not there. "
                    f"Install it: pip install {package}"
                ) from error


def encode_sdxl(pipe: Any, texts: list[str], device: torch.device) -> Texts:
    """As SDXL does it (arXiv 2307.01952, section 2.1): both encoders' penultimate states side by side, and the second
    encoder's pooled text. A token counts where either tokenizer has one."""
    tokens, masks, pooled = [], [], None
    for tokenizer, encoder in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)):
        read = tokenizer(
            texts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
        )
        states = encoder(read.input_ids.to(device), output_hidden_states=True)
        tokens.append(states.hidden_states[-2])
        masks.append(read.attention_mask.bool().to(device))
        pooled = states[0]
    return torch.cat(tokens, dim=-1), masks[0] | masks[1], pooled


def _sdxl_classes() -> dict[str, Any]:
    import diffusers
    import transformers

    return {
        "pipeline": diffusers.StableDiffusionXLPipeline,
        "text_encoder": transformers.CLIPTextModel,
        "text_encoder_2": transformers.CLIPTextModelWithProjection,
    }


SDXL = Backbone(
    name="SDXL",
    prefix="StableDiffusionXL",
    text_encoders=("text_encoder", "text_encoder_2"),
    tokenizers=("tokenizer", "tokenizer_2"),
    named={
        "text_encoder": ("CLIPTextModel",),
        "text_encoder_2": ("CLIPTextModelWithProjection",),
        "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
        "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
    },
    classes=_sdxl_classes,
    encode=encode_sdxl,
    text_width=lambda pipe: pipe.text_encoder.config.hidden_size + pipe.text_encoder_2.config.hidden_size,
    arguments={"add_watermarker": False},
)
