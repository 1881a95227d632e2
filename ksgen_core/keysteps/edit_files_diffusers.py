"""The files of an editing model's folder, an ordinary folder of diffusers: checked before reading, written whole."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints import read_json, write_json
from ..checkpoints_diffusers import (
    LIBRARY_ERRORS,
    check_folder,
    read_parts,
    read_pipeline,
    save_config,
    save_diffusers_part,
    save_tokenizer,
    save_transformers_part,
)
from ..errors import KSGenError
from .families import FAMILIES, Family, family_of

if TYPE_CHECKING:
    import torch

    from .edit_diffusers import EditModel

# Beside the parts with weights: what a folder names may only be of these classes.
TOKENIZERS = (
    "CLIPTokenizer",
    "CLIPTokenizerFast",
    "T5Tokenizer",
    "T5TokenizerFast",
    "Qwen2Tokenizer",
    "Qwen2TokenizerFast",
)
PLAIN = {"tokenizer": TOKENIZERS, "tokenizer_2": TOKENIZERS, "processor": ("Qwen2VLProcessor", "Qwen2_5_VLProcessor")}
SCHEDULERS = (
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "UniPCMultistepScheduler",
    "DPMSolverMultistepScheduler",
)
UNUSED = ("image_encoder", "feature_extractor")


def check(folder: Path) -> Family:
    """The family of the folder, after a look at all its files. Raises `KSGenError` for the first that is not right."""
    what = "an editing model's folder of diffusers"
    check_folder(folder, what, ("model_index.json",), ())
    family = family_of(folder)
    if not family.edits:
        known = ", ".join(family.pipelines[0] for family in FAMILIES if family.edits)
        raise KSGenError(f"{folder} holds a {family.pipelines[0]}, which draws and does not edit. Edits make: {known}.")
    index = read_json(folder / "model_index.json")
    plain = [name for name in PLAIN if index.get(name, [None, None])[1] is not None]
    needed = ["scheduler/scheduler_config.json", *plain, *(f"{part}/config.json" for part in family.parts)]
    check_folder(folder, what, needed, tuple(family.parts))
    classes = {name: (path.split(".")[1],) for name, path in family.parts.items()}
    classes |= {**PLAIN, "scheduler": SCHEDULERS}
    for name, entry in index.items():
        if name.startswith("_") or not isinstance(entry, list) or entry[-1] is None or name in UNUSED:
            continue
        if entry[-1] not in classes.get(name, ()):
            raise KSGenError(
                f"{folder / 'model_index.json'} names {entry[-1]} as its {name}; known there is "
                f"{' or '.join(classes.get(name, ('nothing',)))}. Get the folder again from where the model is from."
            )
    return family


def read_folder(folder: Path, family: Family, dtype: torch.dtype) -> Any:
    """The folder's pipeline. Raises `KSGenError` if a part cannot be read or lacks weights."""
    import diffusers

    kind = getattr(diffusers, family.pipelines[0], None)
    if kind is None:
        raise KSGenError(
            f"diffusers {diffusers.__version__} does not know {family.pipelines[0]} yet. Install a newer diffusers."
        )
    parts = read_parts(folder, {name: _class(path) for name, path in family.parts.items()}, dtype)
    more: dict[str, Any] = {}
    index = read_json(folder / "model_index.json")
    if "processor" in index:
        more["processor"] = _read_processor(folder / "processor")
    more |= {name: None for name in UNUSED if name in index}
    try:
        return read_pipeline(folder, kind, **more, **parts)
    except ImportError as error:  # tokenizers of some kinds want protobuf or sentencepiece
        raise KSGenError(f"{folder} cannot be loaded: {str(error).strip()} Install what is missing.") from error


def _class(path: str) -> type:
    library, name = path.split(".")
    return getattr(importlib.import_module(library), name)


def _read_processor(folder: Path) -> Any:
    """Qwen2-VL's processor without its part for films, which alone needs torchvision and is never asked for here."""
    import transformers

    class PicturesOnly(transformers.Qwen2VLProcessor):
        # transformers 4 reads the parts from here, transformers 5 from the signature.
        attributes = ["image_processor", "tokenizer"]

        def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
            kwargs.pop("video_processor", None)
            super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    PicturesOnly.__name__ = PicturesOnly.__qualname__ = "Qwen2VLProcessor"  # what diffusers and logs name it by
    try:
        return PicturesOnly.from_pretrained(str(folder), local_files_only=True)
    except (*LIBRARY_ERRORS, ImportError, AttributeError) as error:
        raise KSGenError(
            f"{folder} cannot be loaded: {error} Get that part again, or install what is missing."
        ) from error


def save_folder(model: EditModel, folder: Path, dtype: torch.dtype) -> None:
    """Write what `EditModel.load` reads. Raises `KSGenError` if the folder cannot be written, or for LoRAs."""
    source = model.folder
    for name, part in model.parts().items():
        if any(".lora_" in key for key, _ in part.named_parameters()):
            raise KSGenError(
                f"There are LoRAs on the {name}; they stay files of their own. Save the model without them."
            )
    for name, part in model.parts().items():
        if model.family.parts[name].startswith("diffusers."):
            save_diffusers_part(part, folder / name, dtype)
        else:
            config = read_json(source / name / "config.json") | {"dtype": str(dtype).removeprefix("torch.")}
            save_transformers_part(part, folder / name, dtype)
            # As it was: transformers 5 writes a config of Qwen2.5-VL that transformers 4 does not understand.
            write_json(folder / name / "config.json", {key: config[key] for key in config if key != "torch_dtype"})
    index = read_json(source / "model_index.json")
    for name in PLAIN:
        if (source / name).is_dir() and index.get(name, [None])[-1] is not None:
            save_tokenizer(None, source / name, folder / name)
    scheduler = model.pipe.scheduler
    save_config(scheduler.config, folder / "scheduler/scheduler_config.json", type(scheduler).__name__)
    if (source / "ksgen.json").is_file():
        write_json(folder / "ksgen.json", read_json(source / "ksgen.json"))
    for file in source.glob("*LICENSE*"):
        if file.is_file() and folder.resolve() != source.resolve():
            shutil.copy(file, folder / file.name)
    save_config(index, folder / "model_index.json", model.family.pipelines[0])
