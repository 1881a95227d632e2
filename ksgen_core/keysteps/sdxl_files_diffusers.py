"""The files of a key-step model's folder: checked before reading, written whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..checkpoints import read_metadata, write_atomically
from ..errors import KSGenError
from .ip_adapter_plus import write

if TYPE_CHECKING:
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
    for name in ("unet", "vae"):
        part = getattr(pipe, name)
        _save_config(part.config, folder / name / "config.json", type(part).__name__)
        # The adapter's layers hang inside the UNet but belong to the adapter's file.
        adapter = ("processor.to_k_ip", "processor.to_v_ip", "encoder_hid_proj.")
        _save_state(part, folder / name / "diffusion_pytorch_model.safetensors", dtype, adapter)
    for name, part in (
        ("text_encoder", pipe.text_encoder),
        ("text_encoder_2", pipe.text_encoder_2),
        ("image_encoder", model.image_encoder),
    ):
        if part is not None:
            _save_transformer(part, folder / name, dtype)
    if model.image_encoder is not None:
        side = model.image_encoder.config.image_size
        processor = {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": side},
            "crop_size": {"height": side, "width": side},
            "image_mean": model.image_mean,
            "image_std": model.image_std,
        }
        _write_json(folder / "image_encoder/preprocessor_config.json", processor)
    for name in ("tokenizer", "tokenizer_2"):
        # Copied, not saved again: transformers 4 and 5 write different files, these serve both.
        if model.folder is None:
            getattr(pipe, name).save_pretrained(folder / name)
        elif (model.folder / name).resolve() != (folder / name).resolve():
            shutil.copytree(model.folder / name, folder / name, dirs_exist_ok=True)
    _save_config(pipe.scheduler.config, folder / "scheduler/scheduler_config.json", type(pipe.scheduler).__name__)
    if model.resampler is not None:
        write(folder / ADAPTER_FILE, pipe.unet, model.resampler, dtype)
    if model.skill_transformer is not None:
        model.skill_transformer.save(folder / SKILL_TRANSFORMER_FILE, dtype)
    index = {key: value for key, value in pipe.config.items() if key not in ("image_encoder", "feature_extractor")}
    _save_config(index, folder / "model_index.json", type(pipe).__name__)


def _save_config(config, path: Path, kind: str) -> None:
    """A diffusers config, without the name of the folder that it was read from."""
    import diffusers

    plain = {key: value for key, value in config.items() if not key.startswith("_")}
    _write_json(path, {"_class_name": kind, "_diffusers_version": diffusers.__version__, **plain})


def _save_state(
    part: nn.Module, path: Path, dtype: torch.dtype, leave_out: tuple[str, ...] = (), prefix: str = ""
) -> None:
    from safetensors.torch import save_file

    state = {
        prefix + key: tensor.detach().to("cpu", dtype).contiguous()
        for key, tensor in part.state_dict().items()
        if not any(name in key for name in leave_out)
    }
    write_atomically(path, lambda temporary: save_file(state, temporary, metadata={"format": "pt"}))


def _save_transformer(part: Any, folder: Path, dtype: torch.dtype) -> None:
    """A transformers model, under the names that its files have always had: transformers 4 knows no others."""
    config = {key: value for key, value in json.loads(part.config.to_json_string()).items() if not key.startswith("_")}
    for old in ("torch_dtype", "dtype"):
        config.pop(old, None)
    config |= {"architectures": [type(part).__name__], "dtype": str(dtype).removeprefix("torch.")}
    _write_json(folder / "config.json", config)
    # transformers 5 dropped the first word of `CLIPTextModel`'s names.
    bare = type(part).__name__ == "CLIPTextModel" and not hasattr(part, "text_model")
    _save_state(part, folder / "model.safetensors", dtype, prefix="text_model." if bare else "")


def _write_json(path: Path, data: object) -> None:
    text = json.dumps(data, indent=2, sort_keys=True) + "\n"
    write_atomically(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))


def check(folder: Path) -> None:
    """Raise `KSGenError` for the first file of the folder that is missing or not whole."""
    if not folder.is_dir():
        raise KSGenError(
            f"The key-step model's folder {folder} is missing. Choose a models folder that holds keysteps/."
        )
    for name in NEEDED:
        if not (folder / name).exists():
            raise KSGenError(f"{folder / name} is missing. The folder must be a complete SDXL folder of diffusers.")
    for part in (*WEIGHTS, "image_encoder"):
        files = sorted((folder / part).glob("*.safetensors"))
        if not files and (folder / part).is_dir():
            raise KSGenError(f"{folder / part} holds no .safetensors weights. Get that part again, as safetensors.")
        for file in files:
            read_metadata(file)
    kind = str(_read_json(folder / "model_index.json").get("_class_name", ""))
    if not kind.startswith("StableDiffusionXL"):
        raise KSGenError(f"{folder} holds a {kind or 'pipeline without a name'}, wanted a StableDiffusionXLPipeline.")


def read_parts(folder: Path, dtype: torch.dtype):
    """The folder's `StableDiffusionXLPipeline` and its image encoder or None.

    Raises `KSGenError` if a part cannot be read or lacks weights: the libraries would fill those with random numbers.
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
    parts = {}
    # diffusers renamed `torch_dtype` to `dtype` in 0.40, transformers before our floor of 4.57.
    old = tuple(map(int, diffusers.__version__.split(".")[:2])) < (0, 40)
    name = "model_index.json"
    try:
        for name, kind in classes.items():
            if (folder / name / "config.json").is_file():
                word = "torch_dtype" if old and kind.__module__.startswith("diffusers") else "dtype"
                parts[name], info = kind.from_pretrained(
                    str(folder / name),
                    variant=variant(folder / name),
                    **{word: dtype},
                    local_files_only=True,
                    output_loading_info=True,
                )
                if lacking := sorted(info["missing_keys"]):
                    raise ValueError(f"it lacks {len(lacking)} weights, the first is {lacking[0]}.")
        image_encoder = parts.pop("image_encoder", None)
        name = "model_index.json"
        pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(
            str(folder),
            local_files_only=True,
            add_watermarker=False,
            image_encoder=None,
            feature_extractor=None,
            **parts,
        )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, NotImplementedError) as error:
        raise KSGenError(f"{folder / name} cannot be loaded: {error} Get that part again.") from error
    return pipe, image_encoder


@contextmanager
def quietly() -> Iterator[None]:
    """No progress bars and no remarks of the libraries while parts are read; the host has its own display."""
    import diffusers.utils.logging as of_diffusers
    import transformers.utils.logging as of_transformers

    libraries = (of_diffusers, of_transformers)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    try:
        for library in libraries:
            library.set_verbosity_error()
            library.disable_progress_bar()
        yield
    finally:
        for library, (verbosity, bar) in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            if bar:
                library.enable_progress_bar()


def variant(part: Path) -> str | None:
    """A part's weights may be there as half-precision files only (`*.fp16.safetensors`)."""
    names = [file.name for file in part.glob("*.safetensors")]
    return "fp16" if names and all(".fp16" in name for name in names) else None


def mean_and_std(path: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    config = _read_json(path) if path.is_file() else {}
    return tuple(config.get("image_mean", CLIP_MEAN)), tuple(config.get("image_std", CLIP_STD))


def _read_json(path: Path) -> dict:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KSGenError(f"{path} cannot be read ({error}). Get that file again.") from error
    if not isinstance(data, dict):
        raise KSGenError(f"{path} must hold a JSON object, got {type(data).__name__}. Get that file again.")
    return data
