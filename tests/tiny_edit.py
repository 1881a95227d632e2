"""Tiny but real editing models for tests, of random weights and made in code once a session: every part is of the class
that the full-size folder has."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tiny_mllm import LLAMA_CHAT, QWEN_CHAT, byte_level

from ksgen_core.checkpoints_diffusers import quietly
from ksgen_core.training.clip_tokenizer import write_clip_tokenizer
from ksgen_core.types import KeyStep, Plan

SIDE = 96
"""Of square key images."""
KINDS = ("qwen-edit", "flux-kontext", "flux2-klein", "flux2-klein-base")
FIRST = "qwen-edit-first"
"""Apart: diffusers gives its reference 1024 x 1024 pixels, so that an edit takes seconds."""
TEXTS = [
    "put the tea bag into the mug",
    "pour hot water into the mug",
    "stir the tea with the spoon",
    "take the tea bag out",
    "add some milk",
    "drink the tea",
]
PLAN = Plan("make a cup of tea", tuple(KeyStep(text, seed=10 + k) for k, text in enumerate(TEXTS)))

# In the shape of transformers' own, as small as they go.
SHAPE = dict(hidden_size=32, intermediate_size=48, num_attention_heads=2, num_key_value_heads=1)
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VISION_MARKS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]

_kept = TemporaryDirectory(prefix="ksgen-tiny-edit-")


@cache
def folder(kind: str) -> Path:
    """The folder of one of `KINDS`, or `FIRST`, in float32; nobody writes into it."""
    path = Path(_kept.name) / kind
    make = dict(zip((*KINDS, FIRST), (_qwen, _kontext, _klein, _klein_base, _qwen_first), strict=True))[kind]
    with torch.random.fork_rng(), quietly():
        torch.manual_seed(0)
        make(path)
    return path


def picture(seed: int = 0, height: int = SIDE, width: int = SIDE) -> torch.Tensor:
    """A smooth picture [height, width, 3]."""
    noise = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, (height, width), mode="bilinear")[0].movedim(0, -1)


def _scheduler():
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15)


def _qwen_tokenizer(marks: list[str], chat: str):
    from transformers import Qwen2TokenizerFast

    tokenizer = byte_level(marks)
    if hasattr(Qwen2TokenizerFast, "convert_to_native_format"):
        vocab = json.loads(tokenizer.to_str())["model"]
        fast = Qwen2TokenizerFast(vocab=vocab["vocab"], merges=[tuple(m) for m in vocab["merges"]])
    else:
        fast = Qwen2TokenizerFast(tokenizer_object=tokenizer)
    fast.chat_template = chat
    fast.add_special_tokens({"additional_special_tokens": marks[1:]})
    return fast


def _qwen_first(path: Path) -> None:
    _qwen(path, "QwenImageEditPipeline", factor=4)


def _qwen(path: Path, kind: str = "QwenImageEditPlusPipeline", factor: int = 3) -> None:
    from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessor

    tokenizer = _qwen_tokenizer([*MARKS, *VISION_MARKS], QWEN_CHAT)
    ids = dict(zip(VISION_MARKS, tokenizer.convert_tokens_to_ids(VISION_MARKS), strict=True))
    config = Qwen2_5_VLConfig(
        text_config=dict(
            **SHAPE, num_hidden_layers=1, vocab_size=448, max_position_embeddings=4096, eos_token_id=2, bos_token_id=0,
            rope_scaling={"type": "mrope", "mrope_section": [2, 3, 3]},
        ),
        vision_config=dict(
            depth=2, hidden_size=16, intermediate_size=24, num_heads=2, out_hidden_size=32, patch_size=14,
            fullatt_block_indexes=[1], window_size=56,
        ),
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
    )  # fmt: skip
    # diffusers gives every reference 1024 x 1024 pixels, whatever the model, which takes a second each.
    pipeline_qwenimage_edit_plus.VAE_IMAGE_SIZE = SIDE * SIDE
    vae = AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1] * (factor + 1), num_res_blocks=0,
        temperal_downsample=[False] + [True] * (factor - 1),
        latents_mean=[0.1, -0.1, 0.2, 0.0], latents_std=[1.0, 1.5, 0.8, 1.1],
    )  # fmt: skip
    transformer = QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    _write(
        path, kind, {"area": SIDE * SIDE}, transformer=transformer, vae=vae,
        text_encoder=Qwen2_5_VLForConditionalGeneration(config), tokenizer=tokenizer, scheduler=_scheduler(),
    )  # fmt: skip
    # As the makers' folder has it; a whole processor could only be written with torchvision.
    tokenizer.save_pretrained(path / "processor")
    Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=56 * 56).save_pretrained(path / "processor")
    _edit_json(path / "processor/preprocessor_config.json", processor_class="Qwen2VLProcessor")
    _edit_json(path / "model_index.json", processor=["transformers", "Qwen2VLProcessor"])


def _kontext(path: Path) -> None:
    from diffusers import AutoencoderKL, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel

    write_clip_tokenizer(path / "tokenizer", TEXTS, 60, 77)
    tokenizer = CLIPTokenizer.from_pretrained(path / "tokenizer")
    clip = CLIPTextConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    t5 = T5Config(
        d_model=32, d_kv=16, d_ff=48, num_layers=1, num_heads=2, vocab_size=160, feed_forward_proj="gated-gelu"
    )
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=16, guidance_embeds=True, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    vae = AutoencoderKL(
        **_vae_blocks(4), latent_channels=4, shift_factor=0.1159, scaling_factor=0.3611, use_quant_conv=False,
        use_post_quant_conv=False,
    )  # fmt: skip
    _write(
        path, "FluxKontextPipeline", {"area": SIDE * SIDE}, transformer=transformer, vae=vae, scheduler=_scheduler(),
        text_encoder=CLIPTextModel(clip), tokenizer=tokenizer, text_encoder_2=T5EncoderModel(t5),
        tokenizer_2=_t5_tokenizer(),
    )  # fmt: skip


def _t5_tokenizer():
    """A unigram tokenizer of single letters with T5's marks and its 100 sentinels."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import T5TokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz.,:;'"]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    if hasattr(T5TokenizerFast, "convert_to_native_format"):
        return T5TokenizerFast(vocab=pieces)
    return T5TokenizerFast(tokenizer_object=tokenizer)


def _klein_base(path: Path) -> None:
    _klein(path, distilled=False)


def _klein(path: Path, distilled: bool = True) -> None:
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = _qwen_tokenizer(MARKS, LLAMA_CHAT)
    config = Qwen3Config(**SHAPE, head_dim=16, num_hidden_layers=2, vocab_size=448, max_position_embeddings=4096)
    transformer = Flux2Transformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=64, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )  # fmt: skip
    vae = AutoencoderKLFlux2(**_vae_blocks(4), latent_channels=4)
    # Untrained, these would say that latents need no scaling.
    vae.bn.running_mean.uniform_(-0.1, 0.1)
    vae.bn.running_var.uniform_(0.5, 1.5)
    _write(
        path, "Flux2KleinPipeline", {"area": SIDE * SIDE, "text_layers": [1, 2]}, transformer=transformer, vae=vae,
        scheduler=_scheduler(), text_encoder=Qwen3ForCausalLM(config), tokenizer=tokenizer, is_distilled=distilled,
    )  # fmt: skip


def _vae_blocks(levels: int) -> dict:
    return dict(
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(4,) * levels, layers_per_block=1, norm_num_groups=2,
    )  # fmt: skip


def _write(path: Path, kind: str, defaults: dict, **parts) -> None:
    import diffusers

    for name in ("transformer", "text_encoder", "text_encoder_2"):
        for weight in parts[name].parameters() if name in parts else ():
            # As their makers' libraries begin, models hardly look at texts and references.
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=1.5 / weight.shape[-1] ** 0.5)
    if kind.startswith("Qwen"):
        parts["processor"] = None
    getattr(diffusers, kind)(**parts).save_pretrained(path)
    (path / "ksgen.json").write_text(json.dumps({"updates": 3, **defaults}))


def _edit_json(path: Path, **more) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | more, indent=2))
