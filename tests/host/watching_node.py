"""For tests, for the host's custom_nodes folder: says over HTTP what the host loads, and keeps pictures as they are.

`POST /test/watch` forgets what was seen; with `{"hold": k}` the k-th progress of a node waits until the user cancels.
`GET /test/seen` tells what was seen since, how much memory the server holds and which threads run.
"""

from __future__ import annotations

import ctypes
import gc
import re
import threading
import time
from pathlib import Path

import comfy.model_management as memory
import comfy.utils
import folder_paths
import torch
from aiohttp import web
from comfy_api.latest import ComfyExtension, io
from safetensors.torch import save_file
from server import PromptServer

BACKBONES = ("UNet2DConditionModel", "UNetSpatioTemporalConditionModel")
WAITS = 60.0
"""Seconds until the one who wanted to cancel is taken for lost."""

seen: dict = {}


def forget(hold: int = 0) -> None:
    seen.clear()
    seen.update(hold=hold, held=False, loads=[], progress=[], updates=0, updates_after=0)


def entries() -> list[str]:
    """The host's own list of what is loaded, as its log names it."""
    return [one.model.model.__class__.__name__ for one in memory.current_loaded_models if one.model is not None]


def tensors() -> tuple[int, int]:
    """How many different tensors Python knows, and their bytes."""
    storages = [one.untyped_storage() for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter)]
    sizes = {one.data_ptr(): one.nbytes() for one in storages}
    return len(sizes), sum(sizes.values())


def on_load(models, memory_required=0, *rest, **more):
    asked = [one.model.__class__.__name__ for one in models]
    result = load_models_gpu(models, memory_required, *rest, **more)
    seen["loads"].append({"asked": asked, "memory_required": memory_required, "loaded": entries()})
    return result


def on_progress(bar, value, total=None, preview=None):
    update_absolute(bar, value, total, preview)
    seen["progress"].append([value, total, preview is not None])
    if seen["hold"] and value >= seen["hold"] and not seen["held"]:
        seen["held"] = True
        end = time.monotonic() + WAITS
        while not memory.interrupt_processing and time.monotonic() < end:
            time.sleep(0.01)


def on_call(module, _args) -> None:
    kind = type(module).__name__
    # `Transformer2DModel` alone is a block of a UNet.
    if kind in BACKBONES or re.fullmatch(r".+Transformer[23]DModel", kind):
        seen["updates_after" if seen["held"] else "updates"] += 1


forget()
load_models_gpu, memory.load_models_gpu = memory.load_models_gpu, on_load
update_absolute, comfy.utils.ProgressBar.update_absolute = comfy.utils.ProgressBar.update_absolute, on_progress
torch.nn.modules.module.register_module_forward_pre_hook(on_call)


@PromptServer.instance.routes.post("/test/watch")
async def watch(request):
    forget(**await request.json())
    return web.json_response({})


@PromptServer.instance.routes.get("/test/seen")
async def tell(_request):
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    status = Path("/proc/self/status").read_text()
    more = {"now_loaded": entries(), "threads": [one.name for one in threading.enumerate()]}
    more["tensors"], more["tensor_bytes"] = tensors()
    more["bytes"] = int(status.split("VmRSS:")[1].split()[0]) * 1024
    return web.json_response(seen | more)


class TestKeepPictures(io.ComfyNode):
    """As float32, which no picture file holds."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TestKeepPictures",
            is_output_node=True,
            inputs=[io.Image.Input("images"), io.String.Input("name")],
            outputs=[],
        )

    @classmethod
    def execute(cls, images, name) -> io.NodeOutput:
        save_file({"images": images.float().contiguous()}, Path(folder_paths.get_output_directory()) / name)
        return io.NodeOutput()


class TestExtension(ComfyExtension):
    async def get_node_list(self):
        return [TestKeepPictures]


async def comfy_entrypoint() -> TestExtension:
    return TestExtension()
