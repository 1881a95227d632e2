"""`ksgen score plans`: how near planners come to plans that people followed, planned from a library of other plans."""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from .checkpoints import write_atomically
from .errors import KSGenError
from .metrics.plans import METRICS, score_plans
from .planning.alignment import key_of
from .planning.consensus import Consensus
from .planning.wording import MOST
from .retrieval.importers import import_coin, import_crosstask
from .retrieval.lexical import words_of
from .retrieval.library import Skill, read_library
from .retrieval.search import NoSkill, SkillSearch
from .types import MAX_STEPS, Example, Plan

Texts = tuple[str, ...]
EXAMPLES = 64
"""Plans that a planner is given. A task of COIN has 26 orders on the average."""


class Planners:
    """Planners that know a library and a query's goal, but neither its steps nor, if the library has it, its own plan.

    They give step texts, in small letters, or none where retrieval, which goes by words, finds nothing that fits. The
    consensus has at most `most` steps.
    """

    def __init__(self, library: Sequence[Skill], most: int = MOST) -> None:
        self._plan = Consensus(words_of, most=most)
        # Sources become numbers: libraries may give all their skills one source.
        numbered = [replace(skill, source=str(n)) for n, skill in enumerate(library)]
        self._search = SkillSearch(numbered, count=EXAMPLES)
        self._by_task: dict[Hashable, dict[int, Texts]] = defaultdict(dict)
        self._by_source: dict[tuple[str, str], set[int]] = defaultdict(set)
        for n, skill in enumerate(library):
            self._by_task[self._task(skill.goal)][n] = texts_of(skill.plan())
            self._by_source[skill.source, skill.goal].add(n)
        self._found: dict[Hashable, Sequence[Example]] = {}
        self._planned: dict[Hashable, Texts] = {}

    def nearest(self, query: Skill) -> Texts:
        """The plan of the best example."""
        examples = self._examples(query.goal, self._itself(query))
        return texts_of(examples[0].plan) if examples else ()

    def commonest_order(self, query: Skill) -> Texts:
        """The order that most plans of the query's task have, of any length; the first in the library wins a tie.

        Where the library lacks the task, that of the best example's task.
        """
        itself = self._itself(query)
        orders = self._orders(query.goal, itself)
        if not orders and (examples := self._examples(query.goal, itself)):
            orders = self._orders(examples[0].plan.goal, itself)
        return orders.most_common(1)[0][0] if orders else ()

    def consensus(self, query: Skill) -> Texts:
        """What the product plans: the consensus of the examples that retrieval finds."""
        return self._consensus(query.goal, self._itself(query))

    def consensus_task_left_out(self, query: Skill) -> Texts:
        """The consensus of what is left when every plan of the query's task is taken out of the library."""
        own = self._by_task.get(self._task(query.goal), {})
        return self._consensus(query.goal, self._itself(query).union(own))

    def _consensus(self, goal: str, without: frozenset[int]) -> Texts:
        key = goal, without
        if key not in self._planned:
            examples = self._examples(goal, without)
            self._planned[key] = texts_of(self._plan.plan(goal, examples)) if examples else ()
        return self._planned[key]

    def _examples(self, goal: str, without: frozenset[int]) -> Sequence[Example]:
        key = goal, without
        if key not in self._found:
            self._found[key] = ()
            if len(without) < len(self._search.skills):
                with suppress(NoSkill):  # `score_planners` counts these
                    self._found[key] = self._search.find(goal, without=set(map(str, without)))
        return self._found[key]

    def _orders(self, goal: str, without: frozenset[int]) -> Counter[Texts]:
        return Counter(order for n, order in self._by_task.get(self._task(goal), {}).items() if n not in without)

    def _itself(self, query: Skill) -> frozenset[int]:
        """The numbers of the library's skills of the query's source and goal."""
        return frozenset(self._by_source.get((query.source, query.goal), ()) if query.source else ())

    def _task(self, goal: str) -> Hashable:
        return self._plan.skill_of(goal)


PLANNERS: dict[str, Callable[[Planners, Skill], Texts]] = {
    "nearest": Planners.nearest,
    "commonest_order": Planners.commonest_order,
    "consensus": Planners.consensus,
    "consensus_task_left_out": Planners.consensus_task_left_out,
}
"""What is compared, by the name that reports use."""


def texts_of(plan: Plan) -> Texts:
    """Steps are the same if their texts are, capitals and white space aside."""
    return tuple(map(key_of, plan.steps))


def score_planners(planners: Planners, queries: Sequence[Skill]) -> tuple[dict[str, dict[str, float]], dict[str, int]]:
    """Every metric's mean by planner, and how many queries it made no plan for: those score 0."""
    figures, without = {}, {}
    for name, make in PLANNERS.items():
        pairs = [(make(planners, query), texts_of(query.plan())) for query in queries]
        figures[name], without[name] = score_plans(pairs), sum(not planned for planned, _ in pairs)
    return figures, without


def _plan_file(path: Path) -> tuple[Skill, ...]:
    from .storyboard import read_plan

    return (Skill.of_plan(read_plan(path)),)


FORMATS: dict[str, Callable[..., Sequence[Skill]]] = {
    "coin": lambda path: tuple(import_coin(path)),
    "crosstask": lambda tasks, annotations: tuple(import_crosstask(tasks, annotations)),
    "skill": read_library,
    "plan": _plan_file,
}
"""Every format of plans, by its name, and what reads it from its files."""


def read_skills(places: Sequence[Path], form: str | None = None) -> Sequence[Skill]:
    """The plans in these files. Without a format, one .json file is COIN's, all else a skill library.

    Raises `KSGenError` if they cannot be read, or hold no plan.
    """
    form = form or ("coin" if len(places) == 1 and places[0].suffix == ".json" else "skill")
    wanted = {"coin": "one file", "plan": "one file", "crosstask": "two: the tasks file and the annotations"}.get(form)
    if wanted and len(places) != (2 if form == "crosstask" else 1):
        raise KSGenError(f"Plans of the format {form} are read from {wanted}; got {len(places)}.")
    skills = FORMATS[form](*places)
    if not skills:
        raise KSGenError(f"{', '.join(map(str, places))} holds no plan.")
    return skills


def table(figures: Mapping[str, Mapping[str, float]]) -> str:
    """Planners down, metrics across."""
    lines = [f"{'planner':24}" + "".join(f"{name.replace('_', ' '):>15}" for name in METRICS)]
    lines += [f"{name:24}" + "".join(f"{row[m]:15.3f}" for m in METRICS) for name, row in figures.items()]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ksgen score", description="Score what was made against what is true.")
    commands = parser.add_subparsers(metavar="WHAT", required=True)
    plans = commands.add_parser("plans", help="score planners on plans that people followed", description=__doc__)
    plans.set_defaults(command=_plans)
    given = {"nargs": "+", "type": Path, "required": True, "metavar": "FILE"}
    plans.add_argument("--library", **given, help="skill libraries: .jsonl or folders; or COIN's .json")
    plans.add_argument("--queries", **given, help="the plans to come near to")
    plans.add_argument("--format", choices=FORMATS, help="of the queries (default: coin for .json, else skill)")
    plans.add_argument("--most", type=_steps, default=MOST, metavar="N", help=f"steps of a consensus (default: {MOST})")
    plans.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    arguments = parser.parse_args(argv)
    return arguments.command(arguments)


def _plans(arguments: argparse.Namespace) -> int:
    library, queries = read_skills(arguments.library), read_skills(arguments.queries, arguments.format)
    figures, without = score_planners(Planners(tuple(library), arguments.most), queries)
    print(f"{len(queries)} queries, {len(library)} plans in the library, found by words\n\n{table(figures)}")
    if missing := {name: count for name, count in without.items() if count}:
        print("\nqueries without a plan, which score 0: " + ", ".join(f"{k} {v}" for k, v in missing.items()))
    if arguments.json:
        text = json.dumps({arguments.queries[0].stem: figures}, indent=1) + "\n"
        write_atomically(arguments.json, lambda place: Path(place).write_text(text, encoding="utf-8"))
    return 0


def _steps(text: str) -> int:
    """A number of steps that a plan may have, for argparse."""
    if not text.isdigit() or not 2 <= int(text) <= MAX_STEPS:
        raise argparse.ArgumentTypeError(f"a whole number from 2 to {MAX_STEPS} is wanted, got {text!r}")
    return int(text)
