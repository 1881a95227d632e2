"""Run by the host's Python: load the pack with the host's own loader and print what it registered, as JSON.

Arguments: the base folder.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import logging
import os
import sys
import time

base = sys.argv[1]
sys.argv = ["main.py", "--cpu", "--base-directory", base]
sys.path.insert(0, os.getcwd())

import comfy.options  # noqa: E402  the host's modules are found through the line above

comfy.options.enable_args_parsing()

import nodes  # noqa: E402  the host's, not ours

# What a running host has imported by the time it comes to the packs.
import comfy_config.config_parser  # noqa: E402, F401  isort: skip
import comfy_extras.nodes_video  # noqa: E402, F401  isort: skip
import server  # noqa: E402, F401


class Collect(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def describe(cls) -> dict:
    schema = cls.GET_SCHEMA()
    # The front end's texts call an input inside another one by both names.
    inside = {
        f"{one.id}_{inner.id}": inner
        for one in schema.inputs
        for option in getattr(one, "options", None) or ()
        for inner in getattr(option, "inputs", ())
    }
    inputs = schema.inputs
    return {
        "id": schema.node_id,
        "class": cls.__name__,
        "category": schema.category,
        "display_name": schema.display_name,
        "description": schema.description,
        "search_aliases": schema.search_aliases,
        "inputs": {one.id: one.tooltip for one in inputs} | {name: one.tooltip for name, one in inside.items()},
        "input_names": {
            name: one.display_name or one.id.replace("_", " ")
            for name, one in ({one.id: one for one in inputs} | inside).items()
        },
        "top_inputs": [one.id for one in inputs],
        "output_names": [one.display_name for one in schema.outputs],
        "outputs": {one.id: one.tooltip for one in schema.outputs},
        "parameters": [name for name in inspect.signature(cls.execute).parameters if name != "cls"],
        "required": [one.id for one in inputs if not one.optional],
        "parameters_without_default": [
            p.name
            for p in inspect.signature(cls.execute).parameters.values()
            if p.default is p.empty and p.name != "cls"
        ],
    }


warnings = Collect()
logging.getLogger().addHandler(warnings)
known_nodes, known_modules = set(nodes.NODE_CLASS_MAPPINGS), set(sys.modules)
start = time.process_time()
loaded = asyncio.run(nodes.load_custom_node(os.path.join(base, "custom_nodes", "KS-Gen"), set(known_nodes)))
seconds = time.process_time() - start
new_modules = sorted(set(sys.modules) - known_modules)
pack_nodes = [cls for name, cls in nodes.NODE_CLASS_MAPPINGS.items() if name not in known_nodes]


def message_without_diffusers() -> str:
    """What the user reads if the host's Python lacks a package of ours; None in its place stands for that."""
    host = next(module for name, module in sys.modules.items() if name.endswith("KS-Gen.nodes.host"))
    sys.modules["diffusers"] = None
    try:
        host.require_packages("diffusers", "transformers")
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def cancelled_after(number: int) -> dict:
    """What `watch` does when the host is told to stop while update `number` of 10 is made."""
    import comfy.model_management

    host = next(module for name, module in sys.modules.items() if name.endswith("KS-Gen.nodes.host"))
    pipeline = importlib.import_module("..ksgen_core.pipeline", host.__package__)
    asked, closed = [], []

    def updates():
        try:
            for k in range(1, 11):
                asked.append(k)
                if k == number:
                    nodes.interrupt_processing(True)
                yield pipeline.Update("draw", (0,), k, 10)
        finally:
            closed.append(True)

    try:
        list(host.watch(updates()))
        raised = ""
    except BaseException as error:
        raised = type(error).__name__
    return {"asked": asked, "closed": closed, "raised": raised, "flag": comfy.model_management.interrupt_processing}


def files_of(prefix: str) -> list[str]:
    """Which files are made for a prefix, one after the other, when each is written and the subtitles of a third too."""
    host = next(module for name, module in sys.modules.items() if name.endswith("KS-Gen.nodes.host"))
    made = []
    for _ in range(2):
        path = host.output_file(prefix, ".mp4", ".srt")
        path.touch()
        made.append(path.name)
    path.with_name(f"{path.stem[:-1]}3.srt").touch()
    made.append(host.output_file(prefix, ".mp4", ".srt").name)
    folder = host.output_folder(prefix)
    folder.mkdir()
    return [*made, folder.name, host.output_folder(prefix).name]


def messages_of_a_film(frames: int, stop: int) -> dict:
    """How often the host is told of the frames of a film, and how many are made when it is told to stop at one."""
    import comfy.utils

    host = next(module for name, module in sys.modules.items() if name.endswith("KS-Gen.nodes.host"))
    film = importlib.import_module("..ksgen_core.film.join", host.__package__)
    sent, made = [], []

    def joined():
        for number in range(1, frames + 1):
            made.append(number)
            if number == stop:
                nodes.interrupt_processing(True)
            yield film.Joined(number, frames)

    comfy.utils.set_progress_bar_global_hook(lambda value, total, preview, node_id=None: sent.append((value, total)))
    try:
        host.finish(joined())
    except BaseException as error:
        return {"made": len(made), "sent": sent, "raised": type(error).__name__}
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    return {"made": len(made), "sent": sent, "raised": ""}


def clips_read() -> list[int]:
    """How many clips are read by the time each of the three pictures of a storyboard without key images is taken."""
    import torch

    storyboard = next(module for name, module in sys.modules.items() if name.endswith("KS-Gen.nodes.storyboard"))
    types = importlib.import_module("..ksgen_core.types", storyboard.__package__)
    read = []

    def film() -> torch.Tensor:
        read.append(1)
        return torch.full((2, 16, 16, 3), 0.5)

    plan = types.Plan("tea", (types.KeyStep("boil"),) * 3)
    return [len(read) for _ in storyboard.pictures_of(plan, None, (types.Clip(8.0, film),) * 3)]


report = {
    "clips_read": clips_read(),
    "files": [files_of("one/film"), files_of("two/film/")],
    "film": messages_of_a_film(3000, 0),
    "stopped_film": messages_of_a_film(3000, 7),
    "cancelled": cancelled_after(3),
    "without_diffusers": message_without_diffusers(),
    "loaded": loaded,
    "seconds": seconds,
    "warnings": warnings.lines,
    "new_modules": new_modules,
    "nodes": [describe(cls) for cls in pack_nodes],
}
print()
print(json.dumps(report))
