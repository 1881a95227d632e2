"""An untrained mini MLLM in code: a Llava folder with all that `AutoModelForImageTextToText` and `AutoProcessor` read.

Llava, because its image tower is CLIP's: the one that the key steps' image encoder has already trained on the states
of this world is taken over. Its processor needs no torchvision.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ..checkpoints_diffusers import quietly
from .clip_tokenizer import byte_letters

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

IMAGE, REPLY, END, PAD = "<|picture|>", "<|reply|>", "<|end|>", "<|pad|>"
SPECIAL = (PAD, END, REPLY, IMAGE)
OPEN_STEPS, NEXT_STEP, CLOSE_STEPS = '", "steps": ["', '", "', '"]}'
REPLY_START, REPLY_NEXT, REPLY_END = '{"steps": [{"text": "', '"}, {"text": "', '"}]}'
PHRASES = (
    *("Examples:\n", '{"goal": "', OPEN_STEPS, NEXT_STEP, CLOSE_STEPS, 'Goal: "', 'Done: ["', '"]', '"', "\n"),
    *(REPLY_START, REPLY_NEXT, REPLY_END),
)
"""What `wording.user_text` and a reply are made of besides words; each is one token."""
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}" + IMAGE + "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}" + END + "{% else %}" + REPLY + "{% endif %}"
    "{% endif %}{% endfor %}"
)
"""The system message is left out: this model does one thing, and short prompts are cheap."""
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""CLIP's, with which the image tower was trained."""

OWN_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("preprocessor_config.json", "processor_config.json", "chat_template.jinja"),
)
"""What a folder holds besides what the model itself writes."""


@dataclass(frozen=True)
class PlannerSizes:
    """Sizes of tower and language model: widths and counts, `image` and `patch` in pixels, `length` in tokens."""

    image: int
    patch: int
    tower_width: int
    tower_layers: int
    tower_heads: int
    width: int
    layers: int
    heads: int
    ff: int
    length: int

    def __post_init__(self) -> None:
        if self.image % self.patch or self.width % self.heads or self.tower_width % self.tower_heads:
            raise ValueError(f"image is a multiple of patch, widths are multiples of heads, got {self}")

    @property
    def image_tokens(self) -> int:
        return (self.image // self.patch) ** 2


MINI = PlannerSizes(
    image=128,
    patch=16,
    tower_width=128,
    tower_layers=3,
    tower_heads=4,
    width=192,
    layers=6,
    heads=4,
    ff=512,
    length=2048,
)
"""What ships with the pack. Three of the four layers of the key steps' image encoder: what it uses lies there."""

TINY = PlannerSizes(
    image=32,
    patch=16,
    tower_width=32,
    tower_layers=1,
    tower_heads=2,
    width=64,
    layers=2,
    heads=2,
    ff=128,
    length=512,
)
"""For tests: everything minimal, real all the same."""


def new_planner_folder(folder: Path, texts: Sequence[str], sizes: PlannerSizes, seed: int = 0) -> None:
    """Write an untrained model whose tokenizer knows the words of `texts`. The same seed gives the same folder.

    The global random state stays as it was. Raises `KSGenError` if the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder, texts, sizes.length)
    _write_processor(folder, sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _write_weights(new_model(folder, sizes), folder)


def new_model(folder: Path, sizes: PlannerSizes) -> LlavaForConditionalGeneration:
    """The model for the tokenizer in `folder`, with random weights."""
    from transformers import (
        CLIPVisionConfig,
        GenerationConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        PreTrainedTokenizerFast,
    )

    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
    marks = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    tower = CLIPVisionConfig(
        hidden_size=sizes.tower_width,
        intermediate_size=4 * sizes.tower_width,
        num_hidden_layers=sizes.tower_layers,
        num_attention_heads=sizes.tower_heads,
        image_size=sizes.image,
        patch_size=sizes.patch,
        projection_dim=sizes.tower_width,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes.width,
        intermediate_size=sizes.ff,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads,
        max_position_embeddings=sizes.length,
        tie_word_embeddings=False,
        **marks,
    )
    config = LlavaConfig(
        vision_config=tower,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=sizes.image_tokens,
        tie_word_embeddings=False,
        **marks,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config = GenerationConfig(**marks, do_sample=False)
    return model.eval()


def write_tokenizer(folder: Path, texts: Sequence[str], length: int) -> None:
    """Write a tokenizer of whole words and `PHRASES`, for transformers 4.57 and 5; what it does not know goes by bytes.

    A byte-level BPE without merges that looks whole pieces up first, so constrained decoding knows every token's bytes.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    letters = byte_letters()
    words = sorted({word for text in texts for word in re.findall(r" ?[^\W\d_]+", text)} - {""})
    # With and without a space before it: a word may begin a text.
    words = sorted({form for word in words for form in (word.strip(), " " + word.strip())})
    pieces = dict.fromkeys([*letters.values()])
    pieces |= dict.fromkeys("".join(letters[byte] for byte in piece.encode()) for piece in (*PHRASES, *words))
    vocabulary = {piece: number for number, piece in enumerate([*SPECIAL, *pieces])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], ignore_merges=True))
    phrases = "|".join(re.escape(phrase) for phrase in sorted(PHRASES, key=len, reverse=True))
    split = Regex(phrases + r"| ?\p{L}+|\p{N}|\s|[^\s\p{L}\p{N}]")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(split, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"pad_token": PAD, "eos_token": END}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": length,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        **special,
    }
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", special)


def _write_processor(folder: Path, sizes: PlannerSizes) -> None:
    side = {"height": sizes.image, "width": sizes.image}
    image = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": side,
        "do_center_crop": False,
        "crop_size": side,
        "image_mean": MEAN,
        "image_std": DEVIATION,
    }
    whole = {
        "processor_class": "LlavaProcessor",
        "patch_size": sizes.patch,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "image_token": IMAGE,
    }
    _write_json(folder / "preprocessor_config.json", image)
    _write_json(folder / "processor_config.json", whole)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")


def take_over_tower(model: LlavaForConditionalGeneration, encoder: nn.Module) -> None:
    """Copy the weights of a CLIP image encoder of the same width into the model's tower, as far as that reaches.

    Raises `ValueError` if it is of another size.
    """
    theirs = {key.removeprefix("vision_model."): value for key, value in encoder.state_dict().items()}
    tower = model.model.vision_tower
    wanted = {key: theirs.get(key.removeprefix("vision_model.")) for key in tower.state_dict()}
    for key, value in tower.state_dict().items():
        if (found := wanted[key]) is None or found.shape != value.shape:
            raise ValueError(f"the image encoder has no {key} of shape {tuple(value.shape)}")
    tower.load_state_dict(wanted)


@dataclass(eq=False)
class PlannerModel:
    """The mini MLLM in training, in float32, and the folder that it came from."""

    model: LlavaForConditionalGeneration
    tokenizer: PreTrainedTokenizerFast
    folder: Path

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> PlannerModel:
        from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

        with quietly():
            model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        return cls(model.to(device), tokenizer, folder)

    def parts(self) -> dict[str, nn.Module]:
        return {"planner": self.model}

    def save(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Write an ordinary transformers folder; the model itself stays as it is."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in OWN_FILES:
            (folder / name).write_bytes((self.folder / name).read_bytes())
        whole = deepcopy(self.model).to("cpu", dtype)
        for part in (whole.config.vision_config, whole.config.text_config):
            part.dtype = dtype  # transformers 4 reads each part in its own
        _write_weights(whole, folder)


def _write_weights(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Configs and weights, these by the names that every Llava folder has: transformers 5 reads them as well, but
    writes names of the tower that 4 does not know."""
    with quietly():
        model.save_pretrained(folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    old, new = "vision_tower.", "vision_tower.vision_model."
    named = {key if key.startswith(new) else key.replace(old, new): value for key, value in tensors.items()}
    path.unlink()
    save_file(named, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors writes for the owner alone


def _write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
