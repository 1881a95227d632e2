"""Tiny but real Wan folders for tests, of random weights and made in code once a session: all kinds of the family, with
the factors of the full-size ones."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tiny_clips import TEXTS

from ksgen_core.checkpoints_diffusers import quietly
from ksgen_core.training.wan_folder import HEAD_WIDTH, write_tokenizer

KINDS = ("Wan 2.1", "Wan 2.1 first/last frame", "Wan 2.2 14B", "Wan 2.2 5B")
WIDTH, LENGTH, IMAGE_WIDTH, IMAGE_SIDE, PATCH = 32, 16, 16, 28, 14
"""Of texts and image tokens; a picture becomes (28 / 14)**2 + 1 tokens, those of two pictures are told apart."""

_kept = TemporaryDirectory(prefix="ksgen-tiny-wan-")


@cache
def folder(kind: str) -> Path:
    """A folder in float32 for one of `KINDS`; nobody writes into it."""
    path = Path(_kept.name) / kind.replace("/", "-")
    with torch.random.fork_rng(), quietly():
        torch.manual_seed(0)
        new_pipeline(kind).save_pretrained(path)
    return path


def new_pipeline(kind: str):
    import diffusers
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    place = Path(_kept.name) / "tokenizer"
    write_tokenizer(place, TEXTS, 60, LENGTH)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(place))
    text_encoder = UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer), d_model=WIDTH, d_kv=16, d_ff=32, num_layers=1, num_heads=2,
            feed_forward_proj="gated-gelu", dropout_rate=0.0, pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip
    first_picture = kind.startswith("Wan 2.1")
    two_pictures = kind == "Wan 2.1 first/last frame"
    small = kind == "Wan 2.2 5B"
    vae = vae_5b() if small else diffusers.AutoencoderKLWan(base_dim=4)
    channels = vae.config.z_dim

    def transformer():
        tokens = (IMAGE_SIDE // PATCH) ** 2 + 1
        return diffusers.WanTransformer3DModel(
            num_attention_heads=1, attention_head_dim=HEAD_WIDTH, num_layers=2, ffn_dim=64, text_dim=WIDTH,
            in_channels=channels if small else 2 * channels + 4, out_channels=channels,
            image_dim=IMAGE_WIDTH if first_picture else None,
            added_kv_proj_dim=HEAD_WIDTH if first_picture else None,
            pos_embed_seq_len=2 * tokens if two_pictures else None,
        )  # fmt: skip

    experts = kind == "Wan 2.2 14B"
    # What the full-size folders come with.
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, num_train_timesteps=1000
    )
    pictures = dict(zip(("image_encoder", "image_processor"), vision(), strict=True)) if first_picture else {}
    return diffusers.WanImageToVideoPipeline(
        tokenizer=tokenizer, text_encoder=text_encoder, vae=vae, scheduler=scheduler, transformer=transformer(),
        transformer_2=transformer() if experts else None, boundary_ratio=0.9 if experts else None,
        expand_timesteps=small, **pictures,
    )  # fmt: skip


def vae_5b():
    """Wan 2.2's, which first makes patches of 2 x 2 pixels and has blocks around its blocks: 16 pixels a latent."""
    import diffusers

    channels = 48
    chance = torch.Generator().manual_seed(0)
    mean, std = torch.randn(channels, generator=chance), 0.5 + torch.rand(channels, generator=chance)
    return diffusers.AutoencoderKLWan(
        base_dim=4, decoder_base_dim=4, z_dim=channels, dim_mult=[1, 2, 4, 4], num_res_blocks=1, patch_size=2,
        temperal_downsample=[False, True, True], is_residual=True, in_channels=12, out_channels=12,
        scale_factor_spatial=16, latents_mean=mean.tolist(), latents_std=std.tolist(),
    )  # fmt: skip


def vision():
    """A CLIP image encoder and its processor."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=IMAGE_WIDTH, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        image_size=IMAGE_SIDE, patch_size=PATCH, hidden_act="gelu",
    )  # fmt: skip
    size = {"height": IMAGE_SIDE, "width": IMAGE_SIDE}
    return CLIPVisionModel(config), CLIPImageProcessor(size={"shortest_edge": IMAGE_SIDE}, crop_size=size)
