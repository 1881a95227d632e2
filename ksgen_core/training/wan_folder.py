"""An untrained clip model in code: every part that `WanClipModel.load` reads, at a chosen size."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from ..clips.wan_diffusers import WanClipModel
from .clip_tokenizer import WORD_END, byte_letters, train_merges

HEAD_WIDTH = 128
"""Of Wan's attention heads; ComfyUI takes it for granted."""
SHIFT = 8.0
"""Of the flow schedule; ComfyUI takes it for granted for Wan (supported_models.WAN21_T2V)."""


DEFAULTS = {"updates": 12, "guidance": 1.0, "frames": 17, "fps": 8.0, "negative": ""}
"""What clips of a model that is trained here are rendered with: its films have so many frames, some of no text."""


@dataclass(frozen=True)
class WanSizes:
    """Sizes of all parts: widths and counts, `text_length` in tokens."""

    vae_width: int
    heads: int
    layers: int
    ff_width: int
    text_merges: int
    text_length: int
    text_width: int
    text_layers: int
    text_heads: int
    text_ff: int

    def __post_init__(self) -> None:
        if self.text_width % self.text_heads:
            raise ValueError(f"text_width must be a multiple of text_heads, got {self.text_width}, {self.text_heads}")


MINI = WanSizes(
    vae_width=8,
    heads=2,
    layers=4,
    ff_width=640,
    text_merges=600,
    text_length=32,
    text_width=128,
    text_layers=2,
    text_heads=4,
    text_ff=256,
)
"""What ships with the pack."""

TINY = WanSizes(
    vae_width=4,
    heads=1,
    layers=1,
    ff_width=64,
    text_merges=60,
    text_length=16,
    text_width=32,
    text_layers=1,
    text_heads=2,
    text_ff=32,
)
"""For tests: everything minimal, real all the same."""


def new_wan_folder(folder: str | Path, texts: list[str], sizes: WanSizes, seed: int = 0) -> None:
    """Write an untrained `<folder>/clips`, its tokenizer trained on `texts`. The same seed gives the same folder.

    The global random state stays as it was. Raises `KSGenError` if the folder cannot be written.
    """
    folder = Path(folder) / "clips"
    write_tokenizer(folder / "tokenizer", texts, sizes.text_merges, sizes.text_length)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _new_model(folder, sizes).save(folder)


def _new_model(folder: Path, sizes: WanSizes) -> WanClipModel:
    from diffusers import (
        AutoencoderKLWan,
        FlowMatchEulerDiscreteScheduler,
        WanImageToVideoPipeline,
        WanTransformer3DModel,
    )
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder / "tokenizer"))
    vae = AutoencoderKLWan(base_dim=sizes.vae_width)
    channels = vae.config.z_dim
    transformer = WanTransformer3DModel(
        num_attention_heads=sizes.heads,
        attention_head_dim=HEAD_WIDTH,
        in_channels=2 * channels + 4,
        out_channels=channels,
        text_dim=sizes.text_width,
        ffn_dim=sizes.ff_width,
        num_layers=sizes.layers,
    )
    text_encoder = UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer),
            d_model=sizes.text_width,
            d_kv=sizes.text_width // sizes.text_heads,
            d_ff=sizes.text_ff,
            num_layers=sizes.text_layers,
            num_heads=sizes.text_heads,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    pipe = WanImageToVideoPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        transformer=transformer,
    )
    model = WanClipModel(pipe, folder, DEFAULTS)
    for part in model.parts().values():
        part.eval()
    return model


def write_tokenizer(folder: Path, texts: list[str], merges: int, length: int) -> None:
    """Write a byte-level BPE tokenizer that ends each text with one mark, as T5's does, for transformers 4.57 and 5.

    `merges` is the largest number of merges, `length` the fixed number of tokens per text. Bytes are the base of the
    vocabulary, so that any text at all has tokens, whatever the training texts were; letters become small ones.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    letters = list(byte_letters().values())
    pairs = train_merges(texts, merges)
    pad, end = "<pad>", "</s>"
    words = [pad, end, *letters, *(letter + WORD_END for letter in letters), *("".join(pair) for pair in pairs)]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, pairs, end_of_word_suffix=WORD_END))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    splits = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")  # CLIP's, which the merges came from
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(splits, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, 1)])
    tokenizer.decoder = decoders.Sequence([decoders.Replace(WORD_END, byte_letters()[ord(" ")]), decoders.ByteLevel()])
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in (pad, end)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"pad_token": pad, "eos_token": end, "unk_token": end}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": length, **special}
    for name, data in (("tokenizer_config.json", config), ("special_tokens_map.json", special)):
        (folder / name).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
