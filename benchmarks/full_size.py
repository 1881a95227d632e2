"""Models of full size for `ksgen bench core --full`: built from configs with random weights, never on disk.

The configs are those of the folders that the authors published, named above each; `tiny` is laid over them to run the
same code on a processor. Texts are random embeds of the right shape: text encoders are not what is measured.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Part:
    """A component: its class by name in `library`, its config, what of that is smaller when tiny."""

    kind: str
    config: Mapping[str, Any] = field(default_factory=dict)
    tiny: Mapping[str, Any] = field(default_factory=dict)
    library: str = "diffusers"


@dataclass(frozen=True)
class Model:
    """A pipeline's class and its components; the shapes of the text's embeds without their batch, full and tiny.

    `more` are arguments of the pipeline, `published` the parameters that the authors state for one denoiser, in
    billions. `adapter` is an IP-Adapter-Plus: width of the image encoder, inner width, image tokens. `tiny_size`
    (height, width), `tiny_frames` are what is made when tiny; otherwise it is the family's own.
    """

    pipeline: str
    parts: Mapping[str, Part]
    scheduler: tuple[str, Mapping[str, Any]]
    text: tuple[int, int]
    tiny_text: tuple[int, int]
    published: float
    more: Mapping[str, Any] = field(default_factory=dict)
    adapter: tuple[int, int, int] | None = None
    tiny_adapter: tuple[int, int, int] | None = None
    tiny_size: tuple[int, int] = (64, 64)
    tiny_frames: int = 5


WAN_TINY = {"num_layers": 2, "num_attention_heads": 1, "ffn_dim": 64, "text_dim": 32}
# scheduler/scheduler_config.json of the folders of Wan 2.2
UNIPC = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "num_train_timesteps": 1000}
WAN_14B = Part(
    "WanTransformer3DModel",
    {
        **{"num_attention_heads": 40, "attention_head_dim": 128, "num_layers": 40, "ffn_dim": 13824},
        **{"in_channels": 36, "out_channels": 16, "text_dim": 4096, "freq_dim": 256},
    },
    WAN_TINY,
)

MODELS: dict[str, Model] = {
    # https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0; its text encoders are there but not asked
    "SDXL": Model(
        "StableDiffusionXLPipeline",
        {
            "unet": Part(
                "UNet2DConditionModel",
                {
                    **{"sample_size": 128, "in_channels": 4, "out_channels": 4, "layers_per_block": 2},
                    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                    "block_out_channels": (320, 640, 1280),
                    "transformer_layers_per_block": (1, 2, 10),
                    "attention_head_dim": (5, 10, 20),
                    **{"cross_attention_dim": 2048, "use_linear_projection": True, "addition_embed_type": "text_time"},
                    **{"addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816},
                },
                {
                    **{"sample_size": 8, "block_out_channels": (32, 32, 64), "transformer_layers_per_block": (1, 1, 1)},
                    **{"attention_head_dim": (2, 2, 2), "cross_attention_dim": 64, "addition_time_embed_dim": 8},
                    "projection_class_embeddings_input_dim": 80,
                },
            ),
            "vae": Part(
                "AutoencoderKL",
                {
                    "down_block_types": ("DownEncoderBlock2D",) * 4,
                    "up_block_types": ("UpDecoderBlock2D",) * 4,
                    "block_out_channels": (128, 256, 512, 512),
                    **{"layers_per_block": 2, "latent_channels": 4, "sample_size": 1024, "scaling_factor": 0.13025},
                },
                {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1, "sample_size": 64},
            ),
            "text_encoder": Part(
                "CLIPTextModel",
                {
                    **{"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12},
                    **{"num_attention_heads": 12, "vocab_size": 49408, "projection_dim": 768},
                },
                {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "projection_dim": 32},
                "transformers",
            ),
            "text_encoder_2": Part(
                "CLIPTextModelWithProjection",
                {
                    **{"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "hidden_act": "gelu"},
                    **{"num_attention_heads": 20, "vocab_size": 49408, "projection_dim": 1280},
                },
                {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "projection_dim": 32},
                "transformers",
            ),
        },
        (
            "EulerDiscreteScheduler",
            {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1},
        ),
        text=(77, 2048),
        tiny_text=(77, 64),
        published=2.6,
        more={"tokenizer": None, "tokenizer_2": None, "add_watermarker": False},
        # sdxl_models/ip-adapter-plus_sdxl_vit-h.safetensors in https://huggingface.co/h94/IP-Adapter
        adapter=(1280, 1280, 16),
        tiny_adapter=(32, 64, 4),
    ),
    # https://huggingface.co/Wan-AI/Wan2.2-TI2V-5B-Diffusers
    "Wan 2.2 5B": Model(
        "WanImageToVideoPipeline",
        {
            "transformer": Part(
                "WanTransformer3DModel",
                {
                    **{"num_attention_heads": 24, "attention_head_dim": 128, "num_layers": 30, "ffn_dim": 14336},
                    **{"in_channels": 48, "out_channels": 48, "text_dim": 4096, "freq_dim": 256},
                },
                WAN_TINY,
            ),
            "vae": Part(
                "AutoencoderKLWan",
                {
                    **{"base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "dim_mult": [1, 2, 4, 4]},
                    **{"num_res_blocks": 2, "attn_scales": [], "temperal_downsample": [False, True, True]},
                    **{"is_residual": True, "in_channels": 12, "out_channels": 12, "patch_size": 2},
                    **{"scale_factor_temporal": 4, "scale_factor_spatial": 16},
                    # Of no weight for time and memory.
                    **{"latents_mean": [0.0] * 48, "latents_std": [1.0] * 48},
                },
                {"base_dim": 8, "decoder_base_dim": 8, "num_res_blocks": 1},
            ),
        },
        ("UniPCMultistepScheduler", {**UNIPC, "flow_shift": 5.0}),
        text=(512, 4096),
        tiny_text=(16, 32),
        published=5.0,
        more={"text_encoder": None, "tokenizer": None, "expand_timesteps": True},
    ),
    # https://huggingface.co/Wan-AI/Wan2.2-I2V-A14B-Diffusers
    "Wan 2.2 14B": Model(
        "WanImageToVideoPipeline",
        {
            "transformer": WAN_14B,
            "transformer_2": WAN_14B,
            # The class's own config is that of Wan 2.1, which this folder has too.
            "vae": Part("AutoencoderKLWan", {}, {"base_dim": 8, "num_res_blocks": 1}),
        },
        ("UniPCMultistepScheduler", {**UNIPC, "flow_shift": 3.0}),
        text=(512, 4096),
        tiny_text=(16, 32),
        published=14.3,
        more={"text_encoder": None, "tokenizer": None, "boundary_ratio": 0.9},
    ),
    # https://huggingface.co/Lightricks/LTX-2; scripts/convert_ltx2_to_diffusers.py in
    # https://github.com/huggingface/diffusers. The classes' own configs are its, but for what stands here.
    "LTX-2": Model(
        "LTX2ImageToVideoPipeline",
        {
            "transformer": Part(
                "LTX2VideoTransformer3DModel",
                {"num_layers": 48, "rope_type": "split"},
                {
                    **{"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "cross_attention_dim": 32},
                    **{"audio_num_attention_heads": 2, "audio_attention_head_dim": 8, "audio_cross_attention_dim": 16},
                    "caption_channels": 32,
                },
            ),
            "vae": Part(
                "AutoencoderKLLTX2Video",
                {
                    **{"decoder_causal": False, "spatial_compression_ratio": 32, "temporal_compression_ratio": 8},
                    "timestep_conditioning": False,
                },
                {
                    "block_out_channels": (8, 8, 8, 8),
                    "decoder_block_out_channels": (8, 16, 32),
                    **{"layers_per_block": (1, 1, 1, 1, 1), "decoder_layers_per_block": (1, 1, 1, 1)},
                },
            ),
            "audio_vae": Part("AutoencoderKLLTX2Audio", {}, {"ch_mult": (1, 1, 1), "num_res_blocks": 1}),
            "connectors": Part(
                "LTX2TextConnectors",
                {"caption_channels": 3840, "text_proj_in_factor": 49, "rope_type": "split"},
                {
                    **{"caption_channels": 32, "text_proj_in_factor": 3},
                    **{"video_connector_num_attention_heads": 2, "video_connector_attention_head_dim": 16},
                    **{"audio_connector_num_attention_heads": 2, "audio_connector_attention_head_dim": 16},
                },
                "diffusers.pipelines.ltx2",
            ),
            "vocoder": Part("LTX2Vocoder", {}, {"hidden_channels": 32}, "diffusers.pipelines.ltx2"),
        },
        (
            "FlowMatchEulerDiscreteScheduler",
            {
                **{"use_dynamic_shifting": True, "base_shift": 0.95, "max_shift": 2.05, "shift_terminal": 0.1},
                **{"base_image_seq_len": 1024, "max_image_seq_len": 4096},
            },
        ),
        text=(1024, 3840 * 49),
        tiny_text=(128, 32 * 3),
        published=19.0,
        more={"text_encoder": None, "tokenizer": None},
        tiny_frames=9,
    ),
}


def empty(part: Part, tiny: bool = False) -> nn.Module:
    """The component with weights on the device "meta": shapes without numbers. Buffers are real."""
    from accelerate import init_empty_weights

    kind = getattr(importlib.import_module(part.library), part.kind)
    config = {**part.config, **(part.tiny if tiny else {})}
    with init_empty_weights(include_buffers=False):
        return kind(**config) if part.library != "transformers" else kind(kind.config_class(**config))
