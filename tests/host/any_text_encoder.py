"""Custom nodes for tests alone: what has no tiny file for the host's loaders to read.

Text encoders' sizes are fixed in the host, and so are Qwen-Image's. Here a text encoder turns each text into numbers of
its own, and Qwen-Image's class is built with small sizes in place of being loaded.
"""

from __future__ import annotations

import zlib

import comfy.model_patcher
import comfy.supported_models
import torch
from comfy_api.latest import ComfyExtension, io

WIDTH = 192
"""Of a token, for all the tiny models."""
TOKENS = 6


class AnyTextEncoder:
    """What the host's nodes ask a CLIP for: the same text gives the same numbers, and so does the same picture."""

    def tokenize(self, text: str, images: list[torch.Tensor] | None = None, **_: object) -> list[int]:
        shown = [zlib.crc32((255 * image).to(torch.uint8).cpu().numpy().tobytes()) for image in images or []]
        return [zlib.crc32(text.encode()), *shown]

    def encode_from_tokens_scheduled(self, tokens: list[int], **_: object) -> list:
        numbers = torch.Generator().manual_seed(zlib.crc32(repr(tokens).encode()))
        return [[torch.randn(1, TOKENS, WIDTH, generator=numbers), {"pooled_output": None}]]


class TestAnyTextEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="TestAnyTextEncoder", inputs=[], outputs=[io.Clip.Output("clip")])

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(AnyTextEncoder())


class TestQwenImage(io.ComfyNode):
    """Edit-2511's kind: references at time zero."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="TestQwenImage", inputs=[], outputs=[io.Model.Output("model")])

    @classmethod
    def execute(cls) -> io.NodeOutput:
        sizes = {"in_channels": 64, "num_layers": 1, "attention_head_dim": 16, "num_attention_heads": 1}
        sizes |= {
            "joint_attention_dim": WIDTH,
            "axes_dims_rope": (4, 6, 6),
            "default_ref_method": "index_timestep_zero",
        }
        config = comfy.supported_models.QwenImage({"image_model": "qwen_image", **sizes})
        config.set_inference_dtype(torch.float32, None)
        with torch.inference_mode(False), torch.no_grad():
            model = config.get_model({}, "")
            numbers = torch.Generator().manual_seed(0)
            for weight in model.parameters():
                drawn = torch.randn(weight.shape, generator=numbers)
                weight.copy_(drawn * weight[0].numel() ** -0.5 if weight.ndim > 1 else torch.ones(weight.shape))
        cpu = torch.device("cpu")
        return io.NodeOutput(comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu))


class TestExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [TestAnyTextEncoder, TestQwenImage]


async def comfy_entrypoint() -> TestExtension:
    return TestExtension()
