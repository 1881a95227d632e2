"""The files of a clip model's folder: checked before reading, written whole or not at all."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from .families import Family, family_of
from .settings import DEFAULTS_FILE, read_own

if TYPE_CHECKING:
    import torch

    from .clip_diffusers import ClipModel

MODULES = {
    "diffusers": (
        "AutoencoderKLCogVideoX",
        "AutoencoderKLHunyuanVideo15",
        "AutoencoderKLLTX2Audio",
        "AutoencoderKLLTX2Video",
        "AutoencoderKLLTXVideo",
        "AutoencoderKLTemporalDecoder",
        "AutoencoderKLWan",
        "CogVideoXTransformer3DModel",
        "HunyuanVideo15Transformer3DModel",
        "LTX2VideoTransformer3DModel",
        "LTXVideoTransformer3DModel",
        "UNetSpatioTemporalConditionModel",
        "WanTransformer3DModel",
    ),
    "ltx2": (
        "LTX2TextConnectors",
        "LTX2Vocoder",
        "LTX2VocoderWithBWE",
    ),
    "transformers": (
        "CLIPVisionModel",
        "CLIPVisionModelWithProjection",
        "Gemma3ForConditionalGeneration",
        "Qwen2_5_VLTextModel",
        "SiglipVisionModel",
        "T5EncoderModel",
        "UMT5EncoderModel",
    ),
}
"""The components with weights that a folder may name, by library. No other class is looked up, and no code of a folder
is ever run."""
OTHERS = (
    "AutoTokenizer",
    "ByT5Tokenizer",
    "CLIPImageProcessor",
    "CLIPImageProcessorFast",
    "CLIPImageProcessorPil",
    "CLIPProcessor",
    "GemmaTokenizer",
    "GemmaTokenizerFast",
    "PreTrainedTokenizerFast",
    "Qwen2Tokenizer",
    "Qwen2TokenizerFast",
    "SiglipImageProcessor",
    "SiglipImageProcessorFast",
    "SiglipImageProcessorPil",
    "T5Tokenizer",
    "T5TokenizerFast",
    "TokenizersBackend",
)
"""The components of transformers without weights that a folder may name."""
OLD_NAMES = {
    "CLIPImageProcessorPil": "CLIPImageProcessor",
    "SiglipImageProcessorPil": "SiglipImageProcessor",
    "TokenizersBackend": "PreTrainedTokenizerFast",
}
"""What transformers 5 has by another name; 4 knows the old one alone, 5 both."""
SENTENCEPIECE = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}
"""What transformers reads a SentencePiece file with: packages, and the modules that they bring."""
GUIDERS = ("ClassifierFreeGuidance",)
"""Those of diffusers, beside its schedulers."""
LIBRARIES = {"diffusers": "diffusers", "ltx2": "diffusers.pipelines.ltx2", "transformers": "transformers"}
"""Where the libraries' names in a folder stand for."""


def check_clip_folder(folder: Path) -> Family:
    """The family of a folder that holds all that `ClipModel.load` reads, as far as headers and small files tell.

    Loads nothing. Raises `KSGenError` for the first file that is missing, not whole or of a class that is not known.
    """
    family = family_of(folder)
    check(folder, family)
    read_own(folder)
    return family


def check(folder: Path, family: Family) -> dict[str, tuple[str, str]]:
    """The folder's components, library and class by name, after a look at all files.

    Raises `KSGenError` for the first file that is missing or not whole, or a component of a class that is not known.
    """
    found: dict[str, tuple[str, str]] = {}
    index = read_json(folder / "model_index.json")
    for name, entry in index.items():
        named = isinstance(entry, list) and len(entry) == 2 and all(isinstance(word, str) for word in entry)
        if named and name not in family.unused:
            _check_class(folder, name, *entry)
            found[name] = (entry[0], entry[1])
    needed = dict.fromkeys((*family.parts, *found))
    if index.get("boundary_ratio") is not None:
        needed |= dict.fromkeys(family.denoisers)
    if lacking := [name for name in needed if name not in found]:
        where = folder / lacking[0]
        raise KSGenError(f"{where} is missing, which {family.name} needs and {folder / 'model_index.json'} must name.")
    weights = [name for name in needed if _has_weights(*found[name])]
    others = [name for name in needed if name not in weights and name != "scheduler"]
    configs = [f"{name}/config.json" for name in weights]
    check_folder(
        folder,
        f"a {family.name} folder of diffusers",
        ("model_index.json", "scheduler/scheduler_config.json", *configs, *others),
        weights,
    )
    return found


def _check_class(folder: Path, name: str, library: str, kind: str) -> None:
    known = (*MODULES["transformers"], *OTHERS) if library == "transformers" else MODULES.get(library, ())
    plain = library == "diffusers" and (kind.endswith("Scheduler") or kind in GUIDERS)
    if kind not in known and not plain:
        everything = [*(module for modules in MODULES.values() for module in modules), *OTHERS, *GUIDERS]
        raise KSGenError(
            f"{folder / 'model_index.json'} names {library}.{kind} as {name}, which is not known. Known are "
            f"{', '.join(everything)} and the schedulers of diffusers."
        )


def _has_weights(library: str, kind: str) -> bool:
    return kind in MODULES.get(library, ())


def read_folder(folder: Path, family: Family, found: dict[str, tuple[str, str]], dtype: torch.dtype) -> Any:
    """The folder's pipeline of the class that renders. Raises `KSGenError` if a part cannot be read or lacks weights.

    `found` is what `check` gave.
    """
    if importlib.util.find_spec("accelerate") is None:
        raise KSGenError(
            "diffusers loads video transformers with the Python package accelerate, which is not installed. Install it "
            "with the Python that runs this: python -m pip install accelerate"
        )
    classes = {name: _class(at, kind) for name, (at, kind) in found.items()}
    classes = {name: kind for name, kind in classes.items() if _has_weights(*found[name])}
    kind = _class("diffusers", family.pipeline)
    # What the pipeline may do without must be said to be absent.
    absent = dict.fromkeys(name for name in kind._optional_components if name not in found)
    parts = read_parts(folder, classes, dtype, family.precise)
    try:
        return read_pipeline(folder, kind, **absent, **parts)
    except (KSGenError, ImportError) as error:
        _check_sentencepiece(folder, list(found), error)
        raise KSGenError(f"{folder} cannot be loaded: {error}") from error


def _check_sentencepiece(folder: Path, names: list[str], error: Exception) -> None:
    """Say so if a tokenizer is there as SentencePiece's file alone and the packages that read it are not; transformers
    asks for another one."""
    alone = [
        folder / name
        for name in names
        if any((folder / name).glob("*.model")) and not (folder / name / "tokenizer.json").is_file()
    ]
    lacking = [package for package, module in SENTENCEPIECE.items() if not _is_installed(module)]
    if alone and lacking:
        raise KSGenError(
            f"{alone[0]} is read with the Python package(s) {' and '.join(lacking)}, which this Python lacks. Install "
            f"with the Python that runs this: python -m pip install {' '.join(lacking)}"
        ) from error


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package around it
        return False


def _class(library: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(LIBRARIES[library]), name)
    except (ImportError, AttributeError, RuntimeError) as error:  # diffusers makes the first of them the last
        package = LIBRARIES[library].split(".")[0]
        raise KSGenError(
            f"The installed {package} has no {name}: {error}. Install a newer one with the Python that runs this: "
            f"python -m pip install -U {package}"
        ) from error


def save_folder(model: ClipModel, folder: Path, dtype: torch.dtype) -> None:
    """Write what `ClipModel.load` reads. Raises `KSGenError` if the folder cannot be written."""
    pipe = model.pipe
    parts = model.parts()
    for name, part in parts.items():
        save = save_diffusers_part if type(part).__module__.startswith("diffusers") else save_transformers_part
        save(part, folder / name, dtype)
    for name, component in pipe.components.items():
        if component is not None and name not in parts and name != "scheduler":
            # Tokenizers and image processors alike.
            save_tokenizer(component, model.folder and model.folder / name, folder / name)
    save_config(pipe.scheduler.config, folder / "scheduler/scheduler_config.json", type(pipe.scheduler).__name__)
    index = {key: _entry_for_both(value) for key, value in pipe.config.items()}
    save_config(index, folder / "model_index.json", type(pipe).__name__)
    if model.own:
        write_json(folder / DEFAULTS_FILE, model.own)


def _entry_for_both(value: object) -> object:
    """An entry of `model_index.json` for transformers 4 and 5; what is no component stays."""
    if isinstance(value, list | tuple) and len(value) == 2 and value[0] == "transformers":
        return [value[0], OLD_NAMES.get(value[1], value[1])]
    return value
