"""Plain named ways to make a model fit, what each costs, and the stated order in which they are tried.

Needs no torch, so that a menu can list them. `residence_diffusers` carries them out.
"""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass, replace
from typing import Any

from .errors import KSGenError

OFFLOADS = ("auto", "none", "parts", "layers")
"""Where the components of one stage live while it works; the stages themselves are never resident together.

none: all on the device; fastest, needs room for all components of the stage at once.
parts: each comes to the device when it is called and the others leave: the text encoders are out before the first
update. The same numbers; a few seconds of copying a clip.
layers: as parts, and the backbone's layers come one group at a time while the group before them works. The same
numbers; the backbone takes a few hundred MB, every update waits for its layers if they copy slower than they compute.
auto: none where all components fit beside the room to work in, else parts where the largest fits, else layers.
"""

ATTENTIONS = {
    "default": "what diffusers takes: torch's scaled_dot_product_attention",
    "native": "torch's scaled_dot_product_attention, torch choosing the kernel",
    "_native_math": "written out, in float32 inside; slow, for comparing",
    "_native_flash": "torch's own flash attention; the same but for rounding",
    "_native_efficient": "torch's own memory-efficient attention; the same but for rounding",
    "_native_cudnn": "cuDNN's; the same but for rounding",
    "flash": "the package flash-attn; the same but for rounding",
    "_flash_3": "the package flash-attn 3, for Hopper; the same but for rounding",
    "sage": "the package sageattention: 8-bit queries and keys; small changes of the picture",
    "xformers": "the package xformers; the same but for rounding",
}
"""Attention back ends by diffusers' names (diffusers/models/attention_dispatch.py) and what each changes."""

PACKAGES = {
    "flash": "flash_attn",
    "_flash_3": "flash_attn_interface",
    "sage": "sageattention",
    "xformers": "xformers",
}
"""The Python packages that attention back ends need, by the names they are imported by."""

COSTS = {
    "offload": "nothing in quality; time for copying",
    "tiling": "the VAE works on overlapping tiles: faint seams where tiles meet, never seen on small pictures",
    "fp8": "the backbone's weights are kept in 8 bits and computed with in full: small changes of the picture, half of "
    "the backbone's memory",
    "attention": "see ATTENTIONS",
    "first_block_cache": "an update whose first block changed less than this share takes the other blocks' change from "
    "the one before: at 0.05 hardly seen, at 0.2 motion and detail suffer",
    "gpus": "nothing in quality; the sequence is split over that many GPUs (Ulysses)",
}
"""What each option costs in quality."""

LADDER = (
    ("tiling", "the VAE works on tiles"),
    ("parts", "components are on the device only while they work"),
    ("layers", "the backbone's layers are copied to the device group by group"),
    ("fp8", "the backbone's weights are kept in 8 bits, which changes pictures a little"),
)
"""What is tried when memory runs out, one after the other, with what it means. The first three leave the numbers as
they are, tiling but for faint seams. Pictures drawn together are halved before any of them. After the last it is an
error."""


@dataclass(frozen=True)
class MemoryOptions:
    """How a stage's models use memory: see `OFFLOADS`, `ATTENTIONS` and `COSTS`.

    `first_block_cache` 0 is off. `gpus` more than 1 needs as many processes, one a GPU (torchrun).
    """

    offload: str = "auto"
    fp8: bool = False
    tiling: bool = False
    attention: str = "default"
    first_block_cache: float = 0.0
    gpus: int = 1

    def __post_init__(self) -> None:
        if self.offload not in OFFLOADS:
            raise KSGenError(f"Offload {self.offload!r} is not known. Choose one of {', '.join(OFFLOADS)}.")
        if self.attention not in ATTENTIONS:
            raise KSGenError(f"Attention {self.attention!r} is not known. Choose one of {', '.join(ATTENTIONS)}.")
        if not 0 <= self.first_block_cache < 1:
            raise KSGenError(
                f"The threshold of FirstBlockCache is from 0 (off) to below 1, got {self.first_block_cache!r}. "
                "Common are 0.05 to 0.2."
            )
        if not isinstance(self.gpus, int) or isinstance(self.gpus, bool) or self.gpus < 1:
            raise KSGenError(f"The number of GPUs is a whole number from 1, got {self.gpus!r}.")

    def check_packages(self) -> None:
        """Raise `KSGenError` if the attention that is chosen needs a Python package that is not there."""
        package = PACKAGES.get(self.attention)
        if package is not None and importlib.util.find_spec(package) is None:
            raise KSGenError(
                f"The attention {self.attention!r} needs the Python package {package}, which is not installed. Install "
                "it, or choose 'default'."
            )

    def next_rung(self, has_tiling: bool = True) -> tuple[str, MemoryOptions] | None:
        """The first rung of the ladder that these options do not stand on yet, and the options on it; None on the last.

        `has_tiling`: whether the stage's VAE can work on tiles at all. "auto" must be settled before.
        """
        if has_tiling and not self.tiling:
            return "tiling", replace(self, tiling=True)
        if self.offload in ("auto", "none"):
            return "parts", replace(self, offload="parts")
        if self.offload == "parts":
            return "layers", replace(self, offload="layers")
        if not self.fp8:
            return "fp8", replace(self, fp8=True)
        return None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
