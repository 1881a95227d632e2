"""The command line: `ksgen run`, `demo`, `plan`, `library`, `cache`, `export`, `score`, `train`, `bench`.

Everything that needs torch is imported inside the command that uses it, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import signal
import sys
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__, cli_planner
from .errors import KSGenError
from .keysteps.policies import POLICIES

if TYPE_CHECKING:
    from types import FrameType

    import torch

    from .pipeline import Event, Planned, Planner, Renderer, Writing
    from .types import Example, Plan, Query

TRAINERS = ("tabletop",)
BENCHMARKS = ("tabletop", "retrieval", "planning", "planner", "loop")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give the exit status: 0 done, 1 an error the user can mend, 130 stopped by Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    # What follows one of these, or the name of a trainer or a benchmark, is its own, `--help` included.
    own = words[1:] if words[:1] in (["library"], ["cache"], ["export"], ["score"]) else []
    if words[:1] in (["train"], ["bench"]) and words[1:] and words[1][:1] != "-":
        own = words[2:]
    args = parser.parse_args(words[: len(words) - len(own)])
    try:
        return args.command(args, own) or 0
    except KSGenError as error:
        print(f"ksgen: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ksgen: stopped.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ksgen", description="One picture and a skill become key-step clips.")
    parser.add_argument("--version", action="version", version=f"ksgen {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

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

    plan = commands.add_parser("plan", help="plan a skill and print the plan as ksgen.plan/1 JSON")
    plan.set_defaults(command=_plan)
    plan.add_argument("--image", required=True, metavar="FILE", help="the initial picture")
    plan.add_argument("--goal", required=True, metavar="TEXT", help="the skill, e.g. 'make a cup of tea'")
    plan.add_argument("--out", metavar="FILE", help="write the plan there instead of printing it")
    plan.add_argument("--seed", type=int, default=0, metavar="N", help="of a language model (default: 0)")
    _add_where(plan)
    cli_planner.add_options(plan)

    library = commands.add_parser("library", help="import, list, check and search skill libraries", add_help=False)
    library.set_defaults(command=_library)
    cache = commands.add_parser("cache", help="list, clear and verify the results of step loops", add_help=False)
    cache.set_defaults(command=_cache)
    export = commands.add_parser("export", help="make a page, a moving picture or a film of a folder", add_help=False)
    export.set_defaults(command=_export)
    score = commands.add_parser("score", help="score planners against plans that people followed", add_help=False)
    score.set_defaults(command=_score)
    train = commands.add_parser("train", help="train the embedded models from nothing", add_help=False)
    train.set_defaults(command=_train)
    train.add_argument("name", choices=TRAINERS)
    bench = commands.add_parser("bench", help="measure, and print a table", add_help=False)
    bench.set_defaults(command=_bench)
    bench.add_argument("name", choices=BENCHMARKS)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="step k is made with seed N + k (default: 0)")
    parser.add_argument("--policy", choices=POLICIES, default=POLICIES[0], help=f"default: {POLICIES[0]}")
    parser.add_argument("--resume", action="store_true", help="go on with the run in the folder at its first gap")
    parser.add_argument("--updates", type=int, metavar="N", help="sampler updates per key image")
    parser.add_argument("--guidance", type=float, metavar="X", help="how strongly key images follow the text, from 1")
    parser.add_argument("--clip-updates", type=int, metavar="N", help="sampler updates per clip")
    parser.add_argument("--frames", type=int, metavar="N", help="frames per clip: a multiple of 4, plus 1")
    _add_where(parser)
    cli_planner.add_options(parser)


def _add_where(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", metavar="DIR", help="a models folder (default: the embedded models)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")


def _plan(args: argparse.Namespace, _own: Sequence[str]) -> int:
    return cli_planner.plan(args, _device(args.device))


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
    models = build.open_folder(args.models) if args.models else build.embedded()
    draw_with = _with(DrawSettings(args.policy), updates=args.updates, guidance=args.guidance)
    render_with = _with(RenderSettings(), updates=args.clip_updates, frames=args.frames)
    settings = {
        "goal": goal,
        "picture": hashlib.sha256(pixels.to_uint8(image).tobytes()).hexdigest()[:16],
        "seed": args.seed,
        "steps": limit,
        "models": str(models.folder) if args.models else "embedded",
        "draw": asdict(draw_with),
        "render": asdict(render_with),
        **cli_planner.described(args),
        **({"demo": True} if demo else {}),
    }

    resumed = None
    if args.resume and storyboard.is_storyboard(args.out):
        resumed = storyboard.resume(args.out, settings, with_seeds(plan, args.seed) if plan else None)
        plan, limit = resumed.plan, None

    device, dtype = _device(args.device), getattr(torch, args.dtype)
    if plan is None:
        retrieve, make_plan = cli_planner.chosen(args, models, device, args.dtype)
    else:
        retrieve, make_plan = _no_examples, _always(plan)
    render = build.renderer(models, render_with, device, dtype)
    events = run(
        query,
        retrieve,
        make_plan if limit is None else _at_most(limit, make_plan),
        build.drawer(models, draw_with, device, dtype),
        render,
        seed=args.seed,
        size=models.picture_size(),
        chain=args.policy == "last_frame",
        made=resumed.made() if resumed else None,
    )
    if demo and not args.resume and (storyboard.run_settings(args.out) or {}).get("demo"):
        events = _replacing(args.out, events, render)
    try:
        with closing(events), closing(storyboard.keep(events, args.out, settings, resumed)) as kept:
            show(_until_ctrl_c(kept))
    except KeyboardInterrupt:
        print(f"\nksgen: stopped. What is made lies in {args.out}; go on with --resume.", file=sys.stderr)
        return 130
    print(f"{Path(args.out) / storyboard.SHEET}\n{Path(args.out) / storyboard.FILM}")
    return 0


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
            render(event.image, plan, 0)  # loads the clip model; nothing is rendered before its events are asked for
        elif plan:
            break  # the first event that asked for a model
    storyboard.clear(folder)
    yield from chain(held, events)


def _until_ctrl_c(events: Iterable[Event]) -> Iterator[Event]:
    """The events; after Ctrl-C none follows and `KeyboardInterrupt` is raised. Pressed again, it stops at once.

    An interrupt at any place would be dropped by Python, with a traceback, wherever it fell into a finaliser.
    """
    with _ctrl_c_noted() as pressed:
        for event in events:
            yield event
            if pressed.is_set():
                raise KeyboardInterrupt


@contextmanager
def _ctrl_c_noted() -> Iterator[threading.Event]:
    """The event that the first Ctrl-C sets. Elsewhere than in the main thread Python hears no signals."""
    pressed = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        if pressed.is_set():
            signal.default_int_handler(number, frame)
        pressed.set()
        print("\nksgen: stopping after this update; Ctrl-C again stops at once.", file=sys.stderr)

    if threading.current_thread() is not threading.main_thread():
        yield pressed
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def show(events: Iterable[Event]) -> None:
    """Go through the events of a run with a progress bar for each stage and a line for each key step of the plan."""
    from tqdm import tqdm

    from .pipeline import Planned, Update, Writing

    with ExitStack() as bars:
        bar, work = None, ("", 0)
        for event in events:
            if isinstance(event, Planned):
                bars.close()
                bar = None
                print(event.plan.goal)
                for number, step in enumerate(event.plan.steps, 1):
                    print(f"  {number}. {step.text}", flush=True)
            elif isinstance(event, Writing):
                if bar is None:
                    bar = bars.enter_context(tqdm(desc="plan", unit="token"))
                bar.update(event.number - bar.n)
            elif isinstance(event, Update):
                # A stage counts its updates from 1, through all steps that it was asked for together.
                if bar is None or event.stage != work[0] or event.number <= work[1]:
                    bars.close()
                    bar = bars.enter_context(tqdm(total=event.total, unit="update"))
                work = (event.stage, event.number)
                numbers = ", ".join(str(step + 1) for step in event.steps)
                bar.set_description(f"{event.stage} step {numbers}", refresh=False)
                bar.update(event.number - bar.n)


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


def _at_most(count: int, make_plan: Planner) -> Planner:
    """The planner `make_plan`, but of its plan the first `count` steps."""
    from .pipeline import Planned

    def plan(query: Query, examples: Sequence[Example]) -> Iterator[Writing | Planned]:
        for event in make_plan(query, examples):
            if isinstance(event, Planned):
                event = Planned(replace(event.plan, steps=event.plan.steps[:count]))
            yield event

    return plan


def _device(name: str) -> str:
    import torch

    if name != "auto":
        try:
            torch.empty(0, device=name).cpu()
        except (RuntimeError, AssertionError, ImportError) as error:  # what torch raises depends on its build
            reason = str(error).partition("\n")[0]
            raise KSGenError(f"--device {name!r} cannot be used ({reason}). Choose another one, or auto.") from error
        return name
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _library(_args: argparse.Namespace, own: Sequence[str]) -> int:
    from .cli_library import main as library

    return library(list(own))


def _cache(_args: argparse.Namespace, own: Sequence[str]) -> int:
    from .cli_cache import main as cache

    return cache(list(own))


def _export(_args: argparse.Namespace, own: Sequence[str]) -> int:
    from .cli_export import main as export

    return export(list(own))


def _score(_args: argparse.Namespace, own: Sequence[str]) -> int:
    from .cli_score import main as score

    return score(list(own))


def _train(_args: argparse.Namespace, own: Sequence[str]) -> int:
    from .training.tabletop import main as train_tabletop

    return train_tabletop(list(own)) or 0


def _bench(args: argparse.Namespace, own: Sequence[str]) -> int:
    path = Path(__file__).resolve().parent.parent / "benchmarks" / f"{args.name}.py"
    if not path.is_file():
        raise KSGenError(f"{path} is not there. Benchmarks need a clone of the repository; run it from there.")
    spec = importlib.util.spec_from_file_location(f"ksgen_bench_{args.name}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and worker processes look the module up by its name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.main(list(own)) or 0


if __name__ == "__main__":
    sys.exit(main())
