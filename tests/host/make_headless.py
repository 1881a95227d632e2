"""Run by the host's Python, without the host: key images and clips of diffusers folders through `ksgen_core.build`.

Argument: a folder with job.json, which says for each name what is made of what. Writes NAME.safetensors there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

folder = Path(sys.argv[1])
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from ksgen_core import build  # noqa: E402
from ksgen_core.clips.render import render_clips  # noqa: E402
from ksgen_core.clips.settings import RenderSettings  # noqa: E402
from ksgen_core.keysteps.draw import draw_key_steps  # noqa: E402
from ksgen_core.keysteps.policies import DrawSettings  # noqa: E402
from ksgen_core.pipeline import KeyImage, StepClip  # noqa: E402
from ksgen_core.types import Plan, with_seeds  # noqa: E402


def picture(path: str) -> torch.Tensor:
    return torch.from_numpy(np.asarray(Image.open(path).convert("RGB"), np.float32) / 255)


def make(stage: str, models: dict, plan: dict, seed: int, pictures: list[str], settings: dict, end: str | None = None):
    model = getattr(build.open_models(**models), stage)()
    steps = with_seeds(Plan.from_json(plan), seed)
    every = range(len(steps.steps))
    if settings.get("size"):
        settings["size"] = tuple(settings["size"])
    if stage == "key_steps":
        events = draw_key_steps(model, picture(pictures[0]), steps, every, DrawSettings(**settings))
        made = {event.step: event.image for event in events if isinstance(event, KeyImage)}
        return torch.stack([made[k] for k in every])
    ends = {every[-1]: picture(end)} if end else None
    events = render_clips(model, [*map(picture, pictures)], steps, every, RenderSettings(**settings), ends=ends)
    return torch.cat([event.clip.frames for event in events if isinstance(event, StepClip)])


jobs = json.loads((folder / "job.json").read_text())
for name, job in jobs.items():
    with torch.inference_mode():  # as the host runs nodes
        save_file({"images": make(**job).contiguous()}, folder / f"{name}.safetensors")
print(json.dumps(list(jobs)))
