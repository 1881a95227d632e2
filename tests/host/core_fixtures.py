"""A host with tiny diffusers folders of many families. The tests that name this file among their `pytest_plugins` share
one server.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny_cog_svd
import tiny_edit
import tiny_hunyuan
import tiny_kolors
import tiny_ltx
import tiny_wan
import torch
from comfy_server import Server, new_base_folder
from core_graphs import KINDS, PARTS, TEXTS
from tiny_lora import write_lora

from ksgen_core import build
from ksgen_core.keysteps.skill_transformer import SkillTransformer, SkillTransformerConfig
from ksgen_core.pixels import to_pil
from ksgen_core.training.sdxl_folder import TINY, new_sdxl_folder

HERE = Path(__file__).parent
CLIPS = dict(
    zip(
        KINDS,
        (
            lambda: tiny_wan.folder("Wan 2.2 14B"),
            lambda: tiny_wan.folder("Wan 2.2 5B"),
            tiny_ltx.folder,
            lambda: tiny_ltx.folder(tiny_ltx.KINDS[1]),
            tiny_hunyuan.folder,
            lambda: tiny_cog_svd.folder("CogVideoX"),
            lambda: tiny_cog_svd.folder("SVD"),
        ),
        strict=True,
    )
)


@pytest.fixture(scope="session")
def core_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = new_base_folder(tmp_path_factory.mktemp("core") / "base")
    models = folder / "models"
    for name, make in CLIPS.items():
        shutil.copytree(make(), models / "diffusers/video" / name)
    sdxl = models / "diffusers/sdxl"
    new_sdxl_folder(folder / "made", TEXTS, replace(TINY, reference=False))
    shutil.move(folder / "made/keysteps", sdxl)
    for name in ("ip_adapter", "image_encoder", "skill_transformer.safetensors"):
        one = sdxl / name
        shutil.rmtree(one) if one.is_dir() else one.unlink(missing_ok=True)
    shutil.copytree(tiny_edit.folder("flux-kontext"), models / "diffusers/flux-kontext")
    if find_spec("sentencepiece"):
        tiny_kolors.new_kolors_folder(models / "diffusers/kolors")
    unknown = shutil.copytree(models / "diffusers/video/svd", models / "diffusers/unknown")
    index = unknown / "model_index.json"
    index.write_text(index.read_text().replace("StableVideoDiffusionPipeline", "MochiPipeline"))
    _add_parts(models)
    _add_loras(models)
    for number in range(3):
        to_pil(picture(number)).save(folder / f"input/{number}.png")
    for name in ("watching_node.py", "any_text_encoder.py"):
        shutil.copy(HERE / name, folder / "custom_nodes")
    return folder


def picture(seed: int) -> torch.Tensor:
    return tiny_edit.picture(seed, 64, 64)


def _add_parts(models: Path) -> None:
    """An IP-Adapter, its image encoder and a Skill Transformer that speaks, each where the host keeps its kind."""
    made = models / "made"
    adapter, vision = tiny_kolors.new_adapter_files(_new(made))
    for place in ("ipadapter", "clip_vision", "ksgen"):
        _new(models / place)
    shutil.move(adapter, models / "ipadapter" / PARTS["ip_adapter"])
    shutil.move(vision, models / "clip_vision" / PARTS["image_encoder"])
    config = SkillTransformerConfig(
        token_width=2 * TINY.text_width,
        text_width=2 * TINY.text_width,
        tokens_per_image=TINY.image_tokens,
        width=32,
        layers=2,
        heads=2,
        ff_width=64,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        skill = SkillTransformer(config)
        skill.to_tokens.weight.normal_(std=0.5)
    skill.save(models / "ksgen" / PARTS["skill_transformer"])


def _add_loras(models: Path) -> None:
    made, place = _new(models / "made_loras"), _new(models / "loras")
    clips = build.open_models(clip_folder=models / "diffusers/video/wan14").clips()
    for part, name in (("transformer", "wan_high"), ("transformer_2", "wan_low")):
        shutil.move(write_lora(clips, made, part), place / f"{name}.safetensors")
    keys = build.open_models(key_folder=models / "diffusers/sdxl").key_steps()
    shutil.move(write_lora(keys, made), place / "sdxl.safetensors")


def _new(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def core_server(core_base: Path) -> Iterator[Server]:
    server = Server(core_base)
    yield server
    server.stop()
