"""Run by the host's Python: tiny files of untrained weights, in the formats that the host's own loaders read.

Arguments: a models folder, and a JSON object that says for each file below it who builds it, as {"vae/a.safetensors":
"wan_vae"}. The host reads most sizes of a model from its weights and the others from the file's metadata, so its own
classes are built here with small sizes. Prints the number of parameters of each file.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

FOLDER, JOB = Path(sys.argv[1]), json.loads(sys.argv[2])
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, os.getcwd())

import comfy.options  # noqa: E402  the host's modules are found through the line above

comfy.options.enable_args_parsing()

import comfy.ops  # noqa: E402
import comfy.sd  # noqa: E402, F401  before the models: they import each other
import torch  # noqa: E402
from comfy.ldm.flux.model import Flux  # noqa: E402
from comfy.ldm.lightricks.av_model import LTXAVModel  # noqa: E402
from comfy.ldm.lightricks.vae.audio_vae import AudioVAE  # noqa: E402
from comfy.ldm.lightricks.vae.causal_video_autoencoder import VideoVAE  # noqa: E402
from comfy.ldm.minimax.audio_vae import MiniMaxH3AudioVAE  # noqa: E402
from comfy.ldm.minimax.model import MiniMaxH3Model  # noqa: E402
from comfy.ldm.models.autoencoder import AutoencoderKL  # noqa: E402
from comfy.ldm.wan.model import WanModel  # noqa: E402
from comfy.ldm.wan.vae import WanVAE  # noqa: E402
from comfy.taesd.taehv import TAEHV  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

TEXT_WIDTH = 192
"""What every model here takes for a text's width; the tests' text encoder gives that. LTX-2.3 bounds it below."""

KEPT = ("decoder.", "dec_in_proj.", "latents_")
"""Of the audio VAE of MiniMax H3."""

Weights = dict[str, torch.Tensor]
OPERATIONS = {"operations": comfy.ops.disable_weight_init, "dtype": torch.float32}


def drawn(model: torch.nn.Module, prefix: str = "", seed: int = 0) -> Weights:
    """The weights of a model, drawn so that signals keep about their size: each name has numbers of its own."""
    weights = {}
    for number, (name, tensor) in enumerate(sorted(model.state_dict().items())):
        numbers = torch.Generator().manual_seed(1000 * seed + number)
        if not tensor.is_floating_point():
            value = torch.zeros_like(tensor)
        elif tensor.ndim > 1:
            value = torch.randn(tensor.shape, generator=numbers) * tensor[0].numel() ** -0.5
        elif name.endswith(("bias", "mean", "running_mean", "mean-of-means")):
            value = torch.randn(tensor.shape, generator=numbers) * 0.02
        else:  # what multiplies, and variances
            value = torch.ones(tensor.shape)
        weights[prefix + name] = value.contiguous()
    return weights


def wan(seed: int = 0) -> tuple[Weights, dict]:
    """Wan 2.2 14B I2V's kind: 36 channels in (noise, picture, mask), no vision encoder's features."""
    sizes = {"dim": 128, "num_heads": 1, "ffn_dim": 64, "num_layers": 1, "in_dim": 36, "out_dim": 16}
    return drawn(WanModel(text_dim=TEXT_WIDTH, **sizes, **OPERATIONS), seed=seed), {
        "transformer": {"text_dim": TEXT_WIDTH}
    }


def wan_other(seed: int = 1) -> tuple[Weights, dict]:
    """Another expert, so that it shows which one was used."""
    return wan(seed)


def lora(layer: str, width_in: int, width_out: int) -> tuple[Weights, dict]:
    """Rank 1 on one layer."""
    name = f"diffusion_model.{layer}.lora_{{}}.weight"
    return {name.format("down"): torch.full((1, width_in), 0.1), name.format("up"): torch.full((width_out, 1), 0.1)}, {}


def wan_lora() -> tuple[Weights, dict]:
    return lora("blocks.0.self_attn.q", 128, 128)


def qwen_lora() -> tuple[Weights, dict]:
    """For the model that the tests' own node makes in place of a file."""
    return lora("transformer_blocks.0.attn.to_q", 16, 16)


def minimax_lora() -> tuple[Weights, dict]:
    return lora("blocks.0.attn.qkv_proj", 128, 384)


def wan_vae() -> tuple[Weights, dict]:
    model = WanVAE(
        dim=8,
        z_dim=16,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=2,
        attn_scales=[],
        temperal_downsample=[False, True, True],
    )
    return drawn(model), {}


def flux2() -> tuple[Weights, dict]:
    model = Flux(
        **{"in_channels": 128, "out_channels": 128, "vec_in_dim": None, "context_in_dim": TEXT_WIDTH},
        **{"hidden_size": 128, "mlp_ratio": 3.0, "num_heads": 1, "depth": 1, "depth_single_blocks": 1},
        **{"axes_dim": [32, 32, 32, 32], "theta": 2000, "patch_size": 1, "qkv_bias": False, "guidance_embed": False},
        **{"txt_ids_dims": [3], "global_modulation": True, "mlp_silu_act": True, "ops_bias": False},
        **OPERATIONS,
    )
    return drawn(model), {}


def flux2_vae() -> tuple[Weights, dict]:
    """The host takes the encoder's width for granted and reads the decoder's, which 32 groups bound below."""
    common = {"double_z": True, "z_channels": 32, "resolution": 256, "in_channels": 3, "out_ch": 3, "dropout": 0.0}
    common |= {"ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "batch_norm_latent": True}
    model = AutoencoderKL(ddconfig={**common, "ch": 128}, decoder_ddconfig={**common, "ch": 32}, embed_dim=32)
    return drawn(model), {}


def ltxav() -> tuple[Weights, dict]:
    """One checkpoint as LTX-2.3's: transformer, video VAE, audio VAE and vocoder, their sizes in the metadata."""
    transformer = {
        **{"attention_head_dim": 4, "num_attention_heads": 32, "cross_attention_dim": 128, "in_channels": 128},
        **{"audio_attention_head_dim": 2, "audio_num_attention_heads": 32, "audio_cross_attention_dim": 64},
        **{"caption_channels": 64, "num_layers": 1, "caption_proj_before_connector": True},
        **{"caption_projection_first_linear": False, "cross_attention_adaln": True, "apply_gated_attention": True},
        **{"connector_attention_head_dim": 32, "connector_num_attention_heads": 1, "connector_num_layers": 1},
        **{"audio_connector_attention_head_dim": 32, "audio_connector_num_attention_heads": 1},
    }
    blocks = (
        ["compress_all", {"multiplier": 1}],
        ["compress_all", {"multiplier": 1}],
        ["compress_all", {"multiplier": 1}],
    )
    vae = {
        **{"dims": 3, "in_channels": 3, "out_channels": 3, "latent_channels": 128, "patch_size": 4},
        **{"encoder_blocks": [["res_x", {"num_layers": 1}], *blocks], "encoder_base_channels": 8},
        # The decoder takes its blocks from behind.
        **{"decoder_blocks": [*blocks, ["res_x", {"num_layers": 1}]], "decoder_base_channels": 8},
        **{"norm_layer": "pixel_norm", "latent_log_var": "uniform", "causal_decoder": False},
    }
    audio = {
        "double_z": True,
        "mel_bins": 64,
        "z_channels": 8,
        "resolution": 64,
        "in_channels": 2,
        "out_ch": 2,
        "ch": 8,
    }
    audio |= {"ch_mult": [1, 2, 4], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
    audio |= {"mid_block_add_attention": False, "norm_type": "pixel", "causality_axis": "height"}
    config = {
        "transformer": transformer,
        "vae": vae,
        "audio_vae": {
            "model": {"params": {"ddconfig": audio, "sampling_rate": 16000}},
            "preprocessing": {"stft": {"filter_length": 1024, "hop_length": 160}},
        },
        "vocoder": {
            "upsample_initial_channel": 32,
            "resblock_kernel_sizes": [3],
            "resblock_dilation_sizes": [[1, 3, 5]],
        },
    }
    sound = AudioVAE(metadata={"config": config})
    weights = {
        **drawn(LTXAVModel(**transformer, **OPERATIONS), "model.diffusion_model."),
        **drawn(VideoVAE(config=vae), "vae."),
        **drawn(sound.autoencoder, "audio_vae."),
        **drawn(sound.vocoder, "vocoder."),
    }
    return weights, config


def minimax() -> tuple[Weights, dict]:
    model = MiniMaxH3Model(
        **{"hidden_size": 128, "num_layers": 1, "token_refiner_num_layers": 1, "num_attention_heads": 1},
        **{"ffn_hidden_size": 64, "text_dim": TEXT_WIDTH, "timestep_input_dim": 32, "time_embed_hidden_size": 64},
        time_embed_dim=32,
        **OPERATIONS,
    )
    return drawn(model), {}


def minimax_vae() -> tuple[Weights, dict]:
    """The true one has 2.6 thousand million parameters of fixed sizes; the host takes this small one in its place."""
    return drawn(TAEHV(latent_channels=24)), {}


def minimax_audio_vae() -> tuple[Weights, dict]:
    """Of fixed size, so without the half that encodes: 65 million parameters."""
    model = MiniMaxH3AudioVAE()
    mark = "pre_block.attn.zero_k_bias"  # by which the host knows the format
    weights = drawn(model)
    return {name: weights[name].half() for name in weights if name.startswith(KEPT) or name == mark}, {}


BUILDERS: dict[str, Callable[[], tuple[Weights, dict]]] = {
    builder.__name__: builder
    for builder in (
        wan, wan_other, wan_lora, wan_vae, qwen_lora, flux2, flux2_vae, ltxav,
        minimax, minimax_lora, minimax_vae, minimax_audio_vae,
    )
}  # fmt: skip

sizes = {}
with torch.no_grad():
    for file, name in JOB.items():
        weights, config = BUILDERS[name]()
        path = FOLDER / file
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(weights, path, {"format": "pt", **({"config": json.dumps(config)} if config else {})})
        sizes[file] = sum(weight.numel() for weight in weights.values())
print(json.dumps(sizes))
