"""`ksgen score plans` and `ksgen bench planning` on small made-up data in the shape of COIN and of CrossTask."""

from __future__ import annotations

import hashlib
import json

import pytest

from ksgen_core.cli import main
from ksgen_core.cli_score import PLANNERS, Planners, read_skills, texts_of
from ksgen_core.metrics.plans import METRICS
from ksgen_core.retrieval.library import Skill, SkillStep, write_library
from ksgen_core.types import KeyStep, Plan

STEPS = {"a": "unroll the kite line", "b": "tie the line to the kite", "c": "lift the kite", "d": "run into the wind"}
OTHER = {"x": "wet the clay", "y": "turn the wheel", "z": "shape the bowl"}
LIBRARY = {"FlyKite": ["abcd", "abcd", "abd", "acd", "dcba"], "ThrowBowl": ["xyz", "xyz", "xz"]}
"""The task's name, and a plan for each of its videos."""


def coin(plans: dict[str, list[str]], name: str) -> dict[str, dict]:
    """Videos as COIN's official file has them, their steps out of order."""
    videos = {}
    for task, orders in plans.items():
        for number, order in enumerate(orders):
            labels = [(STEPS | OTHER)[letter] for letter in order]
            steps = [{"id": "1", "segment": [3.0 * k, 3.0 * k + 2], "label": text} for k, text in enumerate(labels)]
            videos[f"{name}-{task}-{number}"] = {"class": task, "annotation": steps[::-1]}
    return videos


def written(path, data):
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


@pytest.fixture
def library(tmp_path):
    return written(tmp_path / "library.json", {"database": coin(LIBRARY, "v")})


def scores(library, queries, tmp_path, *more: str) -> dict[str, dict[str, float]]:
    target = tmp_path / "figures.json"
    words = ["score", "plans", "--library", str(library), "--queries", *map(str, queries), "--json", str(target)]
    assert main([*words, *more]) == 0
    (figures,) = json.loads(target.read_text()).values()
    return figures


def test_figures_are_those_counted_by_hand(library, tmp_path, capsys):
    queries = written(tmp_path / "queries.json", {"database": coin({"FlyKite": ["abcd", "abc"]}, "q")})
    figures = scores(library, [queries], tmp_path)
    assert list(figures) == list(PLANNERS)
    for planner in ("commonest_order", "consensus"):
        # "abcd" for both queries.
        assert figures[planner] == pytest.approx(
            {"edit_score": 0.875, "miou": 0.875, "success_rate": 0.5, "mean_accuracy": 0.875}
        )
    assert set(figures["consensus_task_left_out"].values()) == {0}
    told = capsys.readouterr().out
    assert "2 queries, 8 plans in the library" in told and "consensus_task_left_out 2" in told
    assert all(name.replace("_", " ") in told for name in METRICS)


def test_both_shapes_of_coin_and_a_library_file_say_the_same(library, tmp_path):
    videos = coin({"FlyKite": ["abd"], "ThrowBowl": ["xz", "zy"]}, "q")
    official = written(tmp_path / "official.json", {"database": videos})
    listed = written(tmp_path / "listed.json", [{video: item} for video, item in videos.items()])
    write_library(read_skills([official]), tmp_path / "queries.jsonl")
    write_library(read_skills([library]), tmp_path / "library.jsonl")
    figures = scores(library, [official], tmp_path)
    assert figures == scores(library, [listed], tmp_path, "--format", "coin")
    assert figures == scores(tmp_path / "library.jsonl", [tmp_path / "queries.jsonl"], tmp_path)


def test_crosstask_and_single_plans_are_queries_too(library, tmp_path):
    tasks = tmp_path / "tasks.txt"
    tasks.write_text(f"7\nFly Kite\nhttp://x\n4\n{','.join(STEPS.values())}\n", encoding="utf-8")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "7_video.csv").write_text("3,5,6\n1,1,2\n1,2,3\n4,7,9\n")
    (query,) = read_skills([tasks, tmp_path / "annotations"], "crosstask")
    assert texts_of(query.plan()) == tuple(STEPS[letter] for letter in "acd")
    of_videos = scores(library, [tasks, tmp_path / "annotations"], tmp_path, "--format", "crosstask")
    plan = Plan("fly kite", tuple(KeyStep(STEPS[letter]) for letter in "acd"))
    assert scores(library, [written(tmp_path / "plan.json", plan.to_json())], tmp_path, "--format", "plan") == of_videos


def skill(order: str, source: str, goal: str = "fly a kite") -> Skill:
    return Skill(goal, tuple(SkillStep((STEPS | OTHER)[letter]) for letter in order), source=source)


def letters(texts: tuple[str, ...]) -> str:
    back = {text: letter for letter, text in (STEPS | OTHER).items()}
    return "".join(back[text] for text in texts)


def test_a_query_that_is_in_the_library_never_sees_itself():
    library = [skill("dcba", "1"), skill("abcd", "2"), skill("abcd", "3")]
    planners = Planners([*library, skill("cd", "4"), skill("cd", "4")])
    for name in ("nearest", "commonest_order", "consensus"):
        assert letters(PLANNERS[name](planners, skill("cd", "4"))) == "abcd"
    alone = Planners([skill("ab", "1")])
    assert alone.consensus(skill("ab", "1")) == () and letters(alone.consensus(skill("ab", "2"))) == "ab"


def test_a_task_that_is_left_out_is_planned_from_others_only():
    """Also when all skills have one source, as those of the built-in library do."""
    library = [skill("abc", "s"), skill("abcd", "s", "fly kites"), skill("xy", "s", "fly a huge kite")]
    planners = Planners(library)
    assert letters(planners.consensus(skill("abc", "elsewhere"))) in ("abc", "abcd")
    assert letters(planners.consensus_task_left_out(skill("abc", "elsewhere"))) == "xy"
    assert letters(planners.consensus(skill("xy", "elsewhere", "fly a huge kite"))) == "xy"


def test_the_most_steps_are_the_consensus_own(library, tmp_path):
    queries = written(tmp_path / "queries.json", [coin({"FlyKite": ["abcd"]}, "q")])
    figures = scores(library, [queries], tmp_path, "--most", "2")
    assert figures["consensus"]["miou"] == 0.5 and figures["commonest_order"]["miou"] == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--queries", "nowhere.json"], "nowhere.json"),
        (["--queries", "{library}", "{library}", "--format", "coin"], "one file; got 2"),
        (["--queries", "{library}", "--format", "crosstask"], "two: the tasks file and the annotations; got 1"),
        (["--queries", "{library}", "--format", "plan"], "library.json"),
        (["--queries", "{empty}"], "holds no plan"),
    ],
)
def test_what_cannot_be_read_is_refused(words, told, library, tmp_path, capsys):
    empty = written(tmp_path / "empty.json", [])
    filled = [word.format(library=library, empty=empty) for word in words]
    assert main(["score", "plans", "--library", str(library), *filled]) == 1
    shown = capsys.readouterr().err
    assert told in shown and "Traceback" not in shown


def test_the_benchmark_keeps_to_its_split_and_its_form(tmp_path, capsys):
    """Videos are queries or library by the hash of their id, never both."""
    videos = coin({task: orders * 6 for task, orders in LIBRARY.items()}, "v")
    data = written(tmp_path / "coin.json", [{video: item} for video, item in videos.items()])
    tasks = tmp_path / "tasks.txt"
    tasks.write_text(f"7\nFly Kite\nhttp://x\n4\n{','.join(STEPS.values())}\n", encoding="utf-8")
    (tmp_path / "annotations").mkdir()
    for number in range(20):
        (tmp_path / "annotations" / f"7_{number}.csv").write_text("1,1,2\n2,3,4\n3,5,6\n")
    places = ["--coin", str(data), "--crosstask", str(tasks), str(tmp_path / "annotations")]
    assert main(["bench", "planning", *places, "--reports", str(tmp_path / "reports")]) == 0
    report = json.loads((tmp_path / "reports" / "planning.json").read_text())
    for name in ("coin", "crosstask"):
        assert list(report[name]) == list(PLANNERS)
        assert all(list(figures) == list(METRICS) for figures in report[name].values())
    assert {"command", "commit", "machine"} <= report["run"].keys()
    asked = sum(int(hashlib.sha256(video.encode()).hexdigest(), 16) % 5 == 0 for video in videos)
    text = (tmp_path / "reports" / "planning.md").read_text()
    assert 0 < asked < len(videos) and f"coin: {asked} queries" in text and f"{len(videos) - asked} videos" in text
    assert report["crosstask"]["consensus"]["success_rate"] == 1
    assert main(["bench", "planning", "--coin", str(tmp_path / "none.json"), *places[2:]]) == 1
    assert "none.json" in capsys.readouterr().err
