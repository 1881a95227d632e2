"""Kolors: SDXL's UNet with one text encoder, ChatGLM3, whose tokens the UNet projects to its own width.

    model_index.json unet/ vae/ text_encoder/ tokenizer/ scheduler/         diffusers' Kolors
    image_encoder/ ip_adapter/ skill_transformer.safetensors                as beside SDXL

Kolors' own IP-Adapter-Plus goes with OpenAI's CLIP ViT-L/14 at 336 pixels. Its first file is a pickle (.bin), which is
not read; its authors keep a safetensors one in the revision refs/pr/4 (diffusers' documentation of Kolors says so).

Legend: T texts, L tokens per text, C their width, which is the pooled width too.
"""

from __future__ import annotations

from typing import Any

import torch

from .backbone_diffusers import Backbone, Texts

TEXT_LENGTH = 256
"""Tokens per text, as in diffusers' KolorsPipeline."""


def encode_kolors(pipe: Any, texts: list[str], device: torch.device) -> Texts:
    """As diffusers' KolorsPipeline does it: penultimate states, and the last state of the last token as the pooled one.

    Texts are padded on the left, so the last token is the text's own.
    """
    read = pipe.tokenizer(texts, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt").to(
        device
    )
    states = pipe.text_encoder(
        input_ids=read["input_ids"],
        attention_mask=read["attention_mask"],
        position_ids=read["position_ids"],
        use_cache=False,  # nothing is written on; transformers 5 saves configs that do not say it, diffusers asks them
        output_hidden_states=True,
    ).hidden_states
    # ChatGLM gives [L, T, C].
    return states[-2].transpose(0, 1).contiguous(), read["attention_mask"].bool(), states[-1][-1].clone()


def _kolors_classes() -> dict[str, Any]:
    from diffusers import KolorsPipeline
    from diffusers.pipelines.kolors.text_encoder import ChatGLMModel

    return {"pipeline": KolorsPipeline, "text_encoder": ChatGLMModel}


KOLORS = Backbone(
    name="Kolors",
    prefix="Kolors",
    text_encoders=("text_encoder",),
    tokenizers=("tokenizer",),
    named={"text_encoder": ("ChatGLMModel",), "tokenizer": ("ChatGLMTokenizer",)},
    classes=_kolors_classes,
    encode=encode_kolors,
    text_width=lambda pipe: pipe.text_encoder.config.hidden_size,
    packages=("sentencepiece",),
)
