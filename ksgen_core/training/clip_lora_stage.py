"""The LoRA of an image-to-video transformer, trained on clips that are encoded already.

Legend: B clips, F frames, H, W their size in pixels, Z latent channels, f, h, w latents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .. import pixels
from ..checkpoints import write_atomically
from ..clips.ways import Shot
from ..errors import KSGenError
from .clip_flow import Flow
from .encoded_clips import ClipForm, EncodedClips, film_of
from .loop import Progress, Recipe, fit

if TYPE_CHECKING:
    from accelerate import Accelerator

LEVELS = 4
"""Noise levels at which a clip is validated."""
SHOWN = 8
"""Frames of a clip in a row of pictures."""


def train_lora(
    flow: Flow,
    lora: nn.ParameterList,
    clips: EncodedClips,
    run: Path,
    recipe: Recipe,
    *,
    shift: float,
    drop_text: float = 0.0,
    at_once: int = 1,
    seen: str = "",
    accelerator: Accelerator | None = None,
    report: int = 50,
    keep: int = 250,
) -> Iterator[Progress]:
    """Train `lora`, which is on the flow's transformer, in place; see `fit` for state, log and events.

    Of a batch `at_once` clips are on the device together, one such part after the other. Several processes share a
    batch: each takes every so-manieth. Raises `KSGenError` if there are more processes than clips in a batch.
    """
    number, processes = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    if recipe.batch < processes:
        raise KSGenError(
            f"A batch of {recipe.batch} clips does not reach {processes} processes. Give a larger --batch."
        )
    shape = clips.clips([0])["clean"].shape[1:]

    def losses_of(_: int, generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(len(clips.steps), (recipe.batch,), generator=generator).tolist()
        sigma = flow.draw_sigmas(torch.rand(recipe.batch, generator=generator), shift)
        dropped = (torch.rand(recipe.batch, generator=generator) < drop_text).tolist()
        noise = torch.randn(recipe.batch, *shape, generator=generator)
        mine = list(range(number, recipe.batch, processes))
        *parts, last = (mine[start : start + at_once] for start in range(0, len(mine), at_once))

        def loss_of(part: list[int]) -> Tensor:
            words = ["" if dropped[b] else text_of(clips, rows[b]) for b in part]
            given = clips.clips([rows[b] for b in part])
            losses = flow.losses(given, clips.text(words), sigma[part], noise[part])
            # The mean over the processes is that over the batch.
            return losses.sum() * (processes / recipe.batch)

        before = torch.zeros((), device=flow.model.device)
        for part in parts:
            loss = loss_of(part)
            loss.backward()  # gradients add up until `fit` has them all
            before += loss.detach()
        return {"velocity": loss_of(last) + before}

    yield from fit("lora", lora, losses_of, recipe, run, report=report, keep=keep, seen=seen, accelerator=accelerator)


def text_of(clips: EncodedClips, k: int) -> str:
    """The text of step k."""
    record, step = clips.steps[k]
    return record.steps[step].text


def spread(count: int, most: int) -> list[int]:
    """At most `most` of `count` numbers from 0 on, evenly spread."""
    return [k * count // min(count, most) for k in range(min(count, most))]


@torch.no_grad()
def validate(flow: Flow, clips: EncodedClips, shift: float, most: int) -> float:
    """The mean loss over at most `most` of these clips, each at the same levels and with the same noise every time."""
    total = 0.0
    chosen = spread(len(clips.steps), most)
    sigmas = flow.draw_sigmas((torch.arange(LEVELS) + 0.5) / LEVELS, shift)
    for k in chosen:
        given, text = clips.clips([k]), clips.text([text_of(clips, k)])
        generator = torch.Generator().manual_seed(k)
        for sigma in sigmas:
            noise = torch.randn(given["clean"].shape, generator=generator)
            total += float(flow.losses(given, text, sigma[None], noise)) / LEVELS
    return total / len(chosen)


@torch.no_grad()
def write_rows(flow: Flow, clips: EncodedClips, chosen: Sequence[int], form: ClipForm, path: Path) -> None:
    """A picture of some clips: of each a row of frames as they are, and below it as the model makes them now.

    All parts come to the device for that and leave it again. Raises `KSGenError` if the file cannot be written.
    """
    rows = []
    try:
        on_device(flow, everything=True)
        for k in chosen:
            true = film_of(*clips.steps[k], form)
            if true is None:
                raise ValueError("a clip that was encoded is long enough")
            made = make_clip(flow, clips, text_of(clips, k), true[0], form)
            some = spread(form.frames, SHOWN)
            rows += [torch.cat(list(film[some]), dim=1) for film in (true, made)]
    finally:
        on_device(flow, everything=False)
    write_atomically(path, pixels.to_pil(torch.cat(rows)).save)


def make_clip(flow: Flow, clips: EncodedClips, text: str, image: Tensor, form: ClipForm) -> Tensor:
    """The clip [F, H, W, 3] that the model makes now of a first frame [H, W, 3] and an encoded text, with seed 0."""
    model, own = flow.model, flow.model.defaults
    guided = max(own.guidance, own.guidance_2 or 1) > 1
    shot = Shot(
        image=image,
        last=None,
        frames=form.frames,
        updates=own.updates,
        guidance=own.guidance,
        guidance_2=own.guidance_2,
        fps=form.fps,
        seed=0,
        text=clips.text([text]),
        negative=clips.text([own.negative]) if guided else {},
    )
    states = model.make(shot)
    while True:
        try:
            next(states)
        except StopIteration as end:
            return end.value.frames


def on_device(flow: Flow, *, everything: bool) -> None:
    """Bring the transformer that is trained, or all parts, to the device; the others leave it."""
    for name, part in flow.model.parts().items():
        part.to(flow.model.device if everything or name == flow.name else "cpu")
    if not everything and flow.model.device.type == "cuda":
        torch.cuda.empty_cache()
