"""The clip model's weights as single files under Wan's own names, which ComfyUI's loaders read.

Only names differ, so the files are written without torch. ComfyUI reads all dimensions from the tensors and takes the
rest for granted: heads of 128, 256 time features, Wan 2.1's
VAE with its latent statistics, and a schedule shifted by 8. Only the width of the texts must be said, in the metadata.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..checkpoints import read_json, rename_weights
from ..errors import KSGenError

TRANSFORMER_FILE = "diffusion_models/ksgen_mini_wan.safetensors"
VAE_FILE = "vae/ksgen_mini_wan_vae.safetensors"
SHIFT = 8.0
"""ComfyUI's for Wan 2.1 and 2.2 (comfy/supported_models.py, WAN21_T2V)."""

# diffusers' name -> Wan's, one rule after the other (diffusers/loaders/single_file_utils.py has them the other way).
TRANSFORMER_NAMES = (
    (r"^condition_embedder\.time_embedder\.linear_1\.", "time_embedding.0."),
    (r"^condition_embedder\.time_embedder\.linear_2\.", "time_embedding.2."),
    (r"^condition_embedder\.text_embedder\.linear_1\.", "text_embedding.0."),
    (r"^condition_embedder\.text_embedder\.linear_2\.", "text_embedding.2."),
    (r"^condition_embedder\.time_proj\.", "time_projection.1."),
    (r"^scale_shift_table$", "head.modulation"),
    (r"^proj_out\.", "head.head."),
    (r"\.scale_shift_table$", ".modulation"),
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.to_(q|k|v)\.", r".\1."),
    (r"\.to_out\.0\.", ".o."),
    # The only norm of a block that has weights; Wan counts the three in another order.
    (r"\.norm2\.", ".norm3."),
    (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
    (r"\.ffn\.net\.2\.", ".ffn.2."),
)
VAE_NAMES = (
    (r"^quant_conv\.", "conv1."),
    (r"^post_quant_conv\.", "conv2."),
    (r"^(encoder|decoder)\.conv_in\.", r"\1.conv1."),
    (r"^(encoder|decoder)\.norm_out\.", r"\1.head.0."),
    (r"^(encoder|decoder)\.conv_out\.", r"\1.head.2."),
    (r"\.mid_block\.resnets\.0\.", ".middle.0."),
    (r"\.mid_block\.attentions\.0\.", ".middle.1."),
    (r"\.mid_block\.resnets\.1\.", ".middle.2."),
    (r"^encoder\.down_blocks\.", "encoder.downsamples."),
    # Residual blocks: norm, (activation,) convolution, twice, with a dropout between the second two.
    (r"^((?:encoder|decoder)\.(?!head).*)\.norm1\.", r"\1.residual.0."),
    (r"^((?:encoder|decoder)\.(?!head).*)\.conv1\.", r"\1.residual.2."),
    (r"^((?:encoder|decoder)\.(?!head).*)\.norm2\.", r"\1.residual.3."),
    (r"^((?:encoder|decoder)\.(?!head).*)\.conv2\.", r"\1.residual.6."),
    (r"\.conv_shortcut\.", ".shortcut."),
)
UP_BLOCK = re.compile(r"^decoder\.up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)\.")


def export_native(clips_folder: str | Path, out_folder: str | Path) -> tuple[Path, Path]:
    """Write the transformer and the VAE of a clips folder below `out_folder` for ComfyUI; returns the two paths.

    The weights keep the dtype they are stored in. Raises `KSGenError` if a file is missing or cut off, if the model is
    one that ComfyUI would take for another, or if the files cannot be written.
    """
    clips_folder, out_folder = Path(clips_folder), Path(out_folder)
    transformer, vae = (read_json(clips_folder / name / "config.json") for name in ("transformer", "vae"))
    scheduler = read_json(clips_folder / "scheduler/scheduler_config.json")
    check_native(clips_folder, transformer, vae, scheduler)
    metadata = {"format": "pt", "config": json.dumps({"transformer": {"text_dim": transformer["text_dim"]}})}
    files = _weights(clips_folder / "transformer"), _weights(clips_folder / "vae")
    rename_weights(files[0], out_folder / TRANSFORMER_FILE, native_transformer, metadata)
    rename_weights(files[1], out_folder / VAE_FILE, native_vae, {"format": "pt"})
    return out_folder / TRANSFORMER_FILE, out_folder / VAE_FILE


def check_native(folder: Path, transformer: Mapping, vae: Mapping, scheduler: Mapping) -> None:
    """Raise `KSGenError` if ComfyUI would take something else for granted than these configs say."""
    wanted = (
        ("attention_head_dim", transformer.get("attention_head_dim"), 128),
        ("freq_dim", transformer.get("freq_dim"), 256),
        ("patch_size", transformer.get("patch_size"), [1, 2, 2]),
        ("image_dim", transformer.get("image_dim"), None),
        ("z_dim of the VAE", vae.get("z_dim"), 16),
        ("dim_mult of the VAE", vae.get("dim_mult"), [1, 2, 4, 4]),
        ("num_res_blocks of the VAE", vae.get("num_res_blocks"), 2),
        ("decoder_base_dim of the VAE", vae.get("decoder_base_dim") or vae.get("base_dim"), vae.get("base_dim")),
        ("shift of the scheduler", scheduler.get("shift", scheduler.get("flow_shift")), SHIFT),
    )
    for what, got, needed in wanted:
        if got != needed:
            raise KSGenError(
                f"ComfyUI cannot read the model in {folder}: {what} is {got}, it takes {needed} for granted."
            )
    if (folder / "transformer_2").is_dir():
        raise KSGenError(f"{folder} has two transformers; only a model with one can be exported to a single file.")


def wan_name(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    """Wan's name of a weight that diffusers names `name`."""
    for pattern, text in rules:
        name = re.sub(pattern, text, name)
    return name


def native_transformer(names: Iterable[str]) -> dict[str, str]:
    """Wan's names of a transformer's weights, by diffusers' names."""
    return {name: wan_name(name, TRANSFORMER_NAMES) for name in names}


def native_vae(names: Iterable[str]) -> dict[str, str]:
    """Wan's names of a VAE's weights. Its decoder is one flat list: each block's residual blocks, its resampler."""
    names = list(names)
    residual = 1 + max(int(m[3]) for m in map(UP_BLOCK.match, names) if m and m[2] == "resnets")

    def flat(match: re.Match) -> str:
        block, kind, number = int(match[1]), match[2], int(match[3])
        place = block * (residual + 1) + (number if kind == "resnets" else residual)
        return f"decoder.upsamples.{place}."

    return {name: wan_name(UP_BLOCK.sub(flat, name), VAE_NAMES) for name in names}


def _weights(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise KSGenError(f"{folder} holds no .safetensors weights. Get that part again, as safetensors.")
    return files
