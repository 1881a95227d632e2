"""A language model's folder: looked over before it is read, and read without its code, its pickles or gaps.

config.json  *.safetensors  tokenizer.json                        a text-only model
preprocessor_config.json or processor_config.json                 with it, a model that sees
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from ..checkpoints import read_json, read_metadata
from ..checkpoints_diffusers import LIBRARY_ERRORS
from ..errors import KSGenError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# What the hub is asked for: never code, pickles or a second copy in the makers' own format.
FROM_HUB = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.tiktoken")
NOT_FROM_HUB = ("original/*", "consolidated*", "onnx/*", "*/*.safetensors")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json")
PROCESSORS = ("processor_config.json", "preprocessor_config.json")
READ_ERRORS = (*LIBRARY_ERRORS, ImportError, AttributeError)


def find_folder(folder_or_id: str | Path) -> Path:
    """The folder of that path, or the one to which the hub's model of that id (owner/name) was downloaded.

    The hub is asked for what is new and does without where it cannot be reached. Raises `KSGenError`, naming the
    folders that were looked in, if there is no such model.
    """
    name = str(folder_or_id)
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            raise KSGenError(f"{path} is a GGUF file. {_instead_of_gguf()}")
        raise KSGenError(f"{path} is a file. Give the folder of a language model, the one with its config.json.")
    if not HUB_ID.fullmatch(name):
        raise KSGenError(
            f"There is no language model in {path.absolute()}: the folder is missing. Give a folder in the format of "
            "transformers, or a model's id on the Hugging Face hub (owner/name)."
        )
    from huggingface_hub import constants, snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(FROM_HUB), ignore_patterns=list(NOT_FROM_HUB)))
    except (OSError, ValueError) as error:
        raise KSGenError(
            f"The language model {name} is not to be had: there is no folder {path.absolute()}, none in the hub's "
            f"cache {constants.HF_HUB_CACHE}, and the hub says: {_first_line(error)} Check the name and the "
            "connection, or download the model and give its folder."
        ) from error


def look_over(folder: Path) -> bool:
    """Whether the folder's model sees pictures; reads no weights.

    Raises `KSGenError`, naming what is missing, broken or of a kind that is not read, and saying what to do.
    """
    kinds = {file.suffix.lower() for file in folder.iterdir()}
    if not (folder / "config.json").is_file():
        if ".gguf" in kinds:
            raise KSGenError(f"{folder} holds a GGUF file and no config.json. {_instead_of_gguf()}")
        if (folder / "model_index.json").is_file():
            raise KSGenError(f"{folder} is a folder of diffusers, an image or video model. Give a language model's.")
        raise KSGenError(f"{folder} holds no language model: its config.json is missing. Get the whole folder.")
    config = read_json(folder / "config.json")
    sees = _sees(config, folder)
    _check_weights(folder, kinds)
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise KSGenError(f"{folder} has no tokenizer ({TOKENIZERS[0]}). Get it from where the model is from.")
    if sees and not any((folder / name).is_file() for name in PROCESSORS):
        raise KSGenError(
            f"{folder} has no picture processor ({' or '.join(PROCESSORS)}). Get it from where the model is from."
        )
    return sees


def _sees(config: dict[str, Any], folder: Path) -> bool:
    import transformers
    from transformers.models.auto import modeling_auto as auto

    kind = config.get("model_type")
    with_pictures = auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(kind)
    text_only = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    if config.get("is_encoder_decoder") or not (with_pictures or text_only):
        if kind is not None and "auto_map" in config:
            reason = "it brings its own Python code, which is never run here"
        elif config.get("is_encoder_decoder"):
            reason = "it rewrites a text instead of going on with it"
        else:
            reason = f"transformers {transformers.__version__} knows no such language model; a newer one may"
        raise KSGenError(
            f"The model in {folder}, of the type {kind!r}, cannot plan: {reason}. Choose a model that "
            "AutoModelForImageTextToText or AutoModelForCausalLM of transformers reads."
        )
    # Some families have one type for both; then the folder says which it holds.
    return bool(with_pictures) and (text_only == with_pictures or text_only not in (config.get("architectures") or []))


def _check_weights(folder: Path, kinds: set[str]) -> None:
    files = {file.name for file in folder.glob("*.safetensors") if not file.name.startswith("consolidated")}
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise KSGenError(f"{index} has no weight_map. Get that file again.")
        files = {str(name) for name in weight_map.values()}
    for name in sorted(files):
        if Path(name).name != name:
            raise KSGenError(f"{index} names a file outside its folder: {name!r}. Get that file again.")
        read_metadata(folder / name)
    if files:
        return
    if kinds & set(PICKLES):
        raise KSGenError(
            f"{folder} holds its weights as pickles ({', '.join(sorted(kinds & set(PICKLES)))}), which can run any "
            "code when they are read. Get them as .safetensors."
        )
    if ".gguf" in kinds:
        raise KSGenError(f"{folder} holds its weights as GGUF. {_instead_of_gguf()}")
    raise KSGenError(f"{folder} holds no .safetensors weights. Get the whole folder.")


def read_model(folder: Path, sees: bool, dtype: Any) -> Any:
    """The folder's model, on the CPU, in `dtype` or, if that is None, in the one its config names.

    Raises `KSGenError` if it cannot be read or lacks weights: transformers would fill those with random numbers.
    """
    import transformers

    auto: Any = transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM
    try:
        model, info = auto.from_pretrained(
            str(folder),
            dtype="auto" if dtype is None else dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except READ_ERRORS as error:
        raise KSGenError(
            f"The language model in {folder} cannot be loaded: {_first_line(error)} Get its files again, install what "
            "is missing, or choose another model."
        ) from error
    if lacking := sorted(map(str, info["missing_keys"])):
        raise KSGenError(
            f"The language model in {folder} cannot be loaded: it lacks {len(lacking)} weights, the first is "
            f"{lacking[0]}. Get its files again."
        )
    return model


def read_processor(folder: Path, sees: bool) -> Any:
    """The folder's processor if its model sees, else its tokenizer. Raises `KSGenError` if it cannot be read."""
    import transformers
    from transformers.utils import is_torchvision_available

    kind: Any = transformers.AutoProcessor if sees else transformers.AutoTokenizer
    if sees and not is_torchvision_available():
        kind = _without_films(folder) or kind
    try:
        return kind.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except READ_ERRORS as error:
        what = "processor" if sees else "tokenizer"
        raise KSGenError(
            f"The {what} in {folder} cannot be loaded: {_first_line(error)} Get its files again, or install what is "
            "missing."
        ) from error


def _without_films(folder: Path) -> type | None:
    """The folder's kind of processor without its part for films, which alone needs torchvision; None if it has none."""
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    named = [read_json(folder / name) for name in (*PROCESSORS, "tokenizer_config.json") if (folder / name).is_file()]
    names = [config["processor_class"] for config in named if config.get("processor_class")]
    name = names[0] if names else PROCESSOR_MAPPING_NAMES.get(str(read_json(folder / "config.json").get("model_type")))
    kind = getattr(transformers, str(name), None)
    if kind is None or "video_processor" not in inspect.signature(kind.__init__).parameters:
        return None

    class PicturesOnly(kind):
        # transformers 4 reads the parts from here, transformers 5 from the signature.
        attributes = ["image_processor", "tokenizer"]

        def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
            kwargs.pop("video_processor", None)
            super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    return PicturesOnly


def _instead_of_gguf() -> str:
    return (
        "Give a folder in the format of transformers (config.json, .safetensors, tokenizer.json), or serve the GGUF "
        "with llama.cpp or Ollama and plan through that server."
    )


def _first_line(error: BaseException) -> str:
    """What an error says first, as a sentence; libraries add pages of advice."""
    lines = str(error).strip().splitlines()
    line = lines[0].strip() if lines else type(error).__name__
    return line if line.endswith((".", "!", "?")) else f"{line}."
