"""Folders of diffusers and transformers parts: checked before reading, read without gaps, written whole or not at all.

What every stage's model needs; what a family has of its own stands beside it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checkpoints import read_json, read_metadata, write_atomically, write_json
from .errors import KSGenError

if TYPE_CHECKING:
    import torch
    from torch import nn

LIBRARY_ERRORS = (OSError, ValueError, TypeError, KeyError, RuntimeError, NotImplementedError)
"""What the two libraries raise for files that they cannot read."""


def check_folder(folder: Path, what: str, needed: Sequence[str], weights: Sequence[str]) -> str:
    """The pipeline class that the folder names, after a look at its files.

    `needed` must exist; in each folder of `weights` that is there, the safetensors files must be whole, and none of
    those that an index names may be missing. Only headers are read. Raises `KSGenError` for the first file that is not
    so; `what` says in it what the folder should be.
    """
    if not folder.is_dir():
        raise KSGenError(f"The folder {folder} is missing. It should be {what}: choose a models folder that has it.")
    for name in needed:
        if not (folder / name).exists():
            raise KSGenError(f"{folder / name} is missing. The folder must be {what}, complete.")
    for part in weights:
        if (folder / part).is_dir():
            check_weights(folder / part)
    return str(read_json(folder / "model_index.json").get("_class_name") or "pipeline without a name")


def check_weights(part: Path) -> None:
    """Raise `KSGenError` if a part has no safetensors files, one that is not whole, or not all that its index names."""
    paths = sorted(part.glob("*.safetensors"))
    if not paths:
        raise KSGenError(f"{part} holds no .safetensors weights. Get that part again, as safetensors.")
    for path in paths:
        read_metadata(path)
    files, kind = {path.name for path in paths}, variant(part)
    end = f".safetensors.index.{kind}.json" if kind else ".safetensors.index.json"
    indexes = sorted(part.glob(f"*{end}"))
    for index in indexes:
        named = read_json(index).get("weight_map")
        if not isinstance(named, dict) or not named:
            raise KSGenError(f"{index} names no weights. Get that file again.")
        if lacking := sorted(set(map(str, named.values())) - files):
            raise KSGenError(f"{part / lacking[0]} is missing, which {index.name} names. Get that part again.")
    if not indexes and all("-of-" in name for name in files):
        raise KSGenError(f"{part} lacks the file *{end}, which says where its weights are. Get that part again.")


def read_parts(
    folder: Path, classes: Mapping[str, type], dtype: torch.dtype, precise: Sequence[str] = ()
) -> dict[str, nn.Module | None]:
    """The parts of a folder by name, each of its class; None for one that has no folder. Those of `precise` are read
    in float32.

    Raises `KSGenError` if a part cannot be read or lacks weights: the libraries would fill those with random numbers.
    """
    import diffusers
    import torch

    # diffusers renamed `torch_dtype` to `dtype` in 0.40, transformers before our floor of 4.57.
    old = tuple(map(int, diffusers.__version__.split(".")[:2])) < (0, 40)
    parts: dict[str, nn.Module | None] = {}
    for name, kind in classes.items():
        parts[name] = None
        if not (folder / name / "config.json").is_file():
            continue
        word = "torch_dtype" if old and kind.__module__.startswith("diffusers") else "dtype"
        try:
            parts[name], info = kind.from_pretrained(  # type: ignore[attr-defined]
                str(folder / name),
                variant=variant(folder / name),
                **{word: torch.float32 if name in precise else dtype},
                local_files_only=True,
                output_loading_info=True,
            )
        except LIBRARY_ERRORS as error:
            raise KSGenError(f"{folder / name} cannot be loaded: {error} Get that part again.") from error
        if lacking := sorted(info["missing_keys"]):
            raise KSGenError(
                f"{folder / name} cannot be loaded: it lacks {len(lacking)} weights, the first is {lacking[0]}. "
                "Get that part again."
            )
    return parts


def read_pipeline(folder: Path, kind: type, **parts: Any) -> Any:
    """The folder's pipeline of class `kind`, with these parts. Raises `KSGenError` if it cannot be put together."""
    try:
        return kind.from_pretrained(str(folder), local_files_only=True, **parts)  # type: ignore[attr-defined]
    except LIBRARY_ERRORS as error:
        raise KSGenError(f"{folder / 'model_index.json'} cannot be loaded: {error} Get that part again.") from error


def variant(part: Path) -> str | None:
    """A part's weights may be there as half-precision files only (`*.fp16.safetensors`)."""
    names = [file.name for file in part.glob("*.safetensors")]
    return "fp16" if names and all(".fp16" in name for name in names) else None


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


def save_config(config: Mapping[str, Any], path: Path, kind: str) -> None:
    """A diffusers config, without the name of the folder that it was read from."""
    import diffusers

    plain = {key: value for key, value in config.items() if not key.startswith("_")}
    write_json(path, {"_class_name": kind, "_diffusers_version": diffusers.__version__, **plain})


def save_state(
    part: nn.Module,
    path: Path,
    dtype: torch.dtype,
    leave_out: Sequence[str] = (),
    name: Callable[[str], str] = str,
) -> None:
    """The weights of a part, floats in `dtype`, without names that contain one of `leave_out`; `name` changes names."""
    from safetensors.torch import save_file

    state = {
        # Cloned: an embedding that two names share is written under both, for all versions of transformers.
        name(key): t.detach().to("cpu", dtype if t.is_floating_point() else t.dtype).contiguous().clone()
        for key, t in part.state_dict().items()
        if not any(word in key for word in leave_out)
    }
    write_atomically(path, lambda temporary: save_file(state, temporary, metadata={"format": "pt"}))


def save_diffusers_part(part: Any, folder: Path, dtype: torch.dtype, leave_out: Sequence[str] = ()) -> None:
    """A part of diffusers: config and weights."""
    save_config(part.config, folder / "config.json", type(part).__name__)
    save_state(part, folder / "diffusion_pytorch_model.safetensors", dtype, leave_out)


def save_transformers_part(part: Any, folder: Path, dtype: torch.dtype) -> None:
    """A model of transformers, under the names that its files have always had: transformers 4 knows no others."""
    config = {key: value for key, value in json.loads(part.config.to_json_string()).items() if not key.startswith("_")}
    for old in ("torch_dtype", "dtype"):
        config.pop(old, None)
    config |= {"architectures": [type(part).__name__], "dtype": str(dtype).removeprefix("torch.")}
    write_json(folder / "config.json", config)
    save_state(part, folder / "model.safetensors", dtype, name=lambda key: _name_in_files(part, key))


def _name_in_files(part: Any, key: str) -> str:
    """The name of a weight in files: transformers 5 has dropped the first word of these parts' names."""
    kind = type(part).__name__
    if kind == "CLIPTextModel" and not hasattr(part, "text_model"):
        return f"text_model.{key}"
    if kind in ("CLIPVisionModel", "SiglipVisionModel") and not hasattr(part, "vision_model"):
        return f"vision_model.{key}"
    tower = "model.vision_tower."  # of Gemma 3, a SiglipVisionModel
    if key.startswith(tower) and not key.startswith(f"{tower}vision_model."):
        return f"{tower}vision_model.{key.removeprefix(tower)}"
    return key


def save_tokenizer(tokenizer: Any, source: Path | None, folder: Path) -> None:
    """Copied from the folder `source` that it was read from, not saved again.

    transformers 4 and 5 write different files, the copied ones serve both.
    """
    if source is None:
        tokenizer.save_pretrained(folder)
    elif source.resolve() != folder.resolve():
        shutil.copytree(source, folder, dirs_exist_ok=True)
