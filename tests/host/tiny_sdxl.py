"""Custom nodes for tests alone: a folder of diffusers' parts as the host's own SDXL, its CLIP and its CLIP_VISION.

The host's loaders know these by their full sizes only; here its classes are built with those of the folder. Nodes that
write down what travels on wires, and two that stand for other packs' patches.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import comfy.cldm.cldm
import comfy.clip_vision
import comfy.controlnet
import comfy.ldm.modules.attention
import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import ComfyExtension, io, ui
from safetensors.torch import load_file, save_file

VOCABULARY = 49408
"""Of the host's text encoders, whatever their config says."""


def part(folder: str, name: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """Config and weights of one part of the folder models/ksgen/<folder>/keysteps."""
    path = Path(folder_paths.models_dir) / "ksgen" / folder / "keysteps" / name
    return json.loads((path / "config.json").read_text()), load_file(next(path.glob("*.safetensors")))


class TestSDXL(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TestSDXL",
            inputs=[io.String.Input("folder"), io.Combo.Input("dtype", options=["float32", "bfloat16"])],
            outputs=[io.Model.Output("model")],
        )

    @classmethod
    def execute(cls, folder: str, dtype: str) -> io.NodeOutput:
        config, weights = part(folder, "unet")
        sizes = unet_sizes(config)
        kind = comfy.supported_models.SDXL(sizes)
        kind.unet_config |= sizes  # SDXL's own heads are 64 wide
        kind.set_inference_dtype(getattr(torch, dtype), None)
        names = comfy.utils.unet_to_diffusers(sizes)
        with torch.inference_mode(False), torch.no_grad():
            model = kind.get_model({}, "")
            model.diffusion_model.load_state_dict({names[name]: weight for name, weight in weights.items()})
        cpu = torch.device("cpu")
        return io.NodeOutput(comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu))


def unet_sizes(config: dict) -> dict:
    """A UNet's config as diffusers has it -> as the host has it, for one layer in each block."""
    first, levels = config["block_out_channels"][0], len(config["block_out_channels"])
    return {
        **{"image_size": 32, "use_checkpoint": False, "legacy": False, "use_spatial_transformer": True},
        **{"in_channels": config["in_channels"], "out_channels": config["out_channels"], "model_channels": first},
        **{"num_res_blocks": [config["layers_per_block"]] * levels, "num_classes": "sequential"},
        **{"channel_mult": [width // first for width in config["block_out_channels"]]},
        **{"adm_in_channels": config["projection_class_embeddings_input_dim"]},
        **{"transformer_depth": [0, 1, 1], "transformer_depth_output": [0, 0, 1, 1, 1, 1]},
        **{"transformer_depth_middle": 1, "context_dim": config["cross_attention_dim"]},
        **{"use_linear_in_transformer": True, "num_head_channels": first // config["attention_head_dim"][0]},
        **{"use_temporal_attention": False, "use_temporal_resblock": False},
    }


class TestControlNet(io.ComfyNode):
    """Untrained, so its exits are not zero."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TestControlNet", inputs=[io.String.Input("folder")], outputs=[io.ControlNet.Output("control_net")]
        )

    @classmethod
    def execute(cls, folder: str) -> io.NodeOutput:
        sizes = unet_sizes(part(folder, "unet")[0])
        sizes.pop("out_channels")
        numbers = torch.Generator().manual_seed(11)
        with torch.inference_mode(False), torch.no_grad():
            model = comfy.cldm.cldm.ControlNet(hint_channels=3, operations=comfy.ops.manual_cast, **sizes)
            for weight in model.parameters():
                drawn = torch.randn(weight.shape, generator=numbers)
                weight.copy_(drawn * weight[0].numel() ** -0.5 if weight.ndim > 1 else torch.ones(weight.shape))
        return io.NodeOutput(comfy.controlnet.ControlNet(model, load_device=torch.device("cpu")))


class TestSDXLClips(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TestSDXLClips",
            inputs=[io.String.Input("folder")],
            outputs=[io.Clip.Output("clip"), io.ClipVision.Output("clip_vision")],
        )

    @classmethod
    def execute(cls, folder: str) -> io.NodeOutput:
        with torch.inference_mode(False), torch.no_grad():
            return io.NodeOutput(text_encoders(folder), image_encoder(folder))


def text_encoders(folder: str) -> comfy.sd.CLIP:
    """The host's SDXL pair; the second pads with 0, as the host has it."""
    parts = {name: part(folder, f"text_encoder{mark}") for name, mark in (("l", ""), ("g", "_2"))}
    root = Path(folder_paths.models_dir) / "ksgen" / folder / "keysteps"
    length = parts["l"][0]["max_position_embeddings"]

    class Tokenizer(comfy.sdxl_clip.SDXLTokenizer):
        def __init__(self, **_: object) -> None:
            self.clip_l, self.clip_g = (
                comfy.sd1_clip.SDTokenizer(str(root / place), length, pad_with_end=pads_with_end)
                for place, pads_with_end in (("tokenizer", True), ("tokenizer_2", False))
            )

    class Encoders(comfy.sdxl_clip.SDXLClipModel):
        def __init__(self, device: object = "cpu", dtype: object = None, model_options: dict | None = None) -> None:
            torch.nn.Module.__init__(self)
            self.dtypes = {dtype}
            for name, (config, _) in parts.items():
                end, start = config["eos_token_id"], config["bos_token_id"]
                encoder = comfy.sd1_clip.SDClipModel(
                    **{"device": device, "dtype": dtype, "layer": "hidden", "layer_idx": -2, "max_length": length},
                    **{"textmodel_json_config": config, "layer_norm_hidden_state": False},
                    special_tokens={"start": start, "end": end, "pad": end if name == "l" else 0},
                )
                setattr(self, f"clip_{name}", encoder)

    target = comfy.supported_models_base.ClipTarget(Tokenizer, Encoders)
    clip = comfy.sd.CLIP(target, model_options={"dtype": torch.float32})
    for name, (_, weights) in parts.items():
        key = "text_model.embeddings.token_embedding.weight"
        weights[key] = torch.nn.functional.pad(weights[key], (0, 0, 0, VOCABULARY - len(weights[key])))
        missing, unexpected = getattr(clip.cond_stage_model, f"clip_{name}").load_sd(weights)
        assert not unexpected and set(missing) <= {"text_projection.weight"}, (missing, unexpected)
    return clip


def image_encoder(folder: str) -> comfy.clip_vision.ClipVisionModel:
    config, weights = part(folder, "image_encoder")
    encoder = comfy.clip_vision.ClipVisionModel(config)
    missing, _ = encoder.load_sd(weights)
    assert not missing, missing
    return encoder


class TestSaveTokens(io.ComfyNode):
    """Writes image tokens, and a CONDITIONING if there is one, to output/<name>.safetensors."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TestSaveTokens",
            inputs=[
                io.Custom("KSGEN_IMAGE_TOKENS").Input("image_tokens"),
                io.Conditioning.Input("conditioning"),
                io.String.Input("name"),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, image_tokens: object, conditioning: list, name: str) -> io.NodeOutput:
        tensors = {"tokens": image_tokens.tokens, "empty": image_tokens.empty}
        tensors |= {"text": conditioning[0][0], "pooled": conditioning[0][1]["pooled_output"]}
        path = Path(folder_paths.get_output_directory()) / f"{name}.safetensors"
        save_file({key: tensor.clone().contiguous() for key, tensor in tensors.items()}, path)
        return io.NodeOutput(ui=ui.PreviewText(str(path)))


class TestAnotherPatch(io.ComfyNode):
    """What another pack may have put in the place of the middle's cross-attention: twice as much of it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TestAnotherPatch", inputs=[io.Model.Input("model")], outputs=[io.Model.Output("model")]
        )

    @classmethod
    def execute(cls, model: comfy.model_patcher.ModelPatcher) -> io.NodeOutput:
        def twice(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict) -> torch.Tensor:
            return 2 * comfy.ldm.modules.attention.optimized_attention(q, k, v, options["n_heads"])

        model = model.clone()
        model.set_model_attn2_replace(twice, "middle", 0)
        return io.NodeOutput(model)


class AddsUp:
    """A patch as the packs for IP-Adapter have it: what others add to it is called one after the other."""

    def __init__(self, attend: object, **given: object) -> None:
        self.all = [(attend, given)]

    def add(self, attend: object, **given: object) -> None:
        self.all.append((attend, given))

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict) -> torch.Tensor:
        out = comfy.ldm.modules.attention.optimized_attention(q, k, v, options["n_heads"])
        sigma = float(options["sigmas"][0])
        for attend, given in self.all:
            if given["sigma_end"] <= sigma <= given["sigma_start"]:
                out = out + attend(out, q, k, v, options, **given)
        return out


class TestAddingPatch(io.ComfyNode):
    """What those packs do: in the middle a patch of theirs, or, where one stands already, something added to it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TestAddingPatch",
            inputs=[io.Model.Input("model"), io.Float.Input("weight"), io.Float.Input("end_percent")],
            outputs=[io.Model.Output("model")],
        )

    @classmethod
    def execute(cls, model: comfy.model_patcher.ModelPatcher, weight: float, end_percent: float) -> io.NodeOutput:
        def attend(out, q, k, v, options, weight: float, sigma_start: float, sigma_end: float) -> torch.Tensor:
            return weight * comfy.ldm.modules.attention.optimized_attention(q, k, v, options["n_heads"])

        model = model.clone()
        end = model.get_model_object("model_sampling").percent_to_sigma(end_percent)
        given = {"weight": weight, "sigma_start": 1e9, "sigma_end": end}
        options = model.model_options["transformer_options"].copy()
        options["patches_replace"] = options.get("patches_replace", {}).copy()
        patches = options["patches_replace"]["attn2"] = options["patches_replace"].get("attn2", {}).copy()
        if (key := ("middle", 0, 0)) not in patches:
            patches[key] = AddsUp(attend, **given)
            model.model_options["transformer_options"] = options
        else:
            patches[key].add(attend, **given)
        return io.NodeOutput(model)


class TestMemory(io.ComfyNode):
    """Shows what the host has loaded, then has all of it unloaded and shows that again."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TestMemory",
            inputs=[io.Latent.Input("after")],
            outputs=[],
            is_output_node=True,
            not_idempotent=True,
        )

    @classmethod
    def execute(cls, after: dict) -> io.NodeOutput:
        shown = [loaded()]
        comfy.model_management.unload_all_models()
        return io.NodeOutput(ui=ui.PreviewText(json.dumps([*shown, loaded()])))


def loaded() -> dict[str, list[int]]:
    """Class name -> bytes, and bytes that are loaded, of what the host has on its device."""
    patchers = [one.model for one in comfy.model_management.current_loaded_models]
    return {type(patcher.model).__name__: [patcher.model_size(), patcher.loaded_size()] for patcher in patchers}


class TestFullSize(io.ComfyNode):
    """Where the layers of an SDXL adapter belong in the host's full-size UNet: by us, and by the host's own map of
    diffusers' names. Neither UNet holds any weights.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="TestFullSize", inputs=[io.Model.Input("after")], outputs=[], is_output_node=True)

    @classmethod
    def execute(cls, after: object) -> io.NodeOutput:
        from diffusers import UNet2DConditionModel

        ours = next(module for name, module in sys.modules.items() if name.endswith("KS-Gen.nodes.image_tokens"))
        with torch.inference_mode(False), torch.device("meta"):
            unet = UNet2DConditionModel(
                **{"block_out_channels": (320, 640, 1280), "layers_per_block": 2, "cross_attention_dim": 2048},
                **{"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")},
                **{"up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")},
                **{"transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20)},
                **{"use_linear_projection": True, "addition_embed_type": "text_time"},
                **{"addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816},
            )
            state = unet.state_dict()
            sizes = comfy.model_detection.unet_config_from_diffusers_unet(state, torch.float16)
            kind = comfy.model_detection.model_config_from_unet_config(sizes)
            model = kind.get_model({}, "", device=torch.device("meta"))
        names = comfy.utils.unet_to_diffusers(sizes)
        order = [name.removesuffix("processor") for name in unet.attn_processors if "attn2" in name]
        theirs = [[names[f"{name}to_k.weight"], list(state[f"{name}to_k.weight"].shape)] for name in order]
        found = [
            [f"{block}_block{'s' if block != 'middle' else ''}", number, index, list(place.shape)]
            for place in ours.places(types.SimpleNamespace(model=model))
            for block, number, index in [place.name]
        ]
        return io.NodeOutput(ui=ui.PreviewText(json.dumps({"ours": found, "theirs": theirs})))


class TestExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        models = [TestSDXL, TestControlNet, TestSDXLClips]
        return [*models, TestSaveTokens, TestAnotherPatch, TestAddingPatch, TestMemory, TestFullSize]


async def comfy_entrypoint() -> TestExtension:
    return TestExtension()
