"""The graphs that draw and render with the tiny diffusers folders of `core_fixtures`."""

from __future__ import annotations

import json

import torch
from comfy_server import Server
from safetensors.torch import load_file
from test_run import Prompt, node

from ksgen_core.types import KeyStep, Plan

TEXTS = ("put the tea bag into the mug", "pour hot water")
PLAN = Plan("make a cup of tea", tuple(KeyStep(text) for text in TEXTS))
SEED = 3
KEYS = ("sdxl", "kolors", "flux-kontext")
KINDS = ("wan14", "wan5", "ltx", "ltx095", "hunyuan", "cogvideox", "svd")
LEAST = {"ltx": 9, "ltx095": 9, "svd": 14, "cogvideox": 9}
"""Frames that a kind can make, where 5 are too few."""
PARTS = {"skill_transformer": "skill.safetensors", "ip_adapter": "plus.safetensors", "image_encoder": "vision"}


def loading(key: str = "none", clip: str = "none", **more) -> dict:
    """The node that loads folders; SDXL and Kolors with their parts from elsewhere where `more` says so."""
    own = dict.fromkeys(PARTS, "the folder's own")
    return node("KSGenLoadDiffusers", key_model=key, clip_model=clip, **{**own, **more})


def drawing(models: str = "models", **more) -> dict:
    inputs = {"policy": "auto", "updates": 2, "guidance": 2.0, "seed": SEED, "width": 96, "height": 96}
    return node("KSGenDrawKeySteps", models=[models, 0], plan=["plan", 0], image=["p0", 0], **{**inputs, **more})


def rendering(kind: str, models: str = "models", **more) -> dict:
    inputs = {"start_from": "key image", "updates": 2, "guidance": 1.0, "frames": LEAST.get(kind, 5), "fps": 0.0}
    links = {"models": [models, 0], "plan": ["plan", 0], "key_images": ["both", 0], "seed": SEED}
    return node("KSGenRenderClips", **{**inputs, **links, **more})


def graph(plan: Plan = PLAN, **nodes: dict) -> Prompt:
    """Pictures and plan, and `nodes` behind them."""
    pictures = {f"p{number}": node("LoadImage", image=f"{number}.png") for number in range(3)}
    return {
        **pictures,
        "both": node("ImageBatch", image1=["p0", 0], image2=["p1", 0]),
        "plan": node("KSGenPlanFromText", text=json.dumps(plan.to_json()), goal=""),
        **nodes,
    }


def kept(source: str, output: int = 0, name: str | None = None) -> dict[str, dict]:
    """What keeps the pictures of a node."""
    name = name or source
    return {f"{name}.kept": node("TestKeepPictures", images=[source, output], name=f"{name}.safetensors")}


def pictures_of(server: Server, name: str) -> torch.Tensor:
    return load_file(server.base / "output" / f"{name}.safetensors")["images"]


def run(server: Server, prompt: Prompt) -> dict[str, torch.Tensor]:
    """Run a prompt; the pictures it keeps by name."""
    server.run(prompt)
    return {name[:-5]: pictures_of(server, name[:-5]) for name in prompt if name.endswith(".kept")}


def drawn(server: Server, **more) -> torch.Tensor:
    """The key images that one node draws; `models` are the inputs of the node that loads."""
    models = more.pop("models", {"key": "sdxl"})
    return run(server, graph(models=loading(**models), draw=drawing(**more), **kept("draw")))["draw"]


def rendered(server: Server, kind: str, plan: Plan = PLAN, **more) -> torch.Tensor:
    """The frames of both clips."""
    models = loading(clip=f"video/{kind}", **more.pop("models", {}))
    nodes = {"models": models, "render": rendering(kind, **more)}
    return run(server, graph(plan, **nodes, **kept("render", 1)))["render"]
