"""What a model cannot render is said before it is loaded, from its folder's small files. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoints import read_json
from ..errors import KSGenError
from .families import check_frames
from .family import Family
from .settings import RenderSettings, defaults, read_own

Config = Mapping[str, Any]


def check_settings(family: Family, folder: Path, settings: RenderSettings) -> None:
    """Raise `KSGenError` for what the family's model in `folder` cannot do, as rendering itself would.

    Hunyuan's size goes by the picture, so that only its multiples are known here, as are those of every other family.
    """
    check_wishes(family, settings)
    check_frames(family, defaults(family, read_own(folder)).over(settings).frames)
    if settings.size is not None and (multiple := side_multiple(family, folder)):
        check_size(family, settings.size, multiple, own_size(family, folder))


def check_wishes(family: Family, settings: RenderSettings) -> None:
    """Raise `KSGenError` for a negative text or a last frame, if the family takes none."""
    if settings.negative and not family.text:
        raise KSGenError(f"{family.name} takes no text, so none to stay away from. Leave the negative text out.")
    if settings.to_next and not family.last_frame:
        raise KSGenError(
            f"{family.name} cannot end a clip in a given picture. Turn the last frame off, or choose a model that can."
        )


def check_size(family: Family, size: tuple[int, int], multiple: int, only: tuple[int, int] | None) -> None:
    """Raise `KSGenError` for a size (height, width) off the `multiple` of sides, or that is not the `only` one."""
    if not any(side % multiple for side in size) and size == (only or size):
        return
    what = f"is {only[1]}x{only[0]}" if only else f"has sides that are multiples of {multiple} pixels"
    nearest = only or tuple(max(1, round(side / multiple)) * multiple for side in size)
    raise KSGenError(
        f"A clip of this {family.name} {what}, got {size[1]}x{size[0]}. Ask for {nearest[1]}x{nearest[0]}, or for no "
        "size."
    )


def side_multiple(family: Family, folder: Path) -> int | None:
    """What the loaded model's `side_multiple` is, by the configs of VAE and backbone; None if they do not say it.

    What they leave out is what diffusers takes for granted then.
    """
    vae, backbone = _configs(family, folder)
    try:
        return _MULTIPLES[family.pipeline](vae, backbone)
    except (KeyError, TypeError, IndexError):
        return None


def own_size(family: Family, folder: Path) -> tuple[int, int] | None:
    """What the loaded model's `own_size` is: the only one (height, width) that it renders, None if it renders many."""
    vae, backbone = _configs(family, folder)
    if family.pipeline != "CogVideoXImageToVideoPipeline" or not backbone.get("use_learned_positional_embeddings"):
        return None
    scale = _halved(vae)
    return backbone["sample_height"] * scale, backbone["sample_width"] * scale


def _configs(family: Family, folder: Path) -> tuple[Config, Config]:
    vae, backbone = (read_json(folder / part / "config.json") for part in ("vae", family.denoisers[0]))
    return vae, backbone


def _halved(config: Config) -> int:
    """How many times smaller the last level is than the first."""
    return 2 ** (len(config["block_out_channels"]) - 1)


def _ltx(vae: Config, backbone: Config) -> int:
    scale = vae.get("spatial_compression_ratio") or vae["patch_size"] * 2 ** sum(vae["spatio_temporal_scaling"])
    multiple = scale * backbone["patch_size"]
    return multiple if multiple % 32 == 0 else 32


_MULTIPLES = {
    "WanImageToVideoPipeline": lambda vae, backbone: vae.get("scale_factor_spatial", 8) * backbone["patch_size"][1],
    "CogVideoXImageToVideoPipeline": lambda vae, backbone: _halved(vae) * backbone["patch_size"],
    "StableVideoDiffusionPipeline": lambda vae, backbone: _halved(vae) * _halved(backbone),
    "LTXImageToVideoPipeline": _ltx,
    "LTXConditionPipeline": _ltx,
    "LTX2ImageToVideoPipeline": _ltx,
    "HunyuanVideo15ImageToVideoPipeline": lambda vae, backbone: (
        vae.get("spatial_compression_ratio", 16) * backbone["patch_size"]
    ),
}
"""By `Family.pipeline`, the same as `Way.side_multiple` says of loaded parts."""
