"""Run by the host's Python: one clip by the host's own nodes, from weights exported for it.

Argument: a folder with diffusion_models/, vae/ and job.safetensors (image, text, empty text; the numbers are in its
metadata). Writes native.safetensors there: the sampled latents, those of the first frame, and the frames.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

folder = Path(sys.argv[1])
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, os.getcwd())

import comfy.options  # noqa: E402  the host's modules are found through the line above

comfy.options.enable_args_parsing()

import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402
from comfy_extras.nodes_wan import WanImageToVideo  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

import nodes  # noqa: E402  the host's, not ours

with safe_open(str(folder / "job.safetensors"), "pt") as file:
    job = json.loads(file.metadata()["job"])
    image, text, empty = (file.get_tensor(name) for name in ("image", "text", "empty"))

with torch.inference_mode():
    # As UNETLoader and VAELoader read them.
    model = comfy.sd.load_diffusion_model(str(next((folder / "diffusion_models").iterdir())))
    weights, metadata = comfy.utils.load_torch_file(str(next((folder / "vae").iterdir())), return_metadata=True)
    vae = comfy.sd.VAE(sd=weights, metadata=metadata)
    positive, negative, latent = WanImageToVideo.execute(
        [[text, {}]], [[empty, {}]], vae, image.shape[1], image.shape[0], job["frames"], 1, start_image=image[None]
    ).result
    sampled = nodes.common_ksampler(
        model, job["seed"], job["updates"], job["guidance"], "euler", "normal", positive, negative, latent
    )[0]
    frames = nodes.VAEDecode().decode(vae, sampled)[0]

results = {"latents": sampled["samples"], "first": positive[0][1]["concat_latent_image"], "frames": frames}
save_file({name: tensor.float().contiguous() for name, tensor in results.items()}, folder / "native.safetensors")
print(json.dumps({"shift": model.model.model_sampling.shift}))
