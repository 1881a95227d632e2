"""The files of a clip model's folder: checked before reading, written whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..checkpoints import read_metadata, write_atomically
from ..errors import KSGenError

if TYPE_CHECKING:
    from .wan_diffusers import ClipModel

WEIGHTS = ("transformer", "vae", "text_encoder")
NEEDED = ("model_index.json", "scheduler/scheduler_config.json", "tokenizer") + tuple(
    f"{part}/config.json" for part in WEIGHTS
)


def save_folder(model: ClipModel, folder: Path, dtype: torch.dtype) -> None:
    """Write what `ClipModel.load` reads. Raises `KSGenError` if the folder cannot be written."""
    from safetensors.torch import save_file

    pipe = model.pipe
    for name, part in model.parts().items():
        file = "model.safetensors" if name == "text_encoder" else "diffusion_pytorch_model.safetensors"
        state = {
            # Cloned: an embedding that two names share is written under both, for all versions of transformers.
            key: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype).contiguous().clone()
            for key, tensor in part.state_dict().items()
        }
        write_atomically(folder / name / file, lambda path, state=state: save_file(state, path, {"format": "pt"}))
        if name == "text_encoder":
            config = part.config.to_dict()
            config.pop("_name_or_path", None)
            for word in ("dtype", "torch_dtype"):
                if word in config:
                    config[word] = str(dtype).removeprefix("torch.")
            _write_json(folder / name / "config.json", config)
        else:
            _save_config(part.config, folder / name / "config.json", type(part).__name__)
    if model.folder is None:
        pipe.tokenizer.save_pretrained(folder / "tokenizer")
    elif (model.folder / "tokenizer").resolve() != (folder / "tokenizer").resolve():
        # Copied, not saved again: transformers 4 and 5 write different files, these serve both.
        shutil.copytree(model.folder / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    _save_config(pipe.scheduler.config, folder / "scheduler/scheduler_config.json", type(pipe.scheduler).__name__)
    _save_config(pipe.config, folder / "model_index.json", type(pipe).__name__)


def _save_config(config, path: Path, kind: str) -> None:
    """A diffusers config, without the name of the folder that it was read from."""
    import diffusers

    plain = {key: value for key, value in config.items() if not key.startswith("_")}
    _write_json(path, {"_class_name": kind, "_diffusers_version": diffusers.__version__, **plain})


def _write_json(path: Path, data: object) -> None:
    text = json.dumps(data, indent=2, sort_keys=True) + "\n"
    write_atomically(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))


def check(folder: Path) -> None:
    """Raise `KSGenError` for the first file of the folder that is missing or not whole."""
    if not folder.is_dir():
        raise KSGenError(f"The clip model's folder {folder} is missing. Choose a models folder that holds clips/.")
    for name in NEEDED:
        if not (folder / name).exists():
            raise KSGenError(f"{folder / name} is missing. The folder must be a complete Wan folder of diffusers.")
    for part in (*WEIGHTS, "transformer_2"):
        files = sorted((folder / part).glob("*.safetensors"))
        if not files and (folder / part).is_dir():
            raise KSGenError(f"{folder / part} holds no .safetensors weights. Get that part again, as safetensors.")
        for file in files:
            read_metadata(file)
    kind = _read_json(folder / "model_index.json").get("_class_name") or "pipeline without a name"
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


def read_pipeline(folder: Path, dtype: torch.dtype):
    """The folder's `WanImageToVideoPipeline`.

    Raises `KSGenError` if a part cannot be read or lacks weights: the libraries would fill those with random numbers.
    """
    import diffusers
    import transformers

    classes = {
        "transformer": diffusers.WanTransformer3DModel,
        "transformer_2": diffusers.WanTransformer3DModel,
        "vae": diffusers.AutoencoderKLWan,
        "text_encoder": transformers.UMT5EncoderModel,
    }
    parts: dict[str, nn.Module | None] = {}
    name = "model_index.json"
    try:
        for name, kind in classes.items():
            parts[name] = None
            if (folder / name / "config.json").is_file():
                # The same argument has other names in the two libraries.
                in_dtype = {"dtype" if name == "text_encoder" else "torch_dtype": dtype}
                parts[name], info = kind.from_pretrained(
                    str(folder / name), local_files_only=True, output_loading_info=True, **in_dtype
                )
                if lacking := sorted(info["missing_keys"]):
                    raise ValueError(f"it lacks {len(lacking)} weights, the first is {lacking[0]}.")
        name = "model_index.json"
        return diffusers.WanImageToVideoPipeline.from_pretrained(
            str(folder), local_files_only=True, image_encoder=None, image_processor=None, **parts
        )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, NotImplementedError) as error:
        raise KSGenError(f"{folder / name} cannot be loaded: {error} Get that part again.") from error


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


def _read_json(path: Path) -> dict:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KSGenError(f"{path} cannot be read ({error}). Get that file again.") from error
    if not isinstance(data, dict):
        raise KSGenError(f"{path} must hold a JSON object, got {type(data).__name__}. Get that file again.")
    return data
