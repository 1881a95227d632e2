"""The files of a key-step model's folder: checked before reading, written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoints import read_json, write_json
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
from .ip_adapter_plus import write

if TYPE_CHECKING:
    import torch

    from .sdxl_diffusers import KeyStepModel

ADAPTER_FILE = "ip_adapter/ip-adapter-plus.safetensors"
SKILL_TRANSFORMER_FILE = "skill_transformer.safetensors"
WEIGHTS = ("unet", "vae", "text_encoder", "text_encoder_2")
NEEDED = ("model_index.json", "scheduler/scheduler_config.json", "tokenizer", "tokenizer_2") + tuple(
    f"{part}/config.json" for part in WEIGHTS
)
# OpenAI's CLIP, which IP-Adapter's image encoders follow.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def save_folder(model: KeyStepModel, folder: Path, dtype: torch.dtype) -> None:
    """Write what `KeyStepModel.load` reads. Raises `KSGenError` if the folder cannot be written."""
    pipe = model.pipe
    # The adapter's layers hang inside the UNet but belong to the adapter's file.
    adapter = ("processor.to_k_ip", "processor.to_v_ip", "encoder_hid_proj.")
    save_diffusers_part(pipe.unet, folder / "unet", dtype, adapter)
    save_diffusers_part(pipe.vae, folder / "vae", dtype)
    for name, part in (
        ("text_encoder", pipe.text_encoder),
        ("text_encoder_2", pipe.text_encoder_2),
        ("image_encoder", model.image_encoder),
    ):
        if part is not None:
            save_transformers_part(part, folder / name, dtype)
    if model.image_encoder is not None:
        side = model.image_encoder.config.image_size
        processor = {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": side},
            "crop_size": {"height": side, "width": side},
            "image_mean": model.image_mean,
            "image_std": model.image_std,
        }
        write_json(folder / "image_encoder/preprocessor_config.json", processor)
    for name in ("tokenizer", "tokenizer_2"):
        save_tokenizer(getattr(pipe, name), model.folder and model.folder / name, folder / name)
    save_config(pipe.scheduler.config, folder / "scheduler/scheduler_config.json", type(pipe.scheduler).__name__)
    if model.resampler is not None:
        write(folder / ADAPTER_FILE, pipe.unet, model.resampler, dtype)
    if model.skill_transformer is not None:
        model.skill_transformer.save(folder / SKILL_TRANSFORMER_FILE, dtype)
    index = {key: value for key, value in pipe.config.items() if key not in ("image_encoder", "feature_extractor")}
    save_config(index, folder / "model_index.json", type(pipe).__name__)


def check(folder: Path) -> None:
    """Raise `KSGenError` for the first file of the folder that is missing or not whole."""
    kind = check_folder(folder, "an SDXL folder of diffusers", NEEDED, (*WEIGHTS, "image_encoder"))
    if not kind.startswith("StableDiffusionXL"):
        raise KSGenError(f"{folder} holds a {kind}, wanted a StableDiffusionXLPipeline.")


def read_folder(folder: Path, dtype: torch.dtype):
    """The folder's `StableDiffusionXLPipeline` and its image encoder or None.

    Raises `KSGenError` if a part cannot be read or lacks weights.
    """
    import diffusers
    import transformers

    classes = {
        "unet": diffusers.UNet2DConditionModel,
        "vae": diffusers.AutoencoderKL,
        "text_encoder": transformers.CLIPTextModel,
        "text_encoder_2": transformers.CLIPTextModelWithProjection,
        "image_encoder": transformers.CLIPVisionModelWithProjection,
    }
    parts = read_parts(folder, classes, dtype)
    image_encoder = parts.pop("image_encoder")
    absent = {"image_encoder": None, "feature_extractor": None}
    kind = diffusers.StableDiffusionXLPipeline
    return read_pipeline(folder, kind, add_watermarker=False, **absent, **parts), image_encoder


def mean_and_std(path: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    config = read_json(path) if path.is_file() else {}
    return tuple(config.get("image_mean", CLIP_MEAN)), tuple(config.get("image_std", CLIP_STD))
