"""A tiny but real Kolors folder, made in code: ChatGLM of two layers, its tokenizer trained by sentencepiece."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny_keysteps import TEXTS

from ksgen_core.training.sdxl_folder import TINY, _new_adapter, _new_image_encoder, _unet_config, _vae_config

TEXT_WIDTH = 24
"""Other than the UNet's own 32, as in Kolors (4096 and 2048)."""


def new_kolors_folder(folder: Path, force_zeros: bool = False, seed: int = 0) -> Path:
    """What diffusers itself saves of a random KolorsPipeline; the global random state stays as it was."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, KolorsPipeline, UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = _unet_config(TINY) | {
            "in_channels": TINY.latent_channels,
            "encoder_hid_dim": TEXT_WIDTH,
            "encoder_hid_dim_type": "text_proj",
            "projection_class_embeddings_input_dim": 6 * TINY.time_width + TEXT_WIDTH,
        }
        scheduler = EulerDiscreteScheduler(
            num_train_timesteps=1100,  # Kolors' own number
            beta_start=0.00085,
            beta_end=0.014,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
            steps_offset=1,
        )
        tokenizer = _tokenizer(folder)
        pipe = KolorsPipeline(
            vae=AutoencoderKL(**_vae_config(TINY)),
            text_encoder=_text_encoder(tokenizer.vocab_size),
            tokenizer=tokenizer,
            unet=UNet2DConditionModel(**config),
            scheduler=scheduler,
            force_zeros_for_empty_prompt=force_zeros,
        )
        pipe.save_pretrained(str(folder))
    return folder


def new_adapter_files(folder: Path, seed: int = 1) -> tuple[Path, Path]:
    """An IP-Adapter-Plus file and an image encoder's folder that fit both tiny families; the adapter speaks."""
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapter = _new_adapter(UNet2DConditionModel(**_unet_config(TINY)), TINY)
        for key, tensor in adapter.items():
            if "to_v_ip" in key:
                adapter[key] = torch.randn_like(tensor) * 0.5
        _new_image_encoder(TINY).save_pretrained(str(folder / "vision"))
    save_file({key: tensor.detach().contiguous() for key, tensor in adapter.items()}, folder / "plus.safetensors")
    return folder / "plus.safetensors", folder / "vision"


def _tokenizer(folder: Path):
    import sentencepiece
    from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=written,
        model_type="bpe",
        vocab_size=320,
        hard_vocab_limit=False,
        byte_fallback=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    path = folder / "tokenizer" / "tokenizer.model"
    path.parent.mkdir(parents=True)
    path.write_bytes(written.getvalue())
    return ChatGLMTokenizer(str(path))


def _text_encoder(vocabulary: int):
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel

    # What Kolors' own config says, the sizes aside.
    config = ChatGLMConfig(
        num_layers=2,
        padded_vocab_size=vocabulary,
        hidden_size=TEXT_WIDTH,
        ffn_hidden_size=48,
        kv_channels=8,
        num_attention_heads=3,
        seq_length=512,
        add_qkv_bias=True,
        multi_query_attention=True,
        multi_query_group_num=1,
        original_rope=True,
        use_cache=True,
    )
    encoder = ChatGLMModel(config).eval()
    for name, weight in encoder.named_parameters():
        torch.nn.init.normal_(weight, mean=float("layernorm" in name), std=0.2)  # it begins with whatever is in memory
    return encoder
