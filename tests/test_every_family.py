"""Every family through one and the same `build`: plan, key images, clips; saved and read again, with a LoRA, and with
each memory option. The folders are tiny and their weights random."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import tiny_cog_svd
import tiny_edit
import tiny_hunyuan
import tiny_kolors
import tiny_ltx
import tiny_ltx2
import tiny_wan
import torch
from tiny_clips import picture
from tiny_lora import write_lora

from ksgen_core import build
from ksgen_core.clips import families as clip_families
from ksgen_core.clips.render import render_clip
from ksgen_core.clips.settings import RenderSettings
from ksgen_core.errors import KSGenError
from ksgen_core.keysteps import families as key_families
from ksgen_core.keysteps.draw import draw_key_steps
from ksgen_core.keysteps.policies import DrawSettings
from ksgen_core.lora_diffusers import Lora
from ksgen_core.memory import MemoryOptions
from ksgen_core.pipeline import KeyImage, Planned, StepClip, collect, run
from ksgen_core.training.sdxl_folder import TINY, new_sdxl_folder
from ksgen_core.types import KeyStep, Plan, Query

PLAN = Plan("make a cup of tea", tuple(KeyStep(text) for text in ("put the tea bag into the mug", "pour hot water")))
_kept = TemporaryDirectory(prefix="ksgen-every-family-")


@cache
def sdxl() -> Path:
    new_sdxl_folder(_kept.name, [step.text for step in PLAN.steps], replace(TINY, reference=False))
    return Path(_kept.name) / "keysteps"


@cache
def kolors() -> Path:
    return tiny_kolors.new_kolors_folder(Path(_kept.name) / "kolors")


KEYS = {"sdxl": sdxl, "kolors": kolors, **{kind: lambda kind=kind: tiny_edit.folder(kind) for kind in tiny_edit.KINDS}}
CLIPS = {
    **{kind: lambda kind=kind: tiny_wan.folder(kind) for kind in tiny_wan.KINDS},
    **{kind: lambda kind=kind: tiny_cog_svd.folder(kind) for kind in ("CogVideoX", "SVD")},
    "LTX-Video": tiny_ltx.folder,
    "LTX-Video 0.9.5": lambda: tiny_ltx.folder(tiny_ltx.KINDS[1]),
    "LTX-2": tiny_ltx2.folder,
    "LTX-2.3": lambda: tiny_ltx2.folder(newer=True),
    "HunyuanVideo 1.5": tiny_hunyuan.folder,
}
OPTIONS = {
    "none": MemoryOptions(offload="none"),
    "parts": MemoryOptions(offload="parts"),
    "layers": MemoryOptions(offload="layers"),
    "tiling": MemoryOptions(tiling=True),
    "attention": MemoryOptions(attention="_native_math"),
    "fp8": MemoryOptions(fp8=True),
    "first block cache": MemoryOptions(first_block_cache=0.05),
}
LIKE_NONE = ("parts", "layers", "tiling")
"""Options that leave the numbers as they are; the pictures here are smaller than a tile."""


REFUSED = {
    "attention": ("SVD", "CogVideoX"),
    "first block cache": ("SVD", "flux2-klein", "flux2-klein-base", "LTX-2", "LTX-2.3", "HunyuanVideo 1.5"),
    "tiling": ("SVD",),
}
"""What diffusers cannot do with these: it does not know the attention or the blocks of the former, SVD's VAE has no
tiles."""
WORDS = {"attention": "attention", "tiling": "tiles", "first block cache": "FirstBlockCache"}
SMALL_TILES = ("flux-kontext",)
"""The tiny VAE's config makes tiles smaller than the picture."""
FOLDERS = {"key_steps": KEYS, "clips": CLIPS}
FOLDER = {"key_steps": "key_folder", "clips": "clip_folder"}
LORAS = {"key_steps": "key_loras", "clips": "clip_loras"}
EVERY = [(stage, kind) for stage, kinds in FOLDERS.items() for kind in kinds]


@cache
def plain(stage: str, kind: str) -> torch.Tensor:
    return one_stage(models_of(stage, kind, memory=OPTIONS["none"]), stage, kind)


def models_of(stage: str, kind: str, folder: Path | None = None, **more) -> build.Models:
    return build.open_models(**{FOLDER[stage]: folder or FOLDERS[stage][kind]()}, **more)


def one_stage(models: build.Models, stage: str, kind: str) -> torch.Tensor:
    """A key image, or a clip."""
    return made_by(getattr(models, stage)(), stage)


def made_by(model, stage: str) -> torch.Tensor:
    if stage == "key_steps":
        events = draw_key_steps(model, picture(2, 96, 96), PLAN, [1], DrawSettings(updates=3))
        return next(event.image for event in events if isinstance(event, KeyImage))
    frames = model.family.least if model.family.every else model.family.frames
    settings = RenderSettings(updates=3, guidance=1.0, frames=frames, to_next=model.family.needs_last_frame)
    end = picture(5, 64, 64) if model.family.needs_last_frame else None
    events = render_clip(model, picture(2, 64, 64), PLAN, 0, settings, end)
    return next(event.clip.frames for event in events if isinstance(event, StepClip))


def storyboard_of(models: build.Models):
    """A whole run of the product's own pipeline."""
    family = clip_families.family_of(models.clip_folder)
    frames = family.least if family.every else family.frames
    render = RenderSettings(updates=2, guidance=1.0, frames=frames, to_next=family.needs_last_frame)
    # The tiny UNets' own 32 x 32 pixels are less than LTX' VAEs take.
    size = models.picture_size(picture(2, 96, 96)) if edits(models) else (64, 64)
    stage = build.OneStage()
    return run(
        Query(picture(2, 96, 96), "make tea"),
        lambda _query: (),
        lambda _query, _examples: iter([Planned(PLAN)]),
        build.drawer(models, DrawSettings(updates=2, guidance=None if edits(models) else 2.0, size=size), stage=stage),
        build.renderer(models, render, stage=stage),
        size=size,
        end_image=picture(5, 96, 96) if family.needs_last_frame else None,
    )


def edits(models: build.Models) -> bool:
    return key_families.family_of(models.key_folder).edits


def made(models: build.Models) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The key images and the clips' frames of a run."""
    board = collect(storyboard_of(models))
    return list(board.key_images), [clip.frames for clip in board.clips]


@cache
def bare(key: str, clip: str):
    return made(build.open_models(key_folder=KEYS[key](), clip_folder=CLIPS[clip]()))


def test_every_family_of_the_tables_is_here():
    known = {family.name for family in key_families.FAMILIES} - {tiny_edit.FIRST}
    assert known == set(KEYS)
    assert {family.name for family in clip_families.FAMILIES} >= {
        clip_families.family_of(folder()).name for folder in CLIPS.values()
    }
    here = {clip_families.family_of(folder()).name for folder in CLIPS.values()}
    assert {family.name for family in clip_families.FAMILIES} - here <= {
        "CogVideoX 1.5",
        "SVD XT",
    }  # in test_clip_families


@pytest.mark.parametrize("key", KEYS)
def test_plan_key_images_and_clips(key):
    images, clips = bare(key, "Wan 2.2 14B")
    assert len(images) == len(clips) == 2
    assert all(image.shape == images[0].shape and image.isfinite().all() for image in images)
    assert not images[1].equal(images[0])


@pytest.mark.parametrize("clip", CLIPS)
def test_plan_key_images_and_clips_of_every_clip_family(clip):
    images, clips = bare("sdxl", clip)
    family = clip_families.family_of(CLIPS[clip]())
    assert len(clips) == 2 and all(len(film) == (family.least if family.every else family.frames) for film in clips)
    assert all(film.isfinite().all() and film.shape[-1] == 3 for film in clips)
    assert not clips[0].equal(clips[1])


@pytest.mark.parametrize("option", [name for name in OPTIONS if name != "none"])
@pytest.mark.parametrize("stage, kind", EVERY)
def test_with_each_memory_option(stage, kind, option):
    """The same, nearly the same, or refused by name before any work."""
    models = models_of(stage, kind, memory=OPTIONS[option])
    if kind in REFUSED.get(option, ()):
        with pytest.raises(KSGenError, match=WORDS[option]):
            one_stage(models, stage, kind)
        return
    model = getattr(models, stage)()
    check_turned_on(model, kind, option)
    got, before = made_by(model, stage), plain(stage, kind)
    assert got.isfinite().all()
    if option in LIKE_NONE and not (option == "tiling" and kind in SMALL_TILES):
        assert got.equal(before)
    elif option == "attention":
        assert (got - before).abs().max() < 1.5 / 255
    elif option != "first block cache":  # random weights may have no update that changes little
        assert not got.equal(before) and (got - before).abs().mean() < 0.1


def check_turned_on(model, kind: str, option: str) -> None:
    """That diffusers' own objects say that the option is at work."""
    parts = [model.parts()[name] for name in model.denoisers]
    processors = [module.processor for part in parts for module in part.modules() if hasattr(module, "processor")]
    unet = kind in ("sdxl", "kolors")  # keep their own attention, and know no cache
    backends = {str(getattr(one, "_attention_backend", None)) for one in processors}
    assert any("math" in backend.lower() for backend in backends) is (option == "attention" and not unet)
    cached = [getattr(part, "is_cache_enabled", False) for part in parts]
    assert cached == [option == "first block cache" and not unet] * len(parts)
    assert bool(getattr(model.parts()["vae"], "use_tiling", False)) is (option == "tiling")
    dtypes = {weight.dtype for part in parts for weight in part.parameters()}
    assert (torch.float8_e4m3fn in dtypes) is (option == "fp8")


@pytest.mark.parametrize("stage, kind", EVERY)
def test_saved_and_read_again_it_is_the_same(stage, kind, tmp_path):
    getattr(models_of(stage, kind), stage)().save(tmp_path / "again", torch.float32)
    assert one_stage(models_of(stage, kind, tmp_path / "again"), stage, kind).equal(plain(stage, kind))


@pytest.mark.parametrize("stage, kind", EVERY)
def test_with_a_lora(stage, kind, tmp_path):
    def with_loras(loras, option="none"):
        given = {LORAS[stage]: tuple(loras), "memory": OPTIONS[option]}
        return one_stage(models_of(stage, kind, **given), stage, kind)

    if kind == "SVD":
        (tmp_path / "any.safetensors").write_bytes(b"")
        with pytest.raises(KSGenError, match="no way to put a LoRA"):
            with_loras([Lora(tmp_path / "any.safetensors")])
        return
    model = getattr(models_of(stage, kind), stage)()
    loras = [Lora(write_lora(model, tmp_path, part), expert=n) for n, part in enumerate(model.denoisers, 1)]
    assert with_loras([replace(lora, strength=0.0) for lora in loras]).equal(plain(stage, kind))
    whole = with_loras(loras)
    assert not whole.equal(plain(stage, kind))
    assert with_loras(loras, "parts").equal(whole) and with_loras(loras, "layers").equal(whole)


def test_a_lora_of_another_model_is_refused_by_name(tmp_path):
    foreign = Lora(write_lora(models_of("clips", "CogVideoX").clips(), tmp_path))
    for stage, kind in (("clips", "Wan 2.2 14B"), ("key_steps", "sdxl"), ("clips", "HunyuanVideo 1.5")):
        with pytest.raises(KSGenError, match="transformer.safetensors"):
            getattr(models_of(stage, kind, **{LORAS[stage]: (foreign,)}), stage)()
    with pytest.raises(KSGenError, match="only one transformer"):
        models_of("clips", "CogVideoX", clip_loras=(replace(foreign, expert=2),)).clips()


def test_a_whole_storyboard_comes_of_two_folders():
    events = storyboard_of(
        build.open_models(key_folder=KEYS["flux-kontext"](), clip_folder=CLIPS["HunyuanVideo 1.5"]())
    )
    board = collect(events)
    assert len(board.key_images) == len(board.clips) == 2


def test_a_folder_of_an_unknown_kind_is_refused_with_those_that_are_known(tmp_path):
    folder = shutil.copytree(CLIPS["SVD"](), tmp_path / "other")
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("StableVideoDiffusionPipeline", "MochiPipeline"))
    with pytest.raises(KSGenError, match="MochiPipeline.*WanImageToVideoPipeline"):
        build.open_models(clip_folder=folder).clips()
    with pytest.raises(KSGenError, match="MochiPipeline.*StableDiffusionXLPipeline"):
        build.open_models(key_folder=folder).key_steps()
    with pytest.raises(KSGenError, match="No model was chosen for rendering clips"):
        build.open_models(key_folder=KEYS["sdxl"]()).clips()
