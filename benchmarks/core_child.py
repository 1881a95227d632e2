"""The work of `ksgen bench core` that wants a process of its own: `python core_child.py JOB '{"argument": 1}'`.

Its last line is what it measured, as JSON. Memory is this process's own, so each figure of memory is a new process.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from ksgen_core import build, pixels  # noqa: E402
from ksgen_core.clips.render import render_clips  # noqa: E402
from ksgen_core.clips.settings import RenderSettings  # noqa: E402
from ksgen_core.errors import KSGenError  # noqa: E402
from ksgen_core.keysteps.draw import complete, conditions, draw_key_steps  # noqa: E402
from ksgen_core.keysteps.policies import DrawSettings  # noqa: E402
from ksgen_core.memory import MemoryOptions  # noqa: E402
from ksgen_core.pipeline import Event, KeyImage, StepClip, Update, run  # noqa: E402
from ksgen_core.types import KeyStep, Plan, Query  # noqa: E402

TEXTS = (
    "press the switch of the kettle",
    "place a tea bag in the mug",
    "pour hot water over the tea bag",
    "take the tea bag out of the mug",
    "put sugar into the mug",
    "stir the tea with the spoon",
    "pour milk into the mug",
    "put the spoon on the plate",
)
PLAN = Plan("brew tea in a mug", tuple(KeyStep(text, seed=10 + k) for k, text in enumerate(TEXTS)))


def keys_overhead(folder: str, policy: str, pairs: int, updates: int | None, steps: int, device: str) -> dict[str, Any]:
    """Key images by `draw_key_steps` and by the pipeline's own call with the same conditions and noise.

    Texts and pictures are encoded once by both, inside what is timed.
    """
    model: Any = build.Models(key_folder=Path(folder)).key_steps(device)
    model.pipe.set_progress_bar_config(disable=True)
    if model.resampler is not None:  # an untrained adapter says nothing: then it could not be seen to be used
        chance = torch.Generator().manual_seed(0)
        for name, weight in model.pipe.unet.named_parameters():
            if "to_v_ip" in name:
                weight.data.copy_(0.2 * torch.randn(weight.shape, generator=chance))
    settings: Any = complete(model, DrawSettings(policy, updates=updates))
    image = pixels.fit(pixels.read_picture(build.MINI / "demo.png"), *settings.size)
    wanted = list(range(1, steps + 1))
    sides = [side // model.pipe.vae_scale_factor for side in settings.size]

    def ours() -> Tensor:
        return torch.stack(pictures_of(draw_key_steps(model, image, PLAN, wanted, settings)))

    @torch.no_grad()
    def bare() -> Tensor:
        given, empty = conditions(model, image, PLAN, max(wanted), policy)
        given, empty = given[wanted], empty[wanted]
        chances = [torch.Generator().manual_seed(PLAN.steps[k].seed or 0) for k in wanted]
        noise = torch.stack([torch.randn(model.latent_channels, *sides, generator=chance) for chance in chances])
        tokens = None
        if given.image_tokens is not None and empty.image_tokens is not None:
            tokens = [torch.cat([empty.image_tokens, given.image_tokens])]
        result = model.pipe(
            prompt_embeds=given.text,
            pooled_prompt_embeds=given.pooled,
            negative_prompt_embeds=empty.text,
            negative_pooled_prompt_embeds=empty.pooled,
            ip_adapter_image_embeds=tokens,
            latents=noise.to(model.device, model.dtype),
            generator=chances,
            height=settings.size[0],
            width=settings.size[1],
            num_inference_steps=settings.updates,
            guidance_scale=settings.guidance,
            output_type="pt",
        )
        return pixels.on_8_bit_grid(result.images.float().cpu().movedim(1, -1).clamp(0, 1))

    parameters = sum(weight.numel() for weight in model.pipe.unet.parameters())
    what = {"parameters": parameters, "updates": settings.updates, "key_images": steps, "size": settings.size}
    return {**what, **in_turns(ours, bare, pairs)}


def clips_overhead(
    folder: str, pairs: int, updates: int | None, frames: int | None, same_vae: bool, device: str
) -> dict[str, Any]:
    """One clip by `render_clips` and by the pipeline's own call with the same texts, noise and picture.

    The texts are encoded before. `same_vae`: the pipeline has the adapter's layers in its VAE, else diffusers' own.
    """
    model: Any = build.Models(clip_folder=Path(folder)).clips(device)
    pipe = model.pipe if same_vae else type(model.pipe).from_pretrained(folder, torch_dtype=model.dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    settings = RenderSettings(updates=updates, frames=frames)
    chosen, step = model.defaults.over(settings), PLAN.steps[0]
    image = pixels.fit(pixels.read_picture(build.MINI / "demo.png"), 128, 128)
    texts = model.encode(TEXTS)  # what `render_clips` keeps
    embeds = {name: tensor.to(device) for name, tensor in texts[step.text].items()}
    count = (chosen.frames - 1) // pipe.vae_scale_factor_temporal + 1
    sides = [side // pipe.vae_scale_factor_spatial for side in image.shape[:2]]

    def ours() -> Tensor:
        return clips_of(render_clips(model, [image], PLAN, [0], settings))[0]

    @torch.no_grad()
    def bare() -> Tensor:
        chance = torch.Generator().manual_seed(step.seed or 0)
        noise = torch.randn((1, model.latent_channels, count, *sides), generator=chance)
        result = pipe(
            image=image.movedim(-1, 0)[None],
            **embeds,
            height=image.shape[0],
            width=image.shape[1],
            num_frames=chosen.frames,
            num_inference_steps=chosen.updates,
            guidance_scale=chosen.guidance,
            latents=noise,
            output_type="pt",
        )
        return result.frames[0].float().cpu().movedim(1, -1).clamp(0, 1)

    parameters = sum(weight.numel() for weight in model.pipe.transformer.parameters())
    what = {"parameters": parameters, "updates": chosen.updates, "frames": chosen.frames, "size": image.shape[:2]}
    return {**what, **in_turns(ours, bare, pairs)}


def batch(pairs: int, updates: int | None, steps: int, device: str) -> dict[str, Any]:
    """Key images of the embedded model drawn one by one and in one batch: `ratio` is one by one over the batch."""
    model: Any = build.embedded().key_steps(device)
    image = pixels.read_picture(build.MINI / "demo.png")
    wanted = list(range(1, steps + 1))

    def drawn(at_once: int) -> Tensor:
        settings = DrawSettings(updates=updates, batch=at_once)
        return torch.stack(pictures_of(draw_key_steps(model, image, PLAN, wanted, settings)))

    figures = in_turns(lambda: drawn(1), lambda: drawn(0), pairs)
    for name in ("seconds", "bare_seconds", "processor_seconds", "bare_processor_seconds"):
        figures[name] /= steps
    return {"key_images": steps, **figures}


def peak(folder: str, which: str, updates: int) -> dict[str, Any]:
    """The highest memory of a whole run ("whole"), with both models held at once ("both"), or of one stage alone."""
    models = build.open_folder(folder)
    image = pixels.read_picture(build.MINI / "demo.png")
    draw_with = DrawSettings("text_only", updates=updates)
    render_with = RenderSettings(updates=updates, frames=5)
    stages = {"key images": models.key_steps, "clips": models.clips}
    if which in ("whole", "both"):
        held = {name: load() for name, load in stages.items()} if which == "both" else {}
        stage: Any = _Both(held) if held else build.OneStage()
        events = run(
            Query(image, PLAN.goal),
            build.retriever(build.embedded()),
            build.consensus(),
            build.drawer(models, draw_with, stage=stage),
            build.renderer(models, render_with, stage=stage),
            size=models.picture_size(image),
        )
        done = [type(event).__name__ for event in events]
        steps = {"key_images": done.count("KeyImage"), "clips": done.count("StepClip")}
    elif which == "key images":
        events = draw_key_steps(stages[which](), image, PLAN, range(len(TEXTS)), draw_with)
        steps = {"key_images": len(pictures_of(events))}
    else:
        images = [pixels.fit(image, *models.picture_size(image))] * len(TEXTS)
        events = render_clips(stages[which](), images, PLAN, range(len(TEXTS)), render_with)
        steps = {"clips": len(clips_of(events))}
    return {"peak_mb": peak_mb("cpu"), **steps}


class _Both:
    """In place of `build.OneStage`: all models are there all the time."""

    def __init__(self, held: Mapping[str, Any]) -> None:
        self.held = held

    def get(self, name: str, load: Callable[[], Any]) -> Any:
        return self.held[name]


def option(
    stage: str, options: Mapping[str, Any], out: str, updates: int | None, frames: int | None, device: str
) -> dict[str, Any]:
    """One memory option on the embedded model: seconds an update, the highest memory; the picture goes to `out`."""
    asked = MemoryOptions(**options)
    models = replace(build.embedded(), memory=asked)
    image = pixels.fit(pixels.read_picture(build.MINI / "demo.png"), 128, 128)
    try:
        model: Any = models.key_steps(device) if stage == "key images" else models.clips(device)
        if model.settled.options != asked:  # what is for transformers alone says nothing to a UNet
            return {"refused": f"not for a {type(model.parts()[model.denoisers[0]]).__name__}, which works without it"}
        if stage == "key images":
            events: Any = draw_key_steps(model, image, PLAN, [1, 2, 3], DrawSettings(updates=updates))
        else:
            events = render_clips(model, [image], PLAN, [0], RenderSettings(updates=updates, frames=frames))
        times, made = spent_on(events, device)
    # What a back end says that is not for this device comes from deep below.
    except (KSGenError, RuntimeError, ValueError, NotImplementedError) as error:
        return {"refused": str(error).strip().partition("\n")[0]}
    torch.save(made, out)
    return {**times, "peak_mb": peak_mb(device)}


def full(**arguments: Any) -> dict[str, Any]:
    import full_work

    return full_work.measure(**arguments)


def in_turns(ours: Callable[[], Tensor], bare: Callable[[], Tensor], pairs: int) -> dict[str, Any]:
    """Medians of both, and of the ratios of the pairs; the first of a pair is each in turns. Each is run once before.

    `difference` is the largest of their results in 8-bit values.
    """
    difference = 255 * (ours() - bare()).abs().max().item()
    spent: dict[Any, list[tuple[float, float]]] = {ours: [], bare: []}
    for pair in range(pairs):
        for work in (ours, bare) if pair % 2 == 0 else (bare, ours):
            started = time.perf_counter(), time.process_time()
            work()
            spent[work].append((time.perf_counter() - started[0], time.process_time() - started[1]))
    found: dict[str, Any] = {"pairs": pairs, "difference": difference}
    for at, name in enumerate(("seconds", "processor_seconds")):
        one, other = ([times[at] for times in spent[work]] for work in (ours, bare))
        found[name], found[f"bare_{name}"] = statistics.median(one), statistics.median(other)
        ratio = {"seconds": "ratio", "processor_seconds": "processor_ratio"}[name]
        found[ratio] = statistics.median(a / b for a, b in zip(one, other, strict=True))
    return found


def spent_on(events: Iterable[Event], device: str) -> tuple[dict[str, float], Tensor]:
    """Seconds an update, the first one not counted, and what was made."""
    moments, made = [], []
    for event in events:
        if isinstance(event, Update):
            if torch.device(device).type == "cuda":
                torch.cuda.synchronize()
            moments.append((time.perf_counter(), time.process_time()))
        elif isinstance(event, KeyImage):
            made.append(event.image)
        elif isinstance(event, StepClip):
            made.append(event.clip.frames)
    # The mean: with FirstBlockCache updates are not alike.
    clock, processor = ((moments[-1][at] - moments[0][at]) / (len(moments) - 1) for at in (0, 1))
    return {"update_seconds": clock, "update_processor_seconds": processor}, torch.stack(made)


def pictures_of(events: Iterable[Event]) -> list[Tensor]:
    return [event.image for event in events if isinstance(event, KeyImage)]


def clips_of(events: Iterable[Event]) -> list[Tensor]:
    return [event.clip.frames for event in events if isinstance(event, StepClip)]


def peak_mb(device: str) -> float:
    """The highest memory so far in MB: on a GPU what was allocated there, else what was resident of this process."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e6 if sys.platform == "darwin" else most * 1024 / 1e6


JOBS = {
    "keys_overhead": keys_overhead,
    "clips_overhead": clips_overhead,
    "batch": batch,
    "peak": peak,
    "option": option,
    "full": full,
}

if __name__ == "__main__":
    print(json.dumps(JOBS[sys.argv[1]](**json.loads(sys.argv[2]))))
