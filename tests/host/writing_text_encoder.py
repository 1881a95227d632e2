"""Custom nodes for tests alone: above all a text encoder of the host's own classes that writes one fixed text.

It is the host's Qwen3-VL, tiny, behind the host's own CLIP. All its layers add nothing, and its last matrix leads from
each token of the text to the next, so the text is cut into tokens of which no two are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import comfy.model_management as memory
import comfy.sd
import torch
from comfy import sd1_clip
from comfy.text_encoders import qwen3vl
from comfy_api.latest import ComfyExtension, io

NAME = "tiny_writer"
END = 151645
BEFORE_REPLY = "\n\n"
"""What the prompt ends in: the host closes an empty thought there."""


@dataclass
class TinyConfig(qwen3vl.Qwen3VL_8BConfig):
    hidden_size: int = 64
    intermediate_size: int = 64
    num_hidden_layers: int = 2
    num_attention_heads: int = 1
    num_key_value_heads: int = 1


def distinct_tokens(text: str, words: dict[str, int], used: frozenset[int] = frozenset()) -> list[int] | None:
    """Token ids that make up `text`, no two the same, or None."""
    if not text:
        return []
    for length in range(min(12, len(text)), 0, -1):
        token = words.get(text[:length])
        if token is None or token in used:
            continue
        rest = distinct_tokens(text[length:], words, used | {token})
        if rest is not None:
            return [token, *rest]
    return None


def new_writer(text: str) -> comfy.sd.CLIP:
    qwen3vl.QWEN3VL_CONFIGS[NAME] = TinyConfig
    qwen3vl.QWEN3VL_VISION[NAME] = dict(hidden_size=64, intermediate_size=64, depth=1, deepstack_visual_indexes=[])

    class Target:
        clip = qwen3vl.te(dtype_llama=torch.float32, model_type=NAME)
        tokenizer = qwen3vl.tokenizer(model_type=NAME)
        params: dict = {}

    clip = comfy.sd.CLIP(Target)
    vocabulary = getattr(clip.tokenizer, NAME).tokenizer.get_vocab()
    words = {word.replace("Ġ", " ").replace("Ċ", "\n"): number for word, number in vocabulary.items()}
    tokens = distinct_tokens(text, words, frozenset((words[BEFORE_REPLY], END)))
    assert tokens, f"{text!r} cannot be cut into distinct tokens"
    model = getattr(clip.cond_stage_model, NAME).transformer
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        for name, weight in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                weight.fill_(1.0)
        numbers = torch.Generator().manual_seed(0)
        model.model.embed_tokens.weight.copy_(torch.randn(model.model.embed_tokens.weight.shape, generator=numbers))
        chain = [words[BEFORE_REPLY], *tokens, END]
        for one, following in zip(chain[:-1], chain[1:], strict=True):
            model.model.lm_head.weight[following] = model.model.embed_tokens.weight[one]
    return clip


class TestWritingTextEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TestWritingTextEncoder",
            inputs=[io.String.Input("text")],
            outputs=[io.Clip.Output("clip")],
        )

    @classmethod
    def execute(cls, text: str) -> io.NodeOutput:
        return io.NodeOutput(new_writer(text))


class TestMuteTextEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="TestMuteTextEncoder", inputs=[], outputs=[io.Clip.Output("clip")])

    @classmethod
    def execute(cls) -> io.NodeOutput:
        sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 12, "num_attention_heads": 1}
        config = {**sizes, "hidden_act": "gelu", "max_position_embeddings": 77, "eos_token_id": 49407}

        def tiny(**given) -> sd1_clip.SDClipModel:
            return sd1_clip.SDClipModel(textmodel_json_config=config, **given)

        return io.NodeOutput(SimpleNamespace(cond_stage_model=sd1_clip.SD1ClipModel(clip_model=tiny)))


class TestModelsHeld(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TestModelsHeld", inputs=[io.AnyType.Input("after")], outputs=[io.String.Output("names")]
        )

    @classmethod
    def execute(cls, after: object) -> io.NodeOutput:
        held = [one.model.model for one in memory.current_loaded_models if one.model is not None]
        return io.NodeOutput(" ".join(["held:", *(type(model).__name__ for model in held)]))


class TestExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [TestWritingTextEncoder, TestMuteTextEncoder, TestModelsHeld]


async def comfy_entrypoint() -> TestExtension:
    return TestExtension()
