"""Where a training computes: the device, the precision, and the processes that share it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import torch

from ..residence_diffusers import device_named

if TYPE_CHECKING:
    from accelerate import Accelerator

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Share:
    """Which process of how many this one is, and how it waits for the others."""

    number: int = 0
    count: int = 1
    wait: Callable[[], object] = lambda: None

    @classmethod
    def of(cls, accelerator: Accelerator | None) -> Share:
        if accelerator is None:
            return cls()
        return cls(accelerator.process_index, accelerator.num_processes, accelerator.wait_for_everyone)


def accelerator_for(device: str) -> Accelerator | None:
    """One of several processes that `accelerate launch` started, or None for one alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    from accelerate import Accelerator, InitProcessGroupKwargs

    # The others wait while one of them draws pictures, or has more to encode.
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=3))
    # Without a GPU it must be told so, or every process would take itself for the only one.
    return Accelerator(cpu=device_named(device) == "cpu", kwargs_handlers=[patience])


def precision_named(name: str, device: torch.device) -> torch.dtype:
    """bfloat16 by itself only where the device computes in it."""
    if name != "auto":
        return DTYPES[name]
    able = device.type == "cpu" or device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if able else torch.float32


def silence(*_given: object, **_options: object) -> None:
    """What processes beside the main one say."""
