"""The families of key image models, told apart by a folder's `model_index.json`. Needs no torch.

Defaults are those of the makers' model cards on huggingface.co or, where a card has none, of diffusers' pipelines; a
model's own stand in `ksgen.json` of its folder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoints import read_json
from ..errors import KSGenError
from ..types import check_fields

MEGAPIXEL = 1024 * 1024
LONGEST = 8
"""A longer picture, width by height or height by width, is refused: diffusers' Flux2ImageProcessor takes no other."""


@dataclass(frozen=True)
class Family:
    """What is common to the models of one family.

    `pipelines` are the diffusers classes, the first one being what such a folder is read as. `references` is how many
    pictures the model edits from at once, 0 for one that draws from texts. `guidance_word` is the argument of the
    pipeline's call that guidance goes to, None where there is no guidance. `negative` is the text that guidance leads
    away from, None for a family that takes none. `distilled`: guidance costs no second pass of the backbone.
    `area` is the picture's, in pixels; sides are multiples of `multiple`. `nearest`: a size may be a little larger
    than `area`, else it never is. `parts` names the class of each component that holds weights.
    """

    name: str
    pipelines: tuple[str, ...]
    references: int
    updates: int
    guidance: float
    guidance_word: str | None
    negative: str | None
    distilled: bool
    area: int = MEGAPIXEL
    multiple: int = 16
    nearest: bool = False
    parts: Mapping[str, str] = field(default_factory=dict)

    @property
    def edits(self) -> bool:
        return self.references > 0


QWEN_PARTS = {
    "transformer": "diffusers.QwenImageTransformer2DModel",
    "vae": "diffusers.AutoencoderKLQwenImage",
    "text_encoder": "transformers.Qwen2_5_VLForConditionalGeneration",
}
KLEIN_PARTS = {
    "transformer": "diffusers.Flux2Transformer2DModel",
    "vae": "diffusers.AutoencoderKLFlux2",
    "text_encoder": "transformers.Qwen3ForCausalLM",
}

FAMILIES = (
    # stabilityai/stable-diffusion-xl-base-1.0; updates as IP-Adapter itself draws with SDXL (tencent-ailab/IP-Adapter,
    # ip_adapter.py), guidance of diffusers' StableDiffusionXLPipeline.
    Family(
        "sdxl",
        (
            "StableDiffusionXLPipeline",
            "StableDiffusionXLImg2ImgPipeline",
            "StableDiffusionXLInpaintPipeline",
            "StableDiffusionXLInstructPix2PixPipeline",
        ),
        references=0,
        updates=30,
        guidance=5.0,
        guidance_word="guidance_scale",
        negative="",
        distilled=False,
        multiple=8,
    ),
    # Kwai-Kolors/Kolors-diffusers, model card.
    Family(
        "kolors",
        ("KolorsPipeline", "KolorsImg2ImgPipeline"),
        references=0,
        updates=50,
        guidance=5.0,
        guidance_word="guidance_scale",
        negative="",
        distilled=False,
        multiple=8,
    ),
    # Qwen/Qwen-Image-Edit-2509 and -2511, model cards: 40 updates, true_cfg_scale 4.0, a negative prompt of one blank,
    # 1 to 3 pictures. diffusers gives references 1024 x 1024 pixels in sides of 32; where the new picture has another
    # size than they, things move and grow.
    Family(
        "qwen-edit",
        ("QwenImageEditPlusPipeline",),
        references=3,
        updates=40,
        guidance=4.0,
        guidance_word="true_cfg_scale",
        negative=" ",
        distilled=False,
        multiple=32,
        nearest=True,
        parts=QWEN_PARTS,
    ),
    # Qwen/Qwen-Image-Edit, model card: the first one, of one picture.
    Family(
        "qwen-edit-first",
        ("QwenImageEditPipeline",),
        references=1,
        updates=50,
        guidance=4.0,
        guidance_word="true_cfg_scale",
        negative=" ",
        distilled=False,
        multiple=32,
        nearest=True,
        parts=QWEN_PARTS,
    ),
    # black-forest-labs/FLUX.1-Kontext-dev, model card: guidance 2.5; 28 updates as in diffusers. It was trained on one
    # picture and on being applied again and again (arXiv 2506.15742). Putting two pictures side by side, as graphs of
    # ComfyUI do for two different subjects, halves the pixels of each and asks for words like "the left one".
    Family(
        "flux-kontext",
        ("FluxKontextPipeline",),
        references=1,
        updates=28,
        guidance=2.5,
        guidance_word="guidance_scale",
        negative=None,
        distilled=True,
        parts={
            "transformer": "diffusers.FluxTransformer2DModel",
            "vae": "diffusers.AutoencoderKL",
            "text_encoder": "transformers.CLIPTextModel",
            "text_encoder_2": "transformers.T5EncoderModel",
        },
    ),
    # black-forest-labs/FLUX.2-klein-4B and -9B, model cards: 4 updates, no guidance, up to 4 pictures.
    Family(
        "flux2-klein",
        ("Flux2KleinPipeline",),
        references=4,
        updates=4,
        guidance=1.0,
        guidance_word=None,
        negative=None,
        distilled=True,
        parts=KLEIN_PARTS,
    ),
    # black-forest-labs/FLUX.2-klein-base-4B and -9B, model cards: the same before it was distilled; `is_distilled` in
    # model_index.json tells. The pipeline itself leads away from the empty text.
    Family(
        "flux2-klein-base",
        ("Flux2KleinPipeline",),
        references=4,
        updates=50,
        guidance=4.0,
        guidance_word="guidance_scale",
        negative="",
        distilled=False,
        parts=KLEIN_PARTS,
    ),
)


def family_of(folder: str | Path) -> Family:
    """The family of a folder of diffusers. Raises `KSGenError` for one that is not known, with the list of those."""
    folder = Path(folder)
    index = read_json(folder / "model_index.json")
    kind = str(index.get("_class_name") or "a pipeline without a name")
    name = ""
    if kind == "Flux2KleinPipeline":
        name = "flux2-klein" if index.get("is_distilled") else "flux2-klein-base"
    for family in FAMILIES:
        if kind in family.pipelines and name in ("", family.name):
            return family
    known = ", ".join(dict.fromkeys(pipeline for family in FAMILIES for pipeline in family.pipelines))
    raise KSGenError(f"{folder} holds {kind}, with which no key images can be drawn. Give a folder of one of: {known}.")


@dataclass(frozen=True)
class Defaults:
    """How one editing model draws where nothing else is asked for.

    Key images have `size` (height, width), or else `area` pixels in the initial picture's shape. `text_layers` are the
    text encoder's layers that Flux.2 Klein reads (None: those of the makers).
    """

    updates: int
    guidance: float
    negative: str
    area: int
    size: tuple[int, int] | None = None
    text_layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.updates < 1 or not 1 <= self.guidance <= 50 or self.area < 64 * 64:
            raise KSGenError(
                "A model's defaults need at least 1 update, guidance from 1 to 50 and an area of at least 64 x 64 "
                f"pixels, got {self.updates}, {self.guidance} and {self.area}. Mend ksgen.json in its folder."
            )


def defaults_of(folder: Path, family: Family) -> Defaults:
    """Those in the folder's `ksgen.json` over the family's. Raises `KSGenError` for unknown or wrong fields."""
    path = folder / "ksgen.json"
    own: dict[str, Any] = {}
    if path.is_file():
        known = {"updates": int, "guidance": float, "negative": str, "area": int, "size": list, "text_layers": list}
        own = check_fields(read_json(path), str(path), {}, known)
    for name in ("size", "text_layers"):
        if name in own:
            own[name] = tuple(own[name])
            if not own[name] or not all(isinstance(number, int) and number > 0 for number in own[name]):
                raise KSGenError(f"{path}: {name} is a list of whole numbers from 1, got {list(own[name])}.")
    plain = {"updates": family.updates, "guidance": family.guidance, "negative": family.negative or ""}
    return Defaults(**{**plain, "area": family.area, **own})


def size_like(height: int, width: int, family: Family, area: int) -> tuple[int, int]:
    """The size (height, width) of `area` pixels that comes closest to the shape of a picture; its own is kept.

    Raises `KSGenError` for a picture that is much longer than wide or wider than long.
    """
    if max(height, width) > LONGEST * min(height, width):
        raise KSGenError(
            f"The initial picture is {width}x{height} pixels, more than {LONGEST} times as long as it is wide. Cut it."
        )
    wanted = math.log(width / height)
    return min(_sizes(family, area), key=lambda size: (abs(math.log(size[1] / size[0]) - wanted), -size[0] * size[1]))


def _sizes(family: Family, area: int) -> list[tuple[int, int]]:
    """All sizes (height, width) of about that area."""
    unit = family.multiple
    longest = math.isqrt(area * LONGEST) + unit
    found = []
    for one in range(unit, longest + 1, unit):
        other = (area / one + (unit / 2 if family.nearest else 0)) // unit * unit
        found += [(one, int(other)), (int(other), one)]
    sizes = [(h, w) for h, w in found if h and w and max(h, w) <= LONGEST * min(h, w)]
    if not family.nearest:
        return sizes
    # Only those that diffusers' own rule for references makes of themselves.
    return [(h, w) for h, w in sizes if h == _nearest(area * h / w, unit) and w == _nearest(area * w / h, unit)]


def _nearest(square: float, unit: int) -> int:
    return round(math.sqrt(square) / unit) * unit
