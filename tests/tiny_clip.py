"""A CLIP of transformers, tiny and of random weights: pictures and texts in one space."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from ksgen_core.retrieval.mllm_clip import CLIP_MEAN, CLIP_STD
from ksgen_core.training.clip_tokenizer import write_clip_tokenizer


def new_clip_folder(folder: Path, texts: Sequence[str], side: int = 32) -> Path:
    """Write the folder, with a tokenizer that knows the words of `texts`, for pictures of `side` pixels."""
    from transformers import CLIPConfig, CLIPModel

    folder.mkdir(parents=True, exist_ok=True)
    write_clip_tokenizer(folder, list(texts), merges=60, length=16)
    words = len(json.loads((folder / "vocab.json").read_text(encoding="utf-8")))
    size = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2}
    text = {**size, "vocab_size": words, "max_position_embeddings": 16, "eos_token_id": words - 1}
    config = CLIPConfig(
        text_config=text, vision_config={**size, "image_size": side, "patch_size": 8}, projection_dim=12
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    mean_and_std = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(mean_and_std), encoding="utf-8")
    return folder
