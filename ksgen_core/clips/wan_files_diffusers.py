"""The files of a clip model's folder: checked before reading, written whole or not at all."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoints_diffusers import (
    check_folder,
    read_parts,
    read_pipeline,
    save_config,
    save_diffusers_part,
    save_tokenizer,
    save_transformers_part,
)
from ..errors import KSGenError

if TYPE_CHECKING:
    import torch

    from .wan_diffusers import ClipModel

WEIGHTS = ("transformer", "vae", "text_encoder")
NEEDED = ("model_index.json", "scheduler/scheduler_config.json", "tokenizer") + tuple(
    f"{part}/config.json" for part in WEIGHTS
)


def save_folder(model: ClipModel, folder: Path, dtype: torch.dtype) -> None:
    """Write what `ClipModel.load` reads. Raises `KSGenError` if the folder cannot be written."""
    pipe = model.pipe
    for name, part in model.parts().items():
        save = save_transformers_part if name == "text_encoder" else save_diffusers_part
        save(part, folder / name, dtype)
    save_tokenizer(pipe.tokenizer, model.folder and model.folder / "tokenizer", folder / "tokenizer")
    save_config(pipe.scheduler.config, folder / "scheduler/scheduler_config.json", type(pipe.scheduler).__name__)
    save_config(pipe.config, folder / "model_index.json", type(pipe).__name__)


def check(folder: Path) -> None:
    """Raise `KSGenError` for the first file of the folder that is missing or not whole."""
    kind = check_folder(folder, "a Wan folder of diffusers", NEEDED, (*WEIGHTS, "transformer_2"))
    if kind != "WanImageToVideoPipeline":
        raise KSGenError(f"{folder} holds a {kind}, wanted a WanImageToVideoPipeline.")


def check_kind(pipe, folder: Path) -> None:
    """Raise `KSGenError` if it is another kind of Wan than the 2.2 image-to-video one."""
    config, channels = pipe.transformer.config, pipe.vae.config.z_dim
    wanted = 2 * channels + pipe.vae_scale_factor_temporal
    if config.in_channels != wanted or config.image_dim is not None or pipe.config.expand_timesteps:
        raise KSGenError(
            f"{folder / 'transformer'} has {config.in_channels} input channels"
            f"{' and an image encoder' if config.image_dim is not None else ''}; wanted is the image-to-video model of "
            f"Wan 2.2's 14B kind, with {wanted} channels and no image encoder."
        )
    if pipe.config.boundary_ratio is not None and pipe.transformer_2 is None:
        raise KSGenError(f"{folder / 'transformer_2'} is missing, which {folder / 'model_index.json'} counts on.")


def read_folder(folder: Path, dtype: torch.dtype):
    """The folder's `WanImageToVideoPipeline`. Raises `KSGenError` if a part cannot be read or lacks weights."""
    if importlib.util.find_spec("accelerate") is None:
        raise KSGenError(
            "diffusers loads a Wan transformer with the Python package accelerate, which is not installed. Install it "
            "with the Python that runs this: python -m pip install accelerate"
        )
    import diffusers
    import transformers

    classes = {
        "transformer": diffusers.WanTransformer3DModel,
        "transformer_2": diffusers.WanTransformer3DModel,
        "vae": diffusers.AutoencoderKLWan,
        "text_encoder": transformers.UMT5EncoderModel,
    }
    parts = read_parts(folder, classes, dtype)
    kind = diffusers.WanImageToVideoPipeline
    return read_pipeline(folder, kind, image_encoder=None, image_processor=None, **parts)
