"""Language models in the host: the folders it offers, its memory management while one writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import folder_paths

from . import host
from .host_models import dtype_for, load, patcher
from .model_files import subfolders

if TYPE_CHECKING:
    from ..ksgen_core.planning.mllm_transformers import Mllm

FOLDER = "LLM"
"""The host's folder kind that other packs with language models use too."""


def register_folder() -> None:
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))


def names() -> list[str]:
    """What the planner offers: the embedded model, then every transformers folder in the host's `LLM` folders."""
    found = {path.name for path in subfolders(FOLDER) if os.path.isfile(path / "config.json")}
    return [host.EMBEDDED, *sorted(found - {host.EMBEDDED})]


def folder_of(name: str) -> str:
    """The path of the model called `name`. Raises `KSGenError` for an unknown name, with the folders looked at."""
    if name == host.EMBEDDED:
        return str(host.MINI / "planner")
    return str(host.find_folder(FOLDER, name, "language model"))


@contextmanager
def loaded(folder_or_id: str) -> Iterator[Mllm]:
    """The model on the host's device, freed on the way out, however that comes: plans are made rarely, and a language
    model that stays takes the memory of the next sampler."""
    import comfy.model_management as memory

    from ..ksgen_core.planning.mllm_transformers import Mllm

    host.require_packages("transformers", "llguidance")
    device = memory.get_torch_device()
    model = Mllm.load(folder_or_id, memory.unet_offload_device(), dtype_for(device))
    patchers = [patcher(part, device) for part in model.parts().values()]
    try:
        load(patchers)
        yield model
    finally:
        for one in patchers:
            memory.unload_model_and_clones(one)
        memory.soft_empty_cache()
