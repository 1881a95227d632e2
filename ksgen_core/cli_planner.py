"""`ksgen plan`, and which planner the command line asks for."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .planning.wording import FEWEST, MOST

if TYPE_CHECKING:
    from .build import Models
    from .pipeline import Planned, Planner, Retriever, Writing
    from .types import Example, Query

PLANNERS = ("retrieval", "mllm", "endpoint")
KEYS_FILE = Path("~/.config/ksgen/keys.json")
LIBRARY = Path("~/.config/ksgen/library")


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("planner")
    group.add_argument("--planner", choices=PLANNERS, default=PLANNERS[0], help=f"default: {PLANNERS[0]}")
    group.add_argument(
        "--llm",
        metavar="DIR|ID|NAME",
        help="mllm: a transformers folder or hub id (default: the embedded one); endpoint: the server's name for it",
    )
    group.add_argument("--url", default="http://127.0.0.1:8080/v1", help="endpoint: the server (default: %(default)s)")
    group.add_argument(
        "--library",
        action="append",
        type=Path,
        metavar="FILE|DIR",
        help=f"the skills to retrieve from (default: the models' own, those that ship, and {LIBRARY})",
    )
    group.add_argument("--embedding", metavar="DIR", help="a sentence-transformers folder; 'none' compares words alone")
    group.add_argument("--fewest", type=int, default=FEWEST, metavar="N", help="fewest steps (default: %(default)s)")
    group.add_argument("--most", type=int, default=MOST, metavar="N", help="most steps (default: %(default)s)")


def described(args: argparse.Namespace) -> dict[str, Any]:
    """What of the planner decides on the plan, where it is not the default, for the settings of a run."""
    given = {"planner": args.planner, "llm": args.llm, "fewest": args.fewest, "most": args.most}
    usual = {"planner": PLANNERS[0], "llm": None, "fewest": FEWEST, "most": MOST}
    given |= {"embedding": args.embedding, "url": args.url if args.planner == "endpoint" else None}
    given["library"] = [str(place) for place in args.library] if args.library else None
    return {name: value for name, value in given.items() if value != usual.get(name)}


def chosen(args: argparse.Namespace, models: Models, device: str, dtype: str) -> tuple[Retriever, Planner]:
    """What finds examples, and the planner. A language model is loaded when the plan is asked for.

    Raises `KSGenError` for settings that cannot be.
    """
    from . import build
    from .retrieval.library import BUILT_IN, read_library
    from .retrieval.search import SkillSearch

    own = LIBRARY.expanduser()
    places = [BUILT_IN, *([own] if any(own.glob("*.jsonl")) else [])]
    count = build.TO_AGREE if args.planner == "retrieval" else build.TO_READ
    vectors = _vectors(args.embedding)
    if args.library:
        retrieve: Retriever = SkillSearch(read_library(*args.library), vectors, count)
    else:
        retrieve = build.retriever(models, places, vectors, count)
    if args.planner == "retrieval":
        return retrieve, build.consensus(args.fewest, args.most)
    if args.planner == "endpoint":
        from .planning.endpoint import EndpointSettings, ask_endpoint

        settings = EndpointSettings(
            args.url, args.llm or "default", args.fewest, args.most, seed=args.seed % 2**31, keys_file=_keys()
        )
        return retrieve, ask_endpoint(settings)
    return retrieve, _mllm(args, models, device, dtype)


def _mllm(args: argparse.Namespace, models: Models, device: str, dtype: str) -> Planner:
    from .planning.mllm_transformers import Mllm, WritingSettings, write_plan

    settings = WritingSettings(args.fewest, args.most, seed=args.seed)

    def plan(query: Query, examples: Sequence[Example]) -> Iterator[Writing | Planned]:
        import torch

        model = Mllm.load(args.llm or models.planner(), device, getattr(torch, dtype))
        yield from write_plan(model, query, examples, settings)

    return plan


def _vectors(embedding: str | None) -> Any:
    from .retrieval.embed import Embedding, installed_embedding
    from .retrieval.index import VectorIndex, cache_folder

    folder = embedding if embedding not in (None, "none") else installed_embedding()
    if folder is None or embedding == "none":
        return None
    return VectorIndex(Embedding(folder), cache_folder())


def _keys() -> Path | None:
    path = KEYS_FILE.expanduser()
    return path if path.is_file() else None


def plan(args: argparse.Namespace, device: str) -> int:
    """`ksgen plan`: write the plan as JSON to a file or to the standard output."""
    from tqdm import tqdm

    from . import build
    from .checkpoints import write_atomically
    from .pipeline import Planned
    from .pixels import read_picture
    from .types import Query

    models = build.open_folder(args.models) if args.models else build.embedded()
    retrieve, make_plan = chosen(args, models, device, args.dtype)
    query = Query(read_picture(args.image), args.goal)
    made = None
    with ExitStack() as bars:
        bar = None
        for event in make_plan(query, retrieve(query)):
            if isinstance(event, Planned):
                made = event.plan
                continue
            if bar is None:
                bar = bars.enter_context(tqdm(desc="plan", unit="token"))
            bar.update(event.number - bar.n)
    if made is None:
        raise ValueError("the planner ended without a Planned event")
    text = json.dumps(made.to_json(), indent=2, ensure_ascii=False) + "\n"
    if args.out:
        write_atomically(args.out, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))
    else:
        print(text, end="")
    return 0
