"""A tiny but real HunyuanVideo 1.5 folder for tests, of random weights and made in code once a session: a Qwen2.5-VL
that reads, a ByT5 for texts in quotation marks, a SigLIP, the transformer, the VAE of 16 pixels and 4 frames a latent,
and the part that guides."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tiny_mllm import LLAMA_CHAT, SHAPE, byte_level

from ksgen_core.checkpoints_diffusers import quietly

KIND = "HunyuanVideo15ImageToVideoPipeline"
TARGET = 64
"""Square pictures become clips of this side; others have about as many pixels."""

_kept = TemporaryDirectory(prefix="ksgen-tiny-hunyuan-")


@cache
def folder() -> Path:
    """A folder in float32; nobody writes into it."""
    path = Path(_kept.name) / KIND
    with torch.random.fork_rng(), quietly():
        torch.manual_seed(0)
        new_pipeline().save_pretrained(path)
    return path


def new_pipeline():
    import diffusers
    from diffusers.guiders import ClassifierFreeGuidance
    from transformers import (
        ByT5Tokenizer,
        SiglipImageProcessor,
        SiglipVisionConfig,
        SiglipVisionModel,
        T5Config,
        T5EncoderModel,
    )

    tokenizer, text_encoder = qwen()
    tokenizer_2 = ByT5Tokenizer(extra_ids=0)
    channels, sight = 4, 16
    return diffusers.HunyuanVideo15ImageToVideoPipeline(
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=diffusers.HunyuanVideo15Transformer3DModel(
            in_channels=2 * channels + 1, out_channels=channels, num_attention_heads=2, attention_head_dim=16,
            num_layers=2, num_refiner_layers=1, mlp_ratio=2.0, text_embed_dim=SHAPE["hidden_size"],
            text_embed_2_dim=32, image_embed_dim=sight, rope_axes_dim=(4, 6, 6), target_size=TARGET,
        ),
        vae=diffusers.AutoencoderKLHunyuanVideo15(
            latent_channels=channels, block_out_channels=(8, 8, 8, 8, 8), layers_per_block=1
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=T5EncoderModel(
            T5Config(
                vocab_size=len(tokenizer_2), d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0,
                feed_forward_proj="gated-gelu", pad_token_id=0, eos_token_id=1, is_encoder_decoder=False,
            )
        ),
        tokenizer_2=tokenizer_2,
        guider=ClassifierFreeGuidance(guidance_scale=6.0),
        image_encoder=SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=sight, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=28,
                patch_size=14,
            )
        ),
        feature_extractor=SiglipImageProcessor(size={"height": 28, "width": 28}),
    )  # fmt: skip


def qwen():
    """A tokenizer and the text part of a Qwen2.5-VL; the pipeline takes the states two layers before the last."""
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]), eos_token="<|im_end|>",
        pad_token="<|endoftext|>", chat_template=LLAMA_CHAT,
    )  # fmt: skip
    config = Qwen2_5_VLTextConfig(
        **SHAPE | {"num_hidden_layers": 3}, vocab_size=448, max_position_embeddings=2048, eos_token_id=2,
        bos_token_id=0, rope_scaling={"type": "mrope", "mrope_section": [2, 3, 3]},
    )  # fmt: skip
    return tokenizer, Qwen2_5_VLTextModel(config)
