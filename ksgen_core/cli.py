"""The command line: `ksgen run`, `demo`, `plan`, `library`, `cache`, `export`, `score`, `dataset`, `train`, `bench`.

Everything that needs torch is imported inside the command that uses it, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from . import __version__, cli_planner, cli_run
from .errors import KSGenError

TRAINERS = {"tabletop": "tabletop", "skill-transformer": "skill_transformer", "clips": "clips_lora"}
"""What can be trained, and the module of `training` that does it."""
DATASETS = {"tabletop": "dataset_tabletop"}
BENCHMARKS = ("tabletop", "retrieval", "planning", "planner", "loop", "core")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give the exit status: 0 done, 1 an error the user can mend, 130 stopped by Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    # What follows one of these, or the name of a trainer or a benchmark, is its own, `--help` included.
    own = words[1:] if words[:1] in (["library"], ["cache"], ["export"], ["score"]) else []
    if words[:1] in (["train"], ["bench"], ["dataset"]) and words[1:] and words[1][:1] != "-":
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

    cli_run.add_parsers(commands)

    plan = commands.add_parser("plan", help="plan a skill and print the plan as ksgen.plan/1 JSON")
    plan.set_defaults(command=_plan)
    plan.add_argument("--image", required=True, metavar="FILE", help="the initial picture")
    plan.add_argument("--goal", required=True, metavar="TEXT", help="the skill, e.g. 'make a cup of tea'")
    plan.add_argument("--out", metavar="FILE", help="write the plan there instead of printing it")
    plan.add_argument("--seed", type=int, default=0, metavar="N", help="of a language model (default: 0)")
    cli_run.add_where(plan)
    cli_planner.add_options(plan)

    library = commands.add_parser("library", help="import, list, check and search skill libraries", add_help=False)
    library.set_defaults(command=_library)
    cache = commands.add_parser("cache", help="list, clear and verify the results of step loops", add_help=False)
    cache.set_defaults(command=_cache)
    export = commands.add_parser("export", help="make a page, a moving picture or a film of a folder", add_help=False)
    export.set_defaults(command=_export)
    score = commands.add_parser("score", help="score planners against plans that people followed", add_help=False)
    score.set_defaults(command=_score)
    dataset = commands.add_parser("dataset", help="write a data set to train on", add_help=False)
    dataset.set_defaults(command=_dataset)
    dataset.add_argument("name", choices=DATASETS)
    train = commands.add_parser("train", help="train models: the embedded ones, or for your own", add_help=False)
    train.set_defaults(command=_train)
    train.add_argument("name", choices=TRAINERS)
    bench = commands.add_parser("bench", help="measure, and print a table", add_help=False)
    bench.set_defaults(command=_bench)
    bench.add_argument("name", choices=BENCHMARKS)
    return parser


def _plan(args: argparse.Namespace, _own: Sequence[str]) -> int:
    return cli_planner.plan(args, cli_run.device_of(args))


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


def _dataset(args: argparse.Namespace, own: Sequence[str]) -> int:
    return import_module(f".training.{DATASETS[args.name]}", __package__).main(list(own)) or 0


def _train(args: argparse.Namespace, own: Sequence[str]) -> int:
    return import_module(f".training.{TRAINERS[args.name]}", __package__).main(list(own)) or 0


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
