"""Nodes for tests, for the host's custom_nodes folder. The gate lets pictures through or fails, waits, blocks, greys.

`fail.txt`, `wait.txt`, `block.txt` and `grey.txt` in the host's input folder hold the texts at which it does.
"""

from __future__ import annotations

import time
from pathlib import Path

import folder_paths
from comfy.model_management import throw_exception_if_processing_interrupted
from comfy_api.latest import ComfyExtension, io
from comfy_execution.graph import ExecutionBlocker
from comfy_execution.graph_utils import GraphBuilder

import nodes


def _says(file: str, text: str) -> bool:
    path = Path(folder_paths.get_input_directory()) / file
    return path.is_file() and text in path.read_text().splitlines()


class TestGate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TestGate",
            inputs=[io.Image.Input("image"), io.String.Input("text")],
            outputs=[io.Image.Output("image")],
        )

    @classmethod
    def execute(cls, image, text) -> io.NodeOutput:
        if _says("fail.txt", text):
            raise RuntimeError(f"gate closed at {text}")
        while _says("wait.txt", text):
            throw_exception_if_processing_interrupted()
            time.sleep(0.02)
        if _says("block.txt", text):
            return io.NodeOutput(ExecutionBlocker(None))
        return io.NodeOutput(image[..., :1] if _says("grey.txt", text) else image)


class TestJoinTexts:
    """As many packs make nodes with any number of inputs: beyond the first they are not declared."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"text_1": ("STRING", {"default": ""}), "way": (["plain", "wan"],)}}

    RETURN_TYPES = ("STRING",)
    FUNCTION = "join"

    def join(self, text_1, way, **texts):
        return (" ".join([text_1, *(texts[name] for name in sorted(texts))]),)


class TestRepeatByExpanding(io.ComfyNode):
    """Frames by a node that it adds to the graph."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TestRepeatByExpanding",
            enable_expand=True,
            inputs=[io.Image.Input("image", raw_link=True), io.Int.Input("amount", min=1, max=999)],
            outputs=[io.Image.Output("frames")],
        )

    @classmethod
    def execute(cls, image, amount) -> io.NodeOutput:
        graph = GraphBuilder()
        repeated = graph.node("RepeatImageBatch", image=image, amount=amount)
        return io.NodeOutput(repeated.out(0), expand=graph.finalize())


class TestExtension(ComfyExtension):
    async def get_node_list(self):
        return [TestGate, TestRepeatByExpanding]


async def comfy_entrypoint() -> TestExtension:
    # A module has either nodes of the old kind or an extension.
    nodes.NODE_CLASS_MAPPINGS["TestJoinTexts"] = TestJoinTexts
    return TestExtension()
