"""Tiny but real LTX-2 folders for tests, of random weights and made in code once a session: a Gemma 3 that reads, its
connectors, the two streams of the transformer, the VAEs of picture and sound, the vocoder; 32 pixels and 8 frames a
latent, as in the full-size folder."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tiny_mllm import SHAPE, byte_level

from ksgen_core.checkpoints_diffusers import quietly

KINDS = ("LTX2ImageToVideoPipeline", "LTX2ConditionPipeline")
RATE = 16000
"""Of the sound, in numbers a second and channel."""

# What LTX-2.3 has on.
NEWER_TRANSFORMER = dict(
    gated_attn=True, cross_attn_mod=True, audio_gated_attn=True, audio_cross_attn_mod=True, perturbed_attn=True,
    use_prompt_embeddings=False,
)  # fmt: skip
NEWER_CONNECTORS = dict(
    per_modality_projections=True, video_gated_attn=True, audio_gated_attn=True, video_hidden_dim=32,
    audio_hidden_dim=16, proj_bias=True,
)  # fmt: skip

_kept = TemporaryDirectory(prefix="ksgen-tiny-ltx2-")


@cache
def folder(kind: str = KINDS[0], newer: bool = False) -> Path:
    """A folder in float32 for one of `KINDS`, of LTX-2.3's make if it is to be `newer`; nobody writes into it."""
    path = Path(_kept.name) / f"{kind}-{newer}"
    with torch.random.fork_rng(), quietly():
        torch.manual_seed(0)
        new_pipeline(kind, newer).save_pretrained(path)
    return path


def new_pipeline(kind: str, newer: bool):
    import diffusers
    from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder

    tokenizer, text_encoder = gemma()
    text = text_encoder.config.text_config
    channels, sound_channels, mel_bins = 8, 2, 16
    audio_vae = diffusers.AutoencoderKLLTX2Audio(
        base_channels=sound_channels * mel_bins // 4, ch_mult=(1, 2, 4), num_res_blocks=1, resolution=32,
        latent_channels=sound_channels, sample_rate=RATE, mel_bins=mel_bins,
    )  # fmt: skip
    return getattr(diffusers, kind)(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024,
            max_image_seq_len=4096, shift_terminal=0.1,
        ),
        vae=diffusers.AutoencoderKLLTX2Video(
            latent_channels=channels, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 16, 32),
            layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1), spatial_compression_ratio=32,
            temporal_compression_ratio=8,
        ),
        audio_vae=audio_vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        connectors=LTX2TextConnectors(
            caption_channels=text.hidden_size, text_proj_in_factor=text.num_hidden_layers + 1,
            video_connector_num_attention_heads=2, video_connector_attention_head_dim=16,
            video_connector_num_layers=1, video_connector_num_learnable_registers=8,
            audio_connector_num_attention_heads=2, audio_connector_attention_head_dim=8 if newer else 16,
            audio_connector_num_layers=1, audio_connector_num_learnable_registers=8,
            connector_rope_base_seq_len=32, rope_type="split", **NEWER_CONNECTORS if newer else {},
        ),
        transformer=diffusers.LTX2VideoTransformer3DModel(
            in_channels=channels, out_channels=channels, num_attention_heads=2, attention_head_dim=16,
            cross_attention_dim=32, audio_in_channels=sound_channels * mel_bins // 4,
            audio_out_channels=sound_channels * mel_bins // 4, audio_num_attention_heads=2, audio_attention_head_dim=8,
            audio_cross_attention_dim=16, audio_sampling_rate=RATE, num_layers=2, caption_channels=text.hidden_size,
            rope_type="split", **NEWER_TRANSFORMER if newer else {},
        ),
        # A mel spectrum has 100 columns a second: 160 times as many numbers are RATE.
        vocoder=LTX2Vocoder(
            in_channels=2 * mel_bins, hidden_channels=16, upsample_kernel_sizes=[16, 10, 8], upsample_factors=[8, 5, 4],
            resnet_kernel_sizes=[3], resnet_dilations=[[1, 3, 5]], output_sampling_rate=RATE,
        ),
    )  # fmt: skip


def gemma():
    """A tokenizer and a Gemma 3; the pictures that it could see are as small as they can be."""
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3TextConfig,
        PreTrainedTokenizerFast,
        SiglipVisionConfig,
    )

    special = ["<pad>", "<eos>", "<bos>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(special), pad_token="<pad>", eos_token="<eos>", bos_token="<bos>",
        padding_side="left", model_max_length=1024,
    )  # fmt: skip
    config = Gemma3Config(
        text_config=Gemma3TextConfig(
            **SHAPE | {"num_hidden_layers": 2}, head_dim=16, vocab_size=420, sliding_window=64,
            layer_types=["sliding_attention", "full_attention"], max_position_embeddings=1024,
            eos_token_id=1, bos_token_id=2, pad_token_id=0,
        ),
        vision_config=SiglipVisionConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=16,
            patch_size=8,
        ),
        mm_tokens_per_image=4, boi_token_index=3, eoi_token_index=4, image_token_index=5, eos_token_id=[1],
    )  # fmt: skip
    return tokenizer, Gemma3ForConditionalGeneration(config)
