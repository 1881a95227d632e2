"""The files of a key-step model's folder: checked before reading, written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints import read_json, write_atomically, write_json
from ..checkpoints_diffusers import (
    check_folder,
    check_weights,
    read_parts,
    read_pipeline,
    save_config,
    save_diffusers_part,
    save_tokenizer,
    save_transformers_part,
)
from ..errors import KSGenError
from .backbone_diffusers import SDXL, Backbone
from .ip_adapter_plus import write
from .kolors_diffusers import KOLORS
from .policies import DEFAULTS_FILE

if TYPE_CHECKING:
    import torch

    from .sdxl_diffusers import KeyStepModel

BACKBONES = (SDXL, KOLORS)
ADAPTER_FILE = "ip_adapter/ip-adapter-plus.safetensors"
SKILL_TRANSFORMER_FILE = "skill_transformer.safetensors"
PIX2PIX = "StableDiffusionXLInstructPix2PixPipeline"
UNSEEDED = ("DPMSolverSDEScheduler",)
"""Schedulers of diffusers that draw noise and take no generator to draw it from."""
# OpenAI's CLIP, which IP-Adapter's image encoders follow.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def save_folder(model: KeyStepModel, folder: Path, dtype: torch.dtype) -> None:
    """Write what `KeyStepModel.load` reads. Raises `KSGenError` if the folder cannot be written, or for LoRAs."""
    for name, part in model.parts().items():
        if any(".lora_" in key for key, _ in part.named_parameters()):
            raise KSGenError(
                f"There are LoRAs on the {name}; they stay files of their own. Save the model without them."
            )
    pipe, backbone = model.pipe, model.backbone
    _save_unet(pipe.unet, folder / "unet", dtype)
    save_diffusers_part(pipe.vae, folder / "vae", dtype)
    for name in backbone.text_encoders:
        save_transformers_part(getattr(pipe, name), folder / name, dtype)
    if model.image_encoder is not None:
        save_transformers_part(model.image_encoder, folder / "image_encoder", dtype)
        side = model.image_encoder.config.image_size
        processor = {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": side},
            "crop_size": {"height": side, "width": side},
            "image_mean": model.image_mean,
            "image_std": model.image_std,
        }
        write_json(folder / "image_encoder/preprocessor_config.json", processor)
    for name in backbone.tokenizers:
        save_tokenizer(getattr(pipe, name), model.folder and model.folder / name, folder / name)
    save_config(pipe.scheduler.config, folder / "scheduler/scheduler_config.json", type(pipe.scheduler).__name__)
    if model.resampler is not None:
        write(folder / ADAPTER_FILE, pipe.unet, model.resampler, dtype)
    if model.skill_transformer is not None:
        model.skill_transformer.save(folder / SKILL_TRANSFORMER_FILE, dtype)
    if model.defaults:
        write_json(folder / DEFAULTS_FILE, model.defaults)
    index = {key: value for key, value in pipe.config.items() if key not in ("image_encoder", "feature_extractor")}
    save_config(index, folder / "model_index.json", type(pipe).__name__ if model.scales_reference else PIX2PIX)


def _save_unet(unet: Any, folder: Path, dtype: torch.dtype) -> None:
    """Without the adapter's layers, which hang inside it but belong to the adapter's file."""
    from safetensors.torch import save_file

    save_config(unet.config, folder / "config.json", type(unet).__name__)
    state = {
        # With an adapter, diffusers calls Kolors' projection of the texts otherwise than its file does.
        key.replace("text_encoder_hid_proj.", "encoder_hid_proj."): tensor.detach().to("cpu", dtype).contiguous()
        for key, tensor in unet.state_dict().items()
        if "processor.to_k_ip" not in key and "processor.to_v_ip" not in key
    }
    path = folder / "diffusion_pytorch_model.safetensors"
    write_atomically(path, lambda temporary: save_file(state, temporary, metadata={"format": "pt"}))


def check(folder: Path) -> Backbone:
    """The folder's family. Raises `KSGenError` for the first file of the folder that is missing or not whole."""
    kind = check_folder(folder, "an SDXL or Kolors folder of diffusers", ("model_index.json",), ())
    for backbone in BACKBONES:
        if kind.startswith(backbone.prefix):
            weights = (*backbone.weights, "image_encoder")
            check_folder(folder, f"a {backbone.name} folder of diffusers", backbone.needed, weights)
            _check_classes(folder / "model_index.json", backbone)
            backbone.require()
            return backbone
    raise KSGenError(f"{folder} holds a {kind}, wanted a StableDiffusionXLPipeline or a KolorsPipeline.")


def _check_classes(index: Path, backbone: Backbone) -> None:
    """Raise `KSGenError` if the folder's index names a component of a class that is not known there."""
    entries = read_json(index)
    scheduler = _class_of(entries.get("scheduler"))
    if scheduler in UNSEEDED:
        raise KSGenError(
            f"{index} names {scheduler} as its scheduler, whose noise goes by no seed. Put another of diffusers there, "
            "for example DPMSolverMultistepScheduler with the algorithm sde-dpmsolver++."
        )
    known = {"unet": ("UNet2DConditionModel",), "vae": ("AutoencoderKL",), **backbone.named}
    wrong = {name: kinds for name, kinds in known.items() if _class_of(entries.get(name)) not in kinds}
    if not scheduler.endswith("Scheduler") or entries["scheduler"][0] != "diffusers":
        wrong["scheduler"] = ("a scheduler of diffusers",)
    if wrong:
        name, kinds = next(iter(wrong.items()))
        raise KSGenError(
            f"{index} names {_class_of(entries.get(name))} as its {name}; known there is {' or '.join(kinds)}. Get the "
            "folder again from where the model is from."
        )


def _class_of(entry: Any) -> str:
    """The class in an entry [library, class] of the index."""
    named = isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str)
    return entry[1] if named else "nothing"


def backbone_of(pipe: Any) -> Backbone:
    """The family of a pipeline that was made in code."""
    return next(backbone for backbone in BACKBONES if type(pipe).__name__.startswith(backbone.prefix))


def scales_reference(folder: Path) -> bool:
    """Are the latents of the given picture, which some UNets take beside the noise, scaled as those of the noise are?

    Those that were trained here are; SDXL-InstructPix2Pix' are not, unless it says that it is CosXL Edit (diffusers'
    StableDiffusionXLInstructPix2PixPipeline, `is_cosxl_edit`).
    """
    index = read_json(folder / "model_index.json")
    return index.get("_class_name") != PIX2PIX or index.get("is_cosxl_edit") is True


def read_pipe(folder: Path, backbone: Backbone, dtype: torch.dtype) -> Any:
    """The folder's pipeline without image encoder. Raises `KSGenError` if a part cannot be read or lacks weights."""
    import diffusers

    classes = backbone.classes()
    kind = classes.pop("pipeline")
    parts = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL, **classes}
    absent = {"image_encoder": None, "feature_extractor": None}
    return read_pipeline(folder, kind, **backbone.arguments, **absent, **read_parts(folder, parts, dtype))


def check_image_encoder(folder: Path) -> None:
    """Raise `KSGenError` if the folder does not hold a CLIP vision model's config and whole weights."""
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise KSGenError(
            f"{folder} is not an image encoder: it should hold config.json and .safetensors weights of a CLIP vision "
            "model, as the folders called image_encoder beside IP-Adapter files do."
        )
    check_weights(folder)


def read_image_encoder(folder: Path, dtype: torch.dtype) -> Any:
    """A CLIP vision model with the weights in `folder`, of any size. Raises `KSGenError` if it cannot be read."""
    import transformers

    check_image_encoder(folder)
    return read_parts(folder.parent, {folder.name: transformers.CLIPVisionModelWithProjection}, dtype)[folder.name]


def mean_and_std(path: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    config = read_json(path) if path.is_file() else {}
    return tuple(config.get("image_mean", CLIP_MEAN)), tuple(config.get("image_std", CLIP_STD))
