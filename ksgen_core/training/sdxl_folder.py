"""An untrained key-step model in code: every part that `KeyStepModel.load` reads, at a chosen size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..keysteps.sdxl_diffusers import KeyStepModel
from ..keysteps.skill_transformer import SkillTransformer, SkillTransformerConfig
from .clip_tokenizer import write_clip_tokenizer


@dataclass(frozen=True)
class SDXLSizes:
    """Sizes of all parts. Lengths in tokens, `picture` in pixels, everything else a width or a count."""

    picture: int
    vae_channels: tuple[int, ...]
    vae_layers: int
    latent_channels: int
    unet_channels: tuple[int, int, int]
    unet_heads: tuple[int, int, int]
    groups: int
    time_width: int
    reference: bool
    text_merges: int
    text_length: int
    text_width: int
    text_layers: int
    text_heads: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    vision_patch: int
    vision_pixels: int
    image_tokens: int
    resampler_width: int
    skill_width: int
    skill_layers: int
    skill_heads: int
    skill_ff: int
    max_images: int

    def __post_init__(self) -> None:
        shrink = 2 ** (len(self.vae_channels) - 1)
        if self.picture % (4 * shrink):
            raise ValueError(f"picture must be a multiple of {4 * shrink} (VAE and UNet halve it), got {self.picture}")
        if self.resampler_width % 64:
            raise ValueError(
                f"IP-Adapter-Plus has heads of 64: resampler_width % 64 must be 0, got {self.resampler_width}"
            )


MINI = SDXLSizes(
    picture=128,
    vae_channels=(16, 32, 64, 64),
    vae_layers=1,
    latent_channels=8,
    unet_channels=(64, 96, 160),
    unet_heads=(2, 3, 5),
    groups=8,
    time_width=32,
    reference=True,
    text_merges=600,
    text_length=32,
    text_width=128,
    text_layers=2,
    text_heads=4,
    vision_width=128,
    vision_layers=4,
    vision_heads=4,
    vision_patch=16,
    vision_pixels=128,
    image_tokens=16,
    resampler_width=128,
    skill_width=192,
    skill_layers=4,
    skill_heads=6,
    skill_ff=512,
    max_images=8,
)
"""What ships with the pack."""

TINY = SDXLSizes(
    picture=32,
    vae_channels=(8, 8, 8, 8),
    vae_layers=1,
    latent_channels=4,
    unet_channels=(16, 16, 32),
    unet_heads=(2, 2, 2),
    groups=4,
    time_width=8,
    reference=True,
    text_merges=60,
    text_length=16,
    text_width=16,
    text_layers=2,
    text_heads=2,
    vision_width=16,
    vision_layers=2,
    vision_heads=2,
    vision_patch=8,
    vision_pixels=32,
    image_tokens=4,
    resampler_width=64,
    skill_width=32,
    skill_layers=2,
    skill_heads=2,
    skill_ff=64,
    max_images=8,
)
"""For tests: everything minimal, real all the same."""

DRAWING = {"updates": 20, "guidance": 3.5}
"""What suits these small models, as the folder's own draw settings."""


def new_sdxl_folder(folder: str | Path, texts: list[str], sizes: SDXLSizes, seed: int = 0) -> None:
    """Write an untrained `<folder>/keysteps`, its tokenizers trained on `texts`. The same seed gives the same folder.

    The global random state stays as it was. Raises `KSGenError` if the folder cannot be written.
    """
    folder = Path(folder) / "keysteps"
    for name, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        write_clip_tokenizer(folder / name, texts, sizes.text_merges, sizes.text_length, pad)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = _new_model(folder, sizes)
        model.save(folder)


def _new_model(folder: Path, sizes: SDXLSizes) -> KeyStepModel:
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    tokenizers = [CLIPTokenizer.from_pretrained(str(folder / name)) for name in ("tokenizer", "tokenizer_2")]
    # v-prediction to a terminal signal-to-noise ratio of zero (Lin et al., arXiv 2305.08891): the darkest and the
    # brightest pictures can be drawn, and what is trained is what is sampled.
    scheduler: Any = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        clip_sample=False,
        set_alpha_to_one=True,
    )
    unet = UNet2DConditionModel(**_unet_config(sizes))
    pipe = StableDiffusionXLPipeline(
        vae=AutoencoderKL(**_vae_config(sizes)),
        text_encoder=CLIPTextModel(_text_config(sizes, tokenizers[0])),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(sizes, tokenizers[1])),
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=unet,
        scheduler=scheduler,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )
    skill = SkillTransformer(
        SkillTransformerConfig(
            token_width=2 * sizes.text_width,
            text_width=2 * sizes.text_width,
            tokens_per_image=sizes.image_tokens,
            max_images=sizes.max_images,
            width=sizes.skill_width,
            layers=sizes.skill_layers,
            heads=sizes.skill_heads,
            ff_width=sizes.skill_ff,
        )
    )
    model = KeyStepModel(
        pipe, _new_image_encoder(sizes), _new_adapter(unet, sizes), skill, folder=folder, defaults=DRAWING
    )
    for part in model.parts().values():
        part.eval()
    model.skill_transformer.empty_tokens.copy_(model.zero_image_tokens())
    return model


def _vae_config(sizes: SDXLSizes) -> dict[str, Any]:
    return {
        "latent_channels": sizes.latent_channels,
        "block_out_channels": sizes.vae_channels,
        "layers_per_block": sizes.vae_layers,
        "down_block_types": ("DownEncoderBlock2D",) * len(sizes.vae_channels),
        "up_block_types": ("UpDecoderBlock2D",) * len(sizes.vae_channels),
        "norm_num_groups": sizes.groups,
        "sample_size": sizes.picture,
        "scaling_factor": 1.0,
        "force_upcast": False,
        "mid_block_add_attention": False,
    }


def _unet_config(sizes: SDXLSizes) -> dict[str, Any]:
    return {
        "sample_size": sizes.picture // 2 ** (len(sizes.vae_channels) - 1),
        "in_channels": sizes.latent_channels * (2 if sizes.reference else 1),
        "out_channels": sizes.latent_channels,
        "block_out_channels": sizes.unet_channels,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "transformer_layers_per_block": (1, 1, 1),
        # diffusers' name says width, the value is the number of heads, in SDXL's own config too.
        "attention_head_dim": sizes.unet_heads,
        "cross_attention_dim": 2 * sizes.text_width,
        "norm_num_groups": sizes.groups,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": sizes.time_width,
        "projection_class_embeddings_input_dim": 6 * sizes.time_width + sizes.text_width,
    }


def _text_config(sizes: SDXLSizes, tokenizer):
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes.text_width,
        intermediate_size=4 * sizes.text_width,
        projection_dim=sizes.text_width,
        num_hidden_layers=sizes.text_layers,
        num_attention_heads=sizes.text_heads,
        max_position_embeddings=sizes.text_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _new_image_encoder(sizes: SDXLSizes) -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=sizes.vision_width,
        intermediate_size=4 * sizes.vision_width,
        projection_dim=sizes.vision_width,
        num_hidden_layers=sizes.vision_layers,
        num_attention_heads=sizes.vision_heads,
        image_size=sizes.vision_pixels,
        patch_size=sizes.vision_patch,
    )
    return CLIPVisionModelWithProjection(config)


def _new_adapter(unet: Any, sizes: SDXLSizes) -> dict[str, Tensor]:
    """The tensors of a fresh IP-Adapter-Plus file; its exits `to_v_ip` are zero, so it changes nothing yet."""
    from diffusers.models.embeddings import IPAdapterPlusImageProjection

    from ..keysteps.ip_adapter_plus import resampler_to_file

    width = unet.config.cross_attention_dim
    resampler = IPAdapterPlusImageProjection(
        embed_dims=sizes.vision_width,
        output_dims=width,
        hidden_dims=sizes.resampler_width,
        depth=4,  # the file format does not say it; diffusers takes it for granted
        heads=sizes.resampler_width // 64,
        num_queries=sizes.image_tokens,
    )
    adapter = {f"image_proj.{key}": tensor for key, tensor in resampler_to_file(resampler.state_dict()).items()}
    modules: dict[str, Any] = dict(unet.named_modules())
    places = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for number, name in enumerate(places):
        to_k = modules[name.removesuffix(".processor")].to_k.weight
        adapter[f"ip_adapter.{2 * number + 1}.to_k_ip.weight"] = to_k.detach().clone()
        adapter[f"ip_adapter.{2 * number + 1}.to_v_ip.weight"] = torch.zeros_like(to_k)
    return adapter
