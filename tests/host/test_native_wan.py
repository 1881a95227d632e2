"""The exported clip model gives the same frames in ComfyUI's own nodes as in ours."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from comfy_server import run_in_host
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent.parent))
from tiny_clips import PLAN, TEXTS, clip_model, clips_folder, film  # noqa: E402

from ksgen_core.clips.render import encode_text_native  # noqa: E402
from ksgen_core.clips.wan_native import SHIFT, export_native  # noqa: E402
from ksgen_core.clips.ways import Shot  # noqa: E402

TOLERANCE = 1e-4
"""Of a pixel value 0..1: a fortieth of an 8-bit step. Measured: 1e-5."""


def test_both_roads_give_the_same_frames(tmp_path):
    model, image = clip_model(), film(3, side=48)[0]
    texts = model.encode([TEXTS[0], ""])
    more = {"guidance": 2.0, "guidance_2": None, "fps": 8.0, "text": texts[TEXTS[0]], "negative": texts[""]}
    shot = Shot(image, None, frames=9, updates=4, seed=PLAN.steps[0].seed, **more)
    states = model.make(shot)
    with torch.no_grad():
        ours = {"first": model.condition(image[None], 9)[:, 4:]}
        while True:
            try:
                ours["latents"] = next(states).latents
            except StopIteration as end:
                ours["frames"] = end.value.frames
                break

    export_native(clips_folder(), tmp_path)
    texts = {"text": encode_text_native(model, TEXTS[0]), "empty": encode_text_native(model, "")}
    job = {"seed": PLAN.steps[0].seed, "updates": 4, "frames": 9, "guidance": 2.0}
    save_file({"image": image.contiguous(), **texts}, tmp_path / "job.safetensors", {"job": json.dumps(job)})
    assert run_in_host(Path(__file__).parent / "render_native.py", str(tmp_path)) == {"shift": SHIFT}
    theirs = load_file(tmp_path / "native.safetensors")

    # The host keeps latents before normalisation.
    mean, std = (
        torch.tensor(v).view(1, -1, 1, 1, 1)
        for v in (model.pipe.vae.config.latents_mean, model.pipe.vae.config.latents_std)
    )
    for name in ("latents", "first"):
        theirs[name] = (theirs[name] - mean) / std
    theirs["frames"] = theirs["frames"].view_as(ours["frames"])
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, atol=TOLERANCE, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    assert ours["frames"].std() > 0.05
