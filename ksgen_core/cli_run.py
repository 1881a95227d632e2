"""`ksgen run` and `ksgen demo`: from a picture and a goal to a storyboard folder, with progress and Ctrl-C."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import cli_models, cli_planner
from .cli_show import show, until_ctrl_c
from .errors import KSGenError
from .keysteps.policies import POLICIES

if TYPE_CHECKING:
    import torch

    from .build import Models
    from .clips.settings import RenderSettings
    from .keysteps.policies import DrawSettings
    from .pipeline import Event, Planned, Planner, Renderer, Writing
    from .types import Example, Plan, Query


def add_parsers(commands: Any) -> None:
    """The commands `run` and `demo`."""
    run = commands.add_parser("run", help="make a storyboard folder from a picture and a goal")
    run.set_defaults(command=_run)
    run.add_argument("--image", required=True, metavar="FILE", help="the initial picture")
    run.add_argument("--goal", metavar="TEXT", help="the skill, e.g. 'make a cup of tea'")
    run.add_argument("--out", required=True, metavar="DIR", help="the storyboard folder to write")
    run.add_argument(
        "--steps", metavar="N|FILE", help="make at most N key steps, or make those of a ksgen.plan/1 JSON file"
    )
    _add_common(run)

    demo = commands.add_parser("demo", help="make the storyboard of a picture that ships with the pack")
    demo.set_defaults(command=_demo)
    demo.add_argument("--out", default="out/demo", metavar="DIR", help="default: out/demo; a former demo is replaced")
    _add_common(demo)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="step k is made with seed N + k (default: 0)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in the folder at its first gap")
    group = parser.add_argument_group("key images; what is not given is the model's own")
    group.add_argument("--policy", choices=POLICIES, default=POLICIES[0], help=f"default: {POLICIES[0]}")
    group.add_argument("--updates", type=int, metavar="N", help="sampler updates per key image")
    group.add_argument("--guidance", type=float, metavar="X", help="how strongly key images follow the text, from 1")
    group.add_argument("--negative", metavar="TEXT", help="what key images should not show")
    group.add_argument("--size", type=_size, metavar="WxH", help="of the key images in pixels")
    group.add_argument("--batch", type=int, metavar="N", help="draw at most N together (default: all that can be)")
    group = parser.add_argument_group("clips; what is not given is the model's own")
    group.add_argument("--clip-updates", type=int, metavar="N", help="sampler updates per clip")
    group.add_argument("--clip-guidance", type=float, metavar="X", help="how strongly clips follow the text, from 1")
    group.add_argument("--clip-negative", metavar="TEXT", help="what clips should not show")
    group.add_argument("--clip-size", type=_size, metavar="WxH", help="of the clips in pixels")
    group.add_argument("--frames", type=int, metavar="N", help="frames per clip, of steps without seconds of their own")
    group.add_argument("--fps", type=float, metavar="X", help="frames a second")
    group.add_argument("--to-next", action="store_true", help="end each clip in the next step's key image")
    group.add_argument("--end-image", metavar="FILE", help="with --to-next: the picture that the last clip ends in")
    add_where(parser)
    cli_models.add_options(parser)
    cli_planner.add_options(parser)


def add_where(parser: argparse.ArgumentParser) -> None:
    """Which models, on which device, how precisely."""
    parser.add_argument("--models", metavar="DIR", help="a models folder (default: the embedded models)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="auto: bfloat16 on CUDA, else float32",
    )


def device_of(args: argparse.Namespace) -> str:
    """The device that is asked for; what "auto" is for the dtype is settled with it."""
    import torch

    from .residence_diffusers import device_named

    device = device_named(args.device)
    if args.dtype == "auto":
        args.dtype = "bfloat16" if device.startswith("cuda") and torch.cuda.is_bf16_supported() else "float32"
    return device


def _size(text: str) -> tuple[int, int]:
    """`WIDTHxHEIGHT` -> (height, width)."""
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdigit() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"a size is WIDTHxHEIGHT in pixels, e.g. 832x480, got {text!r}")
    return int(height), int(width)


def _run(args: argparse.Namespace, _own: Sequence[str]) -> int:
    from .pixels import read_picture
    from .storyboard import read_plan

    plan, limit = None, None
    if args.steps is not None and args.steps.isdigit():
        limit = int(args.steps)
        if limit < 1:
            raise KSGenError("--steps is at least 1, got 0.")
    elif args.steps is not None:
        plan = read_plan(args.steps)
    goal = plan.goal if plan and args.goal is None else args.goal
    if goal is None:
        raise KSGenError("No goal was given. Say which skill is wanted with --goal, or give a plan file with --steps.")
    if plan and goal != plan.goal:
        raise KSGenError(f"--goal is {goal!r}, but the goal of {args.steps} is {plan.goal!r}. Leave --goal out.")
    return _make(args, read_picture(args.image), goal, plan, limit)


def _demo(args: argparse.Namespace, _own: Sequence[str]) -> int:
    from . import build
    from .pixels import read_picture

    picture = read_picture(build.MINI / "demo.png")
    goal = json.loads((build.MINI / "demo.json").read_text(encoding="utf-8"))["goal"]
    return _make(args, picture, goal, None, None, demo=True)


def _make(
    args: argparse.Namespace,
    image: torch.Tensor,
    goal: str,
    plan: Plan | None,
    limit: int | None,
    demo: bool = False,
) -> int:
    """Make the storyboard in the folder `args.out`; a demo takes the place of a former one."""
    import torch

    from . import build, pixels, storyboard
    from .clips.settings import RenderSettings
    from .keysteps.policies import DrawSettings
    from .pipeline import run
    from .types import Query, with_seeds

    if not 0 <= args.seed < 2**64:
        raise KSGenError(f"--seed is a whole number from 0 to 2**64 - 1, got {args.seed}.")
    # Its advice on optional packages would stand between the progress bars.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    query = Query(image, goal)
    models = cli_models.chosen(args)
    draw_with = _with(
        DrawSettings(args.policy),
        updates=args.updates,
        guidance=args.guidance,
        negative=args.negative,
        size=args.size,
        batch=args.batch,
    )
    render_with = _with(
        RenderSettings(to_next=args.to_next),
        updates=args.clip_updates,
        guidance=args.clip_guidance,
        negative=args.clip_negative,
        size=args.clip_size,
        frames=args.frames,
        fps=args.fps,
    )
    settings = {
        "goal": goal,
        "picture": _digest(image),
        "seed": args.seed,
        "steps": limit,
        "models": str(models.folder) if args.models else "embedded",
        "draw": _said(draw_with),
        "render": _said(render_with),
        **cli_models.described(args),
        **cli_planner.described(args),
        **({"demo": True} if demo else {}),
    }

    end_image = pixels.read_picture(args.end_image) if args.end_image else None
    if end_image is not None:
        settings["end_picture"] = _digest(end_image)
    settings = json.loads(json.dumps(settings))  # as a file gives them back
    draws = args.policy not in ("last_frame", "initial")
    models.check(render_with, ends=end_image is not None, draws=draws)
    resumed = None
    if args.resume and storyboard.is_storyboard(args.out):
        given = with_seeds(plan, args.seed) if plan else None
        resumed = storyboard.resume(args.out, settings, given, cli_models.OF_CLIPS)
        plan, limit = resumed.plan, None

    rank = cli_models.join_processes(args)
    device = device_of(args)
    dtype, stage = getattr(torch, args.dtype), build.OneStage()
    if plan is None:
        retrieve, make_plan = cli_planner.chosen(args, models, device, args.dtype)
    else:
        retrieve, make_plan = _no_examples, _always(plan)
    render = build.renderer(models, render_with, device, dtype, stage)
    events = run(
        query,
        retrieve,
        _shared(rank, args.gpus, _checked(models, render_with, make_plan if not limit else _at_most(limit, make_plan))),
        build.drawer(models, draw_with, device, dtype, stage),
        render,
        seed=args.seed,
        size=args.size or models.picture_size(image),
        chain=args.policy == "last_frame",
        made=resumed.made() if resumed else None,
        end_image=end_image,
    )
    if rank:
        for _ in events:
            pass
        return 0
    if demo and not args.resume and (storyboard.run_settings(args.out) or {}).get("demo"):
        events = _replacing(args.out, events, render)
    try:
        with closing(events), closing(storyboard.keep(events, args.out, settings, resumed)) as kept:
            show(until_ctrl_c(kept))
    except KeyboardInterrupt:
        print(f"\nksgen: stopped. What is made lies in {args.out}; go on with --resume.", file=sys.stderr)
        return 130
    print(f"{Path(args.out) / storyboard.SHEET}\n{Path(args.out) / storyboard.FILM}")
    return 0


def _said(settings: DrawSettings | RenderSettings) -> dict[str, Any]:
    """What the user said: a setting that comes later, or that is left open, makes no other run of it."""
    return {f.name: value for f in fields(settings) if (value := getattr(settings, f.name)) != f.default}


def _digest(image: torch.Tensor) -> str:
    from .pixels import to_uint8

    return hashlib.sha256(to_uint8(image).tobytes()).hexdigest()[:16]


def _replacing(folder: str, events: Iterator[Event], render: Renderer) -> Generator[Event, None, None]:
    """The events of a new run; the one that lies in `folder` is cleared away once both models of the new are loaded."""
    from . import storyboard
    from .pipeline import KeyImage, Planned

    held, plan = [], None
    for event in events:
        held.append(event)
        if isinstance(event, Planned):
            plan = event.plan
        elif plan and isinstance(event, KeyImage) and event.step == 0:
            render(
                event.image, plan, 0, None
            )  # loads the clip model; nothing is rendered before its events are asked for
        elif plan:
            break  # the first event that asked for a model
    storyboard.clear(folder)
    yield from chain(held, events)


def _with(settings: Any, **given: Any) -> Any:
    """The settings with those options that were given on the command line."""
    return replace(settings, **{name: value for name, value in given.items() if value is not None})


def _no_examples(_query: Query) -> tuple[Example, ...]:
    """The retriever of a run whose plan is given."""
    return ()


def _always(plan: Plan) -> Planner:
    """The planner of a run whose plan is given."""
    from .pipeline import Planned

    return lambda _query, _examples: iter((Planned(plan),))


def _checked(models: Models, settings: RenderSettings, make_plan: Planner) -> Planner:
    """The planner `make_plan`; a plan whose clips cannot be made is refused."""
    from .pipeline import Planned

    def plan(query: Query, examples: Sequence[Example]) -> Iterator[Writing | Planned]:
        for event in make_plan(query, examples):
            if isinstance(event, Planned):
                models.check_lengths(settings, event.plan)
            yield event

    return plan


def _shared(rank: int, gpus: int, make_plan: Planner) -> Planner:
    """The planner `make_plan` of the first of several processes, whose plan all the others take over: a language model
    or a server may write another one each time it is asked."""
    if gpus == 1:
        return make_plan
    import torch

    from .pipeline import Planned

    def plan(query: Query, examples: Sequence[Example]) -> Iterator[Writing | Planned]:
        plans: list[Plan | None] = [None]
        for event in make_plan(query, examples) if rank == 0 else ():
            if isinstance(event, Planned):
                plans = [event.plan]
            else:
                yield event
        torch.distributed.broadcast_object_list(plans, src=0)
        if plans[0] is None:
            raise ValueError("the planner ended without a Planned event")
        yield Planned(plans[0])

    return plan


def _at_most(count: int, make_plan: Planner) -> Planner:
    """The planner `make_plan`, but of its plan the first `count` steps."""
    from .pipeline import Planned

    def plan(query: Query, examples: Sequence[Example]) -> Iterator[Writing | Planned]:
        for event in make_plan(query, examples):
            if isinstance(event, Planned):
                event = Planned(replace(event.plan, steps=event.plan.steps[:count]))
            yield event

    return plan
