"""A node for tests, put into the host's custom_nodes folder: lets pictures through, fails, waits, blocks or turns grey.

`fail.txt`, `wait.txt`, `block.txt` and `grey.txt` in the host's input folder hold the texts at which it does.
"""

from __future__ import annotations

import time
from pathlib import Path

import folder_paths
from comfy.model_management import throw_exception_if_processing_interrupted
from comfy_api.latest import ComfyExtension, io
from comfy_execution.graph import ExecutionBlocker


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


class TestExtension(ComfyExtension):
    async def get_node_list(self):
        return [TestGate]


async def comfy_entrypoint() -> TestExtension:
    return TestExtension()
