"""`ksgen bench planner`: plans for Tabletop pictures by the mini MLLM, with and without its two inputs.

A plan is exact if its texts name, in any wording of this world, the steps that are left: all required ones that the
picture does not show as done, none that it does, in an order that the skill allows; optional steps are free. In half
of the instances steps are done already. The library holds whole plans, of the unseen skills too: those were never
trained on, so they can only be had from there.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from report import REPORTS, markdown, write_report  # noqa: E402

from ksgen_core import build  # noqa: E402
from ksgen_core.cli_library import whole_number  # noqa: E402
from ksgen_core.metrics.tabletop_plans import is_exact  # noqa: E402
from ksgen_core.pipeline import Planned  # noqa: E402
from ksgen_core.pixels import from_uint8  # noqa: E402
from ksgen_core.planning.mllm_transformers import Mllm, WritingSettings, write_plan  # noqa: E402
from ksgen_core.planning.reply import ReplyError  # noqa: E402
from ksgen_core.retrieval.library import Skill  # noqa: E402
from ksgen_core.retrieval.search import SkillSearch  # noqa: E402
from ksgen_core.tabletop.instances import skills_of  # noqa: E402
from ksgen_core.tabletop.started import Started, make_started, plans_left  # noqa: E402
from ksgen_core.training.pack import library_plans  # noqa: E402
from ksgen_core.types import Example, Query  # noqa: E402

FIRST_SEED = 20_000
SPLITS = ("seen", "unseen")
SETTINGS = WritingSettings(fewest=1)
"""One step may be all that is left."""
WAYS = {"both": (True, True), "no picture": (False, True), "no examples": (True, False), "neither": (False, False)}
"""Whether the model gets the picture (else a grey one) and the examples."""
COLUMNS = ("exact", "begun", "fresh", "seconds")


@dataclass(frozen=True)
class Case:
    """One instance, its picture, its examples and the plans that are exact."""

    query: Query
    begun: bool
    examples: tuple[Example, ...]
    right: list[list[tuple[str, ...]]]

    @classmethod
    def of(cls, started: Started, search: SkillSearch) -> Case:
        run = started.run
        plans = plans_left(run.skill, started.done, run.states[0])
        query = Query(from_uint8(started.picture()), run.goal)
        return cls(query, bool(started.done), search(query), [[step.texts for step in plan] for plan in plans])


def cases(split: str, instances: int, search: SkillSearch) -> list[Case]:
    """Every other instance has begun."""
    seeds = range(FIRST_SEED, FIRST_SEED + instances)
    return [Case.of(make_started(split, seed, begun=seed % 2 == 0), search) for seed in seeds]


def written(mllm: Mllm, case: Case, way: str) -> list[str]:
    """The step texts that the model writes, none if its reply is no plan."""
    picture, retrieved = WAYS[way]
    image = case.query.image if picture else torch.full_like(case.query.image, 0.5)
    try:
        events = write_plan(mllm, Query(image, case.query.goal), case.examples if retrieved else (), SETTINGS)
        plan = next(event.plan for event in events if isinstance(event, Planned))
    except ReplyError:
        return []
    return [step.text for step in plan.steps]


def agreed(case: Case) -> list[str]:
    """The steps that the examples agree on: the planner without a language model."""
    events = build.consensus(1)(case.query, case.examples)
    return [step.text for event in events if isinstance(event, Planned) for step in event.plan.steps]


def rates(hits: Sequence[bool], cases: Sequence[Case], seconds: float) -> dict[str, float]:
    """The share of exact plans: of all, of those that have begun, of those that have not."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for hit, case in zip(hits, cases, strict=True):
        for group in ("exact", "begun" if case.begun else "fresh"):
            groups[group].append(hit)
    return {**{name: sum(found) / len(found) for name, found in groups.items()}, "seconds": seconds}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ksgen bench planner", description=__doc__)
    parser.add_argument("--instances", type=whole_number, default=200, help="instances a split")
    parser.add_argument("--planner", type=Path, help="the folder of a model other than the embedded one")
    parser.add_argument("--reports", type=Path, default=REPORTS, help="where the report goes")
    parser.add_argument(
        "--workers", type=whole_number, default=os.cpu_count() or 1, help="plans at once, a thread each"
    )
    arguments = parser.parse_args(argv)
    mllm = Mllm.load(arguments.planner or build.embedded().planner())
    library = [Skill.of_plan(plan) for split in SPLITS for plan in library_plans(skills_of(split))]
    search = SkillSearch(library)
    figures: dict[str, Any] = {}
    rows = []
    with ThreadPoolExecutor(arguments.workers, initializer=torch.set_num_threads, initargs=(1,)) as threads:
        for split in SPLITS:
            found = cases(split, arguments.instances, search)
            got: dict[str, dict[str, float]] = {}
            for way in WAYS:
                clock = time.monotonic()
                plans = list(threads.map(lambda case, way=way: written(mllm, case, way), found))
                seconds = (time.monotonic() - clock) * min(arguments.workers, len(found)) / len(found)
                got[f"mini, {way}"] = _judged(plans, found, seconds)
                print(split, way, got[f"mini, {way}"], flush=True)
            nearest = [[step.text for step in case.examples[0].plan.steps] for case in found]
            got["nearest plan"] = _judged(nearest, found, 0.0)
            got["consensus"] = _judged([agreed(case) for case in found], found, 0.0)
            figures[split] = got
            rows += [[split, name, *(values[column] for column in COLUMNS)] for name, values in got.items()]
    table = markdown(["split", "planner", "exact", "of those begun", "of those not", "seconds a plan"], rows)
    table += (
        "\n\nBoth: the picture and the retrieved examples. No picture: a grey one. The nearest plan and the consensus "
        f"do not look at the picture. Retrieval goes by {search.by} and finds up to {search.count} plans; the library "
        f"has {len(library)}. " + " ".join((__doc__ or "").split("\n\n", 1)[1].split())
    )
    seeds = f"started instances {FIRST_SEED}..{FIRST_SEED + arguments.instances - 1} of each split"
    write_report("planner", figures, table, seeds, arguments.reports)
    print(table, flush=True)
    return 0


def _judged(plans: Sequence[Sequence[str]], cases: Sequence[Case], seconds: float) -> dict[str, float]:
    hits = [is_exact(texts, case.right) for texts, case in zip(plans, cases, strict=True)]
    return rates(hits, cases, seconds)


if __name__ == "__main__":
    sys.exit(main())
