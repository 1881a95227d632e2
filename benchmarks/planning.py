"""`ksgen bench planning`: planners against the plans that people followed in the videos of COIN and CrossTask.

Split: a video is a query, and never in the library, if the SHA-256 of its id is a multiple of 5. A plan is the
video's steps as the importer gives them: in the order of their start; COIN's untouched, of CrossTask's a step that
follows itself once. Constants of the consensus were chosen on a split of the library alone, by the SHA-256 of
"tune:" and the id; the queries had no part in it.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from report import REPORTS, markdown, write_report  # noqa: E402

from ksgen_core.cli_score import PLANNERS, Planners, read_skills, score_planners, texts_of  # noqa: E402
from ksgen_core.errors import KSGenError  # noqa: E402
from ksgen_core.metrics.plans import METRICS  # noqa: E402
from ksgen_core.planning.wording import MOST  # noqa: E402
from ksgen_core.retrieval.library import Skill  # noqa: E402

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
COIN = DATA / "coin" / "coin_train_70.json"
CROSSTASK = (DATA / "crosstask" / "tasks_primary.txt", DATA / "crosstask" / "annotations.tar.gz")
QUERY_EVERY = 5
RULE = (
    "A video is a query, and not in the library, if the SHA-256 of its id, as a whole number, is a multiple of "
    f"{QUERY_EVERY}; all others are the library. The goal is the task's name in words. A plan is a video's steps in "
    "the order of their start; of CrossTask's a step that follows itself counts once."
)


def is_query(skill: Skill, salt: str = "") -> bool:
    """Whether a video is a query. Its skill's source is "DATA SET:VIDEO"."""
    video = skill.source.partition(":")[2]
    return int(hashlib.sha256((salt + video).encode()).hexdigest(), 16) % QUERY_EVERY == 0


def split(skills: Sequence[Skill], tune: bool) -> tuple[list[Skill], list[Skill]]:
    """Library and queries; to choose constants, both are of the library's videos."""
    library = [skill for skill in skills if not is_query(skill)]
    if tune:
        return [s for s in library if not is_query(s, "tune:")], [s for s in library if is_query(s, "tune:")]
    return library, [skill for skill in skills if is_query(skill)]


def share_of_other_tasks(library: Sequence[Skill], queries: Sequence[Skill]) -> float:
    """Of a query's different steps, the share that other tasks of the library have too: the mean over the queries."""
    tasks = defaultdict(set)
    for skill in library:
        for text in texts_of(skill.plan()):
            tasks[text].add(skill.goal)
    texts = [(skill.goal, set(texts_of(skill.plan()))) for skill in queries]
    return sum(sum(bool(tasks[t] - {goal}) for t in steps) / len(steps) for goal, steps in texts) / len(texts)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ksgen bench planning", description=__doc__)
    parser.add_argument("--coin", type=Path, default=COIN, metavar="FILE", help=f"default: {COIN}")
    parser.add_argument(
        "--crosstask",
        type=Path,
        nargs=2,
        default=CROSSTASK,
        metavar=("TASKS", "ANNOTATIONS"),
        help=f"default: {CROSSTASK[0]} and {CROSSTASK[1]}",
    )
    parser.add_argument("--tune", action="store_true", help="split the library instead, and print the table only")
    parser.add_argument("--reports", type=Path, default=REPORTS, help="where the report goes")
    arguments = parser.parse_args(argv)
    sets = {"coin": [arguments.coin], "crosstask": list(arguments.crosstask)}
    missing = [str(place) for places in sets.values() for place in places if not place.exists()]
    if missing:
        raise KSGenError(
            f"The data to measure on is not there: {', '.join(missing)}. It does not ship with the pack; "
            "get COIN's annotations and CrossTask's release from their authors, and say with --coin and --crosstask "
            "where they are."
        )
    figures, rows, notes = {}, [], [f"Split: {RULE}"]
    for name, places in sets.items():
        library, queries = split(read_skills(places, name), arguments.tune)
        figures[name], without = score_planners(Planners(library), queries)
        rows += [[name, p.replace("_", " "), *(figures[name][p][m] for m in METRICS)] for p in PLANNERS]
        tasks = len({skill.goal for skill in queries})
        notes.append(f"{name}: {len(queries)} queries of {tasks} tasks, {len(library)} videos in the library.")
        if refused := {p.replace("_", " "): n for p, n in without.items() if n}:
            notes.append(f"Queries of {name} for which nothing was found, which score 0: {refused}.")
        shared = share_of_other_tasks(library, queries)
        notes.append(
            f"Of the steps of a query of {name} {shared:.3f} are in other tasks too: without the task no planner can "
            "name more of them."
        )
    notes += [
        f"A consensus has at most {MOST} steps, the product's rule; the other plans any number.",
        "Retrieval goes by words. Of plans that fit equally well it puts first the one that the library holds most "
        "often, so where a goal is a task's very name, the nearest plan is the commonest order.",
    ]
    table = markdown(["data", "planner", *(m.replace("_", " ") for m in METRICS)], rows)
    table += "\n\n" + "\n\n".join(notes)
    print(table)
    if not arguments.tune:
        write_report("planning", figures, table, "none: nothing is drawn by chance", arguments.reports)
    return 0


if __name__ == "__main__":
    sys.exit(main())
