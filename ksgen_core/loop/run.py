"""Which steps of a loop have their result on disk, and what is to be run for the others."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..cache import Result, ResultCache
from ..errors import KSGenError
from ..types import Clip, KeyStep, Plan, with_seeds
from . import keys
from .graph import LOOP, PICTURES, STEP, Absent, Body, Copy, Graph, check_frames, copy_body, frame_rule, used_outputs
from .settings import CLIPS, COUNTED_SEED, KEY_IMAGES, FrameRule, LoopSettings, chosen_steps

if TYPE_CHECKING:
    import torch


OWN = {"key_image": 0, "next_key_image": 1}
"""The pictures that differ from step to step though nothing is carried: how far ahead of the step they lie."""


@dataclass(frozen=True, eq=False)
class Loop:
    """A plan, every step with its seed, and its pictures on their way through a loop.

    `image` is the initial picture `[1, H, W, 3]`, `key_images` `[S, H, W, 3]` and `clips` are one per step, the clips
    for a second pass over them.
    """

    plan: Plan
    settings: LoopSettings
    image: torch.Tensor | None = None
    key_images: torch.Tensor | None = None
    clips: tuple[Clip, ...] | None = None

    @classmethod
    def of(
        cls,
        plan: Plan,
        settings: LoopSettings,
        image: torch.Tensor | None,
        key_images: torch.Tensor | None,
        clips: tuple[Clip, ...] | None = None,
    ) -> Loop:
        """Raises `KSGenError` if pictures are missing, too few, or of different sizes."""
        count = len(plan.steps)
        chosen_steps(settings.steps, count)
        if settings.makes == KEY_IMAGES and image is None:
            raise KSGenError(
                "A loop that makes key images begins with the initial picture, and none is connected. Connect image."
            )
        if image is not None and len(image) != 1:
            raise KSGenError(f"One initial picture is wanted, got {len(image)}. Choose one of them.")
        if key_images is not None and len(key_images) != count:
            raise KSGenError(
                f"The plan has {count} steps, but {len(key_images)} key image(s) came in. Connect those of this plan."
            )
        if clips is not None and len(clips) != count:
            raise KSGenError(
                f"The plan has {count} steps, but {len(clips)} clip(s) came in. Connect those of this plan."
            )
        if image is not None and key_images is not None and image.shape[1:3] != key_images.shape[1:3]:
            (height, width), (high, wide) = image.shape[1:3], key_images.shape[1:3]
            raise KSGenError(
                f"The initial picture is {width}x{height} pixels, the key images are {wide}x{high}. "
                "Scale the initial picture to their size, or leave it out."
            )
        if settings.seeds == COUNTED_SEED:
            plan = with_seeds(plan, settings.seed)
        else:
            steps = (replace(step, seed=settings.seed if step.seed is None else step.seed) for step in plan.steps)
            plan = replace(plan, steps=tuple(steps))
        return cls(plan, settings, image, key_images, clips)

    def constants(self, k: int, rule: FrameRule) -> dict[str, str | int | float | bool]:
        """What step k (from 0) gives that is no picture, by the name of the output; `rule` says which frame counts
        the nodes take."""
        steps, step = self.plan.steps, self.plan.steps[k]
        last = steps[k - 1] if k else None
        return {
            "text": step.text,
            "before": step.before or (last and last.after) or "",
            "after": step.after or "",
            "previous_text": last.text if last else "",
            "seed": step.seed or 0,
            "seconds": step.seconds or self.settings.seconds,
            "frames": self.settings.frames(step.seconds, rule),
            "fps": self.settings.fps,
            "number": k + 1,
            "count": len(steps),
            "is_first": k == 0,
            "is_last": k + 1 == len(steps),
        }

    def picture(self, name: str, k: int) -> torch.Tensor | None:
        """A picture `[1, H, W, 3]` that step k (from 0) gives of what came in, by the name of the output, or None.

        `clip_frames` are the frames `[F, H, W, 3]` of the step's clip. `previous` and `previous_frames` are what a step
        has in place of a result before it: the initial picture.
        """
        own = self.key_images
        if name == "clip_frames":
            return self.clips[k].frames if self.clips is not None else None
        if name in OWN:
            number = k + OWN[name]
            return own[number : number + 1] if own is not None and number < len(own) else None
        return self.image if self.image is not None or own is None else own[:1]


@dataclass(frozen=True, eq=False)
class StepRun:
    """A step of a loop: the name of its result, the copy of the body that makes it, and the result if it is there.

    `given` is a picture that is the result by itself. `carried` is the name of the result before it, or "".
    """

    number: int
    key: str
    address: str
    copy: Copy
    result: Result | None
    carried: str = ""
    given: torch.Tensor | None = None
    wanted: bool = True

    @property
    def there(self) -> bool:
        return self.result is not None or self.given is not None


def look_up(
    graph: Graph, body: Body, loop: Loop, cache: ResultCache, once: Callable[[], str]
) -> tuple[list[StepRun], set[str]]:
    """Every step of the loop, and the classes of nodes that always change, so that nothing behind them is remembered.

    A locked step takes the result it had last, whatever changed since, be it that it could not be made any more.
    """
    chosen = chosen_steps(loop.settings.steps, len(loop.plan.steps))
    signatures, used = keys.Signatures(graph, once), used_outputs(graph, body)
    pictures = used & set(PICTURES)
    rule = frame_rule(graph, body)
    check_frames(graph, body, {k: loop.settings.frames(loop.plan.steps[k].seconds, rule) for k in sorted(chosen)})
    first = loop.picture("image", 0)
    start = keys.picture_digest(first) if first is not None else ""
    runs: list[StepRun] = []
    seen: dict[str, int] = {}
    before: StepRun | None = None
    for k, step in enumerate(loop.plan.steps):
        seen[step.text] = seen.get(step.text, 0) + 1
        address = _address(loop, step, start, seen[step.text])
        if k == 0 and loop.settings.makes == KEY_IMAGES:
            before = StepRun(k, "", address, Copy({}, ("", 0)), None, given=first)
            runs.append(before)
            continue
        carried = before.key if before is not None else ""
        kept = cache.last(address) if step.lock else None
        if kept is not None and (result := cache.find(kept)) is not None:
            cache.remember(address, kept, step.lock)
            before = StepRun(k, kept, address, Copy({}, ("", 0)), result, carried, wanted=k in chosen)
            runs.append(before)
            continue
        contents = {name: name_of for name in pictures if (name_of := _content(loop, name, k, carried, start))}
        try:
            copy = _copy(graph, body, loop, k, rule, contents, carried)
        except Absent:
            if k in chosen:
                raise
            runs.append(StepRun(k, "", address, Copy({}, ("", 0)), None, wanted=False))
            continue
        # Frames get their rate from the settings, a picture has none.
        fps = loop.settings.fps if loop.settings.makes == CLIPS else None
        key = keys.digest([keys.FORMAT, loop.settings.makes, fps, signatures.of(copy)])
        result = cache.find(key)
        run = StepRun(k, key, address, copy, result, carried, wanted=k in chosen)
        if result is not None:
            cache.remember(address, key, step.lock)
        runs.append(run)
        if run.there or run.wanted:
            before = run
    return runs, signatures.always


def _address(loop: Loop, step: KeyStep, start: str, time: int) -> str:
    """What names a step whatever makes it: for finding the last result of a locked one."""
    settings = loop.settings
    return keys.digest([settings.makes, settings.name, loop.plan.goal, start, step.text, time])


def _content(loop: Loop, name: str, k: int, carried: str, start: str) -> str:
    """The digest of a picture that step k has, by the name of the output; "" if it has none. `start` is that of the
    initial picture."""
    if carried and name.startswith("previous"):
        return keys.digest([name, carried])
    if name == "clip_frames":
        return keys.clip_digest(loop.clips[k]) if loop.clips is not None else ""
    if name not in OWN:
        return start
    picture = loop.picture(name, k)
    return keys.picture_digest(picture) if picture is not None else ""


def _copy(
    graph: Graph, body: Body, loop: Loop, k: int, rule: FrameRule, contents: Mapping[str, str], carried: str
) -> Copy:
    """The body for step k, with a node that stands for the start, if need be; it says what each of its outputs is."""
    stand_in = own_id(body.end, k, "step")
    constants = loop.constants(k, rule)
    copy = copy_body(graph, body, f"{body.end}.{k + 1}.", stand_in, constants, contents.keys(), k)
    if copy.through:
        known = {name: keys.content(contents[name]) for name in copy.through & contents.keys()}
        known |= {name: keys.constant(constants.get(name)) for name in copy.through - contents.keys()}
        inputs = {LOOP: [body.start, 0], "number": k, "carried": carried, "known": json.dumps(known, sort_keys=True)}
        copy.nodes[stand_in] = {"class_type": STEP, "inputs": inputs}
    return copy


def own_id(end: str, k: int, name: str) -> str:
    """The id of a node that the loop itself adds for step k (from 0): none of the user's nodes gets such a one."""
    return f"{end}.{k + 1}:{name}"
