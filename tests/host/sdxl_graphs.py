"""A tiny SDXL on two roads: the graphs that draw with it in the host, and diffusers' UNet with Euler's formula."""

from __future__ import annotations

from dataclasses import replace

import torch
from comfy_server import Server
from conftest import TEXTS
from safetensors.torch import load_file
from test_run import Prompt, node

from ksgen_core.keysteps.sdxl_diffusers import KeyStepModel
from ksgen_core.pixels import on_8_bit_grid
from ksgen_core.training.sdxl_folder import TINY

# The host's groups are 32 everywhere, its heads equally wide, and its sizes are told to the UNet by 256 numbers each.
SIZES = replace(
    TINY,
    reference=False,
    unet_channels=(32, 64, 128),
    unet_heads=(1, 2, 4),
    vae_channels=(32, 32, 32, 32),
    groups=32,
    time_width=256,
    text_layers=3,
    vision_layers=3,
)
SIDE, UPDATES, SEED, SCALE = 8, 4, 7, 0.13025
"""SIDE is that of the latents; by SCALE the host multiplies SDXL's latents (`comfy.latent_formats.SDXL`)."""
PICTURE = on_8_bit_grid(torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(5)))
TOLERANCE = 2e-4
"""Of latents whose spread is 16. Measured: 5e-5."""
LORA = "diffusion_model.input_blocks.3.1.transformer_blocks.0.attn2.to_v"


def graph(plan: str = "\n".join(TEXTS), dtype: str = "float32", **nodes: dict) -> Prompt:
    """Everything that the image tokens need, and `nodes` beside it."""
    return {
        "model": node("TestSDXL", folder="tiny", dtype=dtype),
        "clips": node("TestSDXLClips", folder="tiny"),
        "picture": node("LoadImage", image="picture.png"),
        "plan": node("KSGenPlanFromText", text=plan, goal="make a cup of tea"),
        "skill": node(
            "KSGenLoadSkillTransformer",
            skill_transformer="tiny/keysteps/skill_transformer.safetensors",
            ip_adapter="plus.safetensors",
        ),
        "tokens": node(
            "KSGenForeseeTokens",
            skill_transformer=["skill", 0],
            clip=["clips", 0],
            clip_vision=["clips", 1],
            plan=["plan", 0],
            image=["picture", 0],
            policy="skill transformer",
        ),
        "text": node("CLIPTextEncode", clip=["clips", 0], text=TEXTS[1]),
        "nothing": node("CLIPTextEncode", clip=["clips", 0], text=""),
        "latent": node("EmptyLatentImage", width=8 * SIDE, height=8 * SIDE, batch_size=2),
        **nodes,
    }


def applied(model: str = "model", step: int = 2, weight: float = 1.0, start: float = 0.0, end: float = 1.0) -> dict:
    return node(
        "KSGenApplyImageTokens",
        model=[model, 0],
        image_tokens=["tokens", 0],
        step=step,
        weight=weight,
        start_percent=start,
        end_percent=end,
    )


def drawn(model: str, guidance: float = 3.0, text: str = "text") -> dict[str, dict]:
    """The sampler behind a model, and what saves its latents under the same name."""
    sampler = node(
        "KSampler",
        **{"model": [model, 0], "positive": [text, 0], "negative": ["nothing", 0], "latent_image": ["latent", 0]},
        **{"seed": SEED, "steps": UPDATES, "cfg": guidance, "sampler_name": "euler", "scheduler": "normal"},
        denoise=1.0,
    )
    saved = node("SaveLatent", samples=[f"{model}.drawn", 0], filename_prefix=model)
    return {f"{model}.drawn": sampler, f"{model}.saved": saved}


def run(server: Server, prompt: Prompt) -> dict[str, list[torch.Tensor]]:
    """The latents that were saved, by the name of the model that they were drawn with."""
    outputs = server.run(prompt)
    return {
        name.removesuffix(".saved"): [
            load_file(server.base / "output" / one["subfolder"] / one["filename"])["latent_tensor"]
            for one in output["latents"]
        ]
        for name, output in outputs.items()
        if name.endswith(".saved")
    }


@torch.no_grad()
def draw_with_diffusers(
    model: KeyStepModel, image_tokens, guidance: float = 3.0, updates: int = UPDATES, steered: range = range(UPDATES)
) -> torch.Tensor:
    """Two pictures by diffusers' UNet and Euler's formula, on the sigmas that the host's scheduler `normal` has.

    image_tokens [N, C] are those of the text and those of the empty one, used in the updates `steered`.
    """
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = (1 - betas).cumprod(0)
    timesteps = torch.linspace(999, 0, updates).round().long()
    sigmas = [*((1 - alphas) / alphas).sqrt()[timesteps].tolist(), 0.0]
    text, _, pooled = model.encode_texts([TEXTS[1], ""])
    side = 8.0 * SIDE
    added = {
        "text_embeds": pooled.repeat_interleave(2, 0),
        "time_ids": torch.tensor([[side, side, 0, 0, side, side]]).expand(4, -1),
        "image_embeds": [torch.stack(image_tokens).repeat_interleave(2, 0)],
    }
    noise = torch.randn(2, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(SEED))
    x = noise * (1 + sigmas[0] ** 2) ** 0.5
    for number, (sigma, after, t) in enumerate(zip(sigmas, sigmas[1:], timesteps, strict=False)):
        model.pipe.set_ip_adapter_scale(1.0 if number in steered else 0.0)
        noisy = torch.cat([x, x]) / (1 + sigma**2) ** 0.5
        eps = model.pipe.unet(noisy, t, text.repeat_interleave(2, 0), added_cond_kwargs=added, return_dict=False)[0]
        given, without = eps.chunk(2)
        x = x + (without + guidance * (given - without)) * (after - sigma)
    return x


def close(got: torch.Tensor, wanted: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(got * SCALE, wanted, atol=tolerance, rtol=0)


def apart(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Are two pictures different by far more than the tolerance?"""
    return bool(((one - other) * SCALE).abs().max() > 100 * TOLERANCE)
