"""Tiny but real LTX-Video folders for tests, of random weights and made in code once a session: every part is of the
class that the full-size folder has, with its factors of 32 pixels and 8 frames a latent."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tiny_clips import TEXTS

from ksgen_core.checkpoints_diffusers import quietly
from ksgen_core.training.wan_folder import write_tokenizer

KINDS = ("LTXImageToVideoPipeline", "LTXConditionPipeline")

_kept = TemporaryDirectory(prefix="ksgen-tiny-ltx-")


@cache
def folder(kind: str = KINDS[0], noisy: bool | None = None) -> Path:
    """A folder in float32 for one of `KINDS`; nobody writes into it.

    With a `noisy` VAE, as from 0.9.1 on, the decoder does the last bit of denoising; the second kind has one anyway.
    """
    noisy = kind == KINDS[1] if noisy is None else noisy
    path = Path(_kept.name) / f"{kind}-{noisy}"
    with torch.random.fork_rng(), quietly():
        torch.manual_seed(0)
        new_pipeline(kind, noisy).save_pretrained(path)
    return path


def new_pipeline(kind: str, noisy: bool):
    import diffusers

    tokenizer, text_encoder = t5(Path(_kept.name) / "t5")
    channels = 8
    return getattr(diffusers, kind)(
        scheduler=scheduler(shifting=kind == KINDS[0]),
        vae=diffusers.AutoencoderKLLTXVideo(
            latent_channels=channels,
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1),
            timestep_conditioning=noisy,
        ),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=diffusers.LTXVideoTransformer3DModel(
            in_channels=channels,
            out_channels=channels,
            num_attention_heads=2,
            attention_head_dim=16,
            cross_attention_dim=32,
            num_layers=2,
            caption_channels=32,
        ),
    )


def scheduler(shifting: bool = True):
    """As the folders of LTX-Video have it, 0.9.1 with and 0.9.5 without a shift that goes by the clip's size."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    more = dict(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, shift_terminal=0.1) if shifting else {}
    return FlowMatchEulerDiscreteScheduler(base_image_seq_len=1024, max_image_seq_len=4096, **more)


def t5(path: Path, length: int = 16):
    """A tokenizer and a T5 encoder, 32 wide; `path` is where the tokenizer's files are written."""
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    write_tokenizer(path, TEXTS, 60, length)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(path))
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0,
        feed_forward_proj="gated-gelu", pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        is_encoder_decoder=False,
    )  # fmt: skip
    return tokenizer, T5EncoderModel(config)
