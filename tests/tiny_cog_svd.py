"""Tiny but real folders of CogVideoX and Stable Video Diffusion for tests, of random weights and made in code once a
session: every part is of the class that the full-size folder has, with its factors."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tiny_clips import TEXTS

from ksgen_core.checkpoints_diffusers import quietly
from ksgen_core.training.wan_folder import write_tokenizer

KINDS = ("CogVideoX", "CogVideoX 1.5", "SVD", "SVD XT")
WIDTH, LENGTH = 32, 16
SIZE = (32, 48)
"""Height and width of the only clips that the tiny CogVideoX renders."""

_kept = TemporaryDirectory(prefix="ksgen-tiny-cog-svd-")


@cache
def folder(kind: str) -> Path:
    """A folder in float32 for one of `KINDS`; nobody writes into it."""
    path = Path(_kept.name) / kind
    with torch.random.fork_rng(), quietly():
        torch.manual_seed(0)
        pipe = new_svd(25 if kind == "SVD XT" else 14) if kind.startswith("SVD") else new_cogvideox(kind)
        pipe.save_pretrained(path)
    return path


def new_cogvideox(kind: str):
    import diffusers
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    place = Path(_kept.name) / "tokenizer"
    write_tokenizer(place, TEXTS, 60, LENGTH)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(place))
    text_encoder = T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer), d_model=WIDTH, d_kv=16, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0,
            feed_forward_proj="gated-gelu", pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
            is_encoder_decoder=False,
        )
    )  # fmt: skip
    later = kind == "CogVideoX 1.5"
    # The later one renders all sizes up to this.
    height, width = (320, 320) if later else SIZE
    channels = 4
    vae = diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), latent_channels=channels, layers_per_block=1, norm_num_groups=2,
        scaling_factor=0.7, invert_scale_latents=not later,
    )  # fmt: skip
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=2 * channels, out_channels=channels,
        time_embed_dim=8, text_embed_dim=WIDTH, num_layers=2, sample_height=height // 8, sample_width=width // 8,
        sample_frames=17 if later else 9, patch_size=2, patch_size_t=2 if later else None, patch_bias=not later,
        max_text_seq_length=LENGTH, ofs_embed_dim=8 if later else None, use_rotary_positional_embeddings=True,
        use_learned_positional_embeddings=not later,
    )  # fmt: skip
    # The later one's takes more than one argument more in every update.
    scheduler = diffusers.CogVideoXDPMScheduler if later else diffusers.CogVideoXDDIMScheduler
    return diffusers.CogVideoXImageToVideoPipeline(
        tokenizer=tokenizer, text_encoder=text_encoder, vae=vae, transformer=transformer,
        scheduler=scheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"),
    )  # fmt: skip


def new_svd(frames: int):
    import diffusers
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    vae = diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32, 32, 32), down_block_types=("DownEncoderBlock2D",) * 4
    )
    # The pipeline resizes pictures to 224 x 224 for it, whatever it is.
    side = 224
    image_encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=side,
            patch_size=32, projection_dim=WIDTH, hidden_act="gelu",
        )
    )  # fmt: skip
    unet = diffusers.UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64), num_attention_heads=(2, 4), layers_per_block=1, num_frames=frames,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"), cross_attention_dim=WIDTH,
        addition_time_embed_dim=32, projection_class_embeddings_input_dim=96,
    )  # fmt: skip
    scheduler = diffusers.EulerDiscreteScheduler(
        prediction_type="v_prediction", timestep_type="continuous", use_karras_sigmas=True, sigma_min=0.002,
        sigma_max=700.0, timestep_spacing="leading", steps_offset=1, interpolation_type="linear",
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
    )  # fmt: skip
    size = {"height": side, "width": side}
    return diffusers.StableVideoDiffusionPipeline(
        vae=vae, image_encoder=image_encoder, unet=unet, scheduler=scheduler,
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": side}, crop_size=size),
    )  # fmt: skip
