"""Run by the host's Python: the host's memory management moves the components, and memory runs out while they work.

Argument: a base folder with the pack. Prints what the host's log tells, and whether the pictures are the same as ever.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import logging
import os
import sys
import weakref

base = sys.argv[1]
sys.argv = ["main.py", "--cpu", "--base-directory", base]
sys.path.insert(0, os.getcwd())

import comfy.options  # noqa: E402  the host's modules are found through the line above

comfy.options.enable_args_parsing()

import comfy.model_management as memory  # noqa: E402
import torch  # noqa: E402

import nodes  # noqa: E402  the host's, not ours

import server  # noqa: E402, F401  isort: skip

lines: list[str] = []


class Collect(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        lines.append(record.getMessage())


asyncio.run(nodes.load_custom_node(os.path.join(base, "custom_nodes", "KS-Gen"), set(nodes.NODE_CLASS_MAPPINGS)))
pack = next(name for name in sys.modules if name.endswith("KS-Gen.nodes"))
host_models, host = sys.modules[f"{pack}.host_models"], sys.modules[f"{pack}.host"]


def core(name: str):
    return importlib.import_module(f"..ksgen_core.{name}", pack)


build, types = core("build"), core("types")
render, draw = core("clips.render"), core("keysteps.draw")
RENDER = core("clips.settings").RenderSettings(updates=2, frames=5)
DRAW = core("keysteps.policies").DrawSettings(updates=2)
PLAN = types.Plan("tea", tuple(types.KeyStep(text, seed=k) for k, text in enumerate(("boil", "pour", "stir"))))
IMAGE = torch.rand(128, 128, 3, generator=torch.Generator().manual_seed(0))


def hungry(part: torch.nn.Module, when) -> None:
    """Let the component ask for more memory than any machine has, by torch's own allocator, at some of its calls."""
    calls = [0]

    def ask(_module, args) -> None:
        calls[0] += 1
        if when(calls[0], args):
            torch.empty(2**60)

    part.register_forward_pre_hook(ask)


def clip(models) -> torch.Tensor:
    (done,) = host.watch(render.render_clip(models.clips(), IMAGE, PLAN, 0, RENDER))
    return done.clip.frames


def pictures(models) -> torch.Tensor:
    events = draw.draw_key_steps(models.key_steps(), IMAGE, PLAN, [1, 2], DRAW)
    return torch.stack([done.image for done in host.watch(events)])


def new_models():
    return host_models.HostModels(build.embedded())


def where_it_lies(state: memory.VRAMState) -> list[str]:
    """The devices of the weights of a component on a device that is nearly full; `meta` stands for one."""
    before = memory.vram_state, memory.get_free_memory
    memory.vram_state = state
    memory.get_free_memory = lambda *_, torch_free_too=False, **__: (2**10, 0) if torch_free_too else 2**10
    try:
        part = build.embedded().clips().parts()["transformer"]
        host_models.HostResidence(torch.device("meta")).need(part, False, 0)
        return sorted({str(weight.device) for weight in (*part.parameters(), *part.buffers())})
    finally:
        memory.vram_state, memory.get_free_memory = before


def gone_before_the_next_are_loaded() -> bool:
    """Whether models that nobody holds have left main memory by then, though Python did not look for rings itself."""
    gc.disable()
    try:
        clip(models := new_models())
        weight = weakref.ref(next(models.clips().parts()["transformer"].parameters()))
        del models
        new_models().clips()
        return weight() is None
    finally:
        gc.enable()


def held_when(free: float) -> list[bool]:
    """Which models are still in main memory when clips are to be rendered and only `free` times what these need is
    left: the key image models on the same wire, both on another one.
    """
    one, other = new_models(), new_models()
    weights = [
        weakref.ref(next(model.parts()[part].parameters()))
        for model, part in ((one.key_steps(), "unet"), (other.key_steps(), "unet"), (other.clips(), "transformer"))
    ]
    files = (host.MINI / "clips").rglob("*.safetensors")
    left, before = free * sum(path.stat().st_size for path in files), memory.get_free_memory
    memory.get_free_memory = lambda device=None, *rest, **more: left
    try:
        one.clips()
        return [weight() is not None for weight in weights]
    finally:
        memory.get_free_memory = before


report: dict = {}
with torch.inference_mode():
    clip_before, pictures_before = clip(new_models()), pictures(new_models())
    logging.getLogger().addHandler(Collect())
    for name, calls in {"once": (2,), "twice": (2, 3), "always": range(2, 99)}.items():
        models = new_models()
        hungry(models.clips().parts()["transformer"], lambda call, _args, calls=calls: call in calls)
        lines.clear()
        try:
            same = bool((clip(models) - clip_before).abs().max() < 1 / 255)
        except Exception as error:
            same = f"{type(error).__name__}: {error}"
        loaded = [
            one.model.model.inner is models.clips().parts()["transformer"]
            for one in memory.current_loaded_models
            if one.model is not None and hasattr(one.model.model, "inner")
        ]
        told = [line for line in lines if "memory ran out" in line]
        options = models.clips().settled.options
        report[name] = {"same": same, "told": told, "offload": options.offload, "tiling": options.tiling}
        report[name]["backbone_loaded"] = any(loaded)
    models = new_models()
    hungry(models.key_steps().parts()["unet"], lambda _call, args: len(args[0]) > 2)
    lines.clear()
    same = bool((pictures(models) - pictures_before).abs().max() < 1.5 / 255)
    report["halves"] = {"same": same, "told": [line for line in lines if "memory ran out" in line]}
    states = (memory.VRAMState.NORMAL_VRAM, memory.VRAMState.LOW_VRAM, memory.VRAMState.NO_VRAM)
    report["held"] = {"room": held_when(1.0), "short": held_when(0.99)}
    report["gone"] = gone_before_the_next_are_loaded()
    report["lies"] = {state.name: where_it_lies(state) for state in states}
print()
print(json.dumps(report))
