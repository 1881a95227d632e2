"""`ksgen plan`, and the planners that the command line offers."""

from __future__ import annotations

import json
from pathlib import Path

import openai_server
import pytest
import tiny_mllm

from ksgen_core import cli_planner
from ksgen_core.build import MINI
from ksgen_core.cli import main
from ksgen_core.tabletop.skills import BY_NAME as SKILLS_BY_NAME

GOAL = "make a cup of tea"


@pytest.fixture(autouse=True)
def no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cli_planner, "KEYS_FILE", tmp_path / "keys.json")
    monkeypatch.setattr(cli_planner, "LIBRARY", tmp_path / "library")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def plan(capsys: pytest.CaptureFixture[str], *options: str, goal: str = GOAL) -> dict:
    status = main(["plan", "--image", str(MINI / "demo.png"), "--goal", goal, "--device", "cpu", *options])
    out, err = capsys.readouterr()
    assert status == 0, err
    return json.loads(out)


def test_the_plan_goes_to_the_standard_output_and_nothing_else_does(capsys):
    made = plan(capsys)
    assert made["goal"] == GOAL and made["planner"].startswith("retrieval") and len(made["steps"]) >= 3


def test_the_plan_goes_to_a_file(capsys, tmp_path: Path):
    file = tmp_path / "plan.json"
    words = ["plan", "--image", str(MINI / "demo.png"), "--goal", GOAL, "--out", str(file)]
    assert main(words) == 0
    assert capsys.readouterr().out == "" and json.loads(file.read_text())["kind"] == "ksgen.plan/1"


def test_other_goals_are_looked_up_among_everyday_skills(capsys):
    made = plan(capsys, "--embedding", "none", goal="sew on a shirt button")
    assert "button" in json.dumps(made["steps"])


def test_a_library_of_the_users_own(capsys, tmp_path: Path):
    steps = [{"text": "wipe the trumpet"}, {"text": "polish the trumpet"}]
    skill = {"kind": "ksgen.skill/1", "goal": "polish a trumpet", "steps": steps, "source": "mine"}
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "mine.jsonl").write_text(json.dumps(skill) + "\n")
    made = plan(capsys, "--embedding", "none", goal="polish a trumpet")
    assert [step["text"] for step in made["steps"]] == ["wipe the trumpet", "polish the trumpet"]
    assert made["sources"] == ["mine"]


def test_a_language_model_in_a_folder(capsys):
    options = ("--planner", "mllm", "--llm", str(tiny_mllm.folder("gemma3")), "--fewest", "2", "--most", "2")
    made = plan(capsys, *options, "--seed", "3")
    assert made["planner"] == "mllm" and len(made["steps"]) == 2


def test_the_embedded_language_model_looks_at_the_picture(capsys):
    """It shows a kettle that is off and an empty mug, so nothing is done yet."""
    made = plan(capsys, "--planner", "mllm", "--fewest", "1")
    known = {text for step in SKILLS_BY_NAME["tea"].steps for text in step.texts}
    assert made["planner"] == "mllm" and {step["text"] for step in made["steps"]} <= known
    assert len(made["steps"]) >= 3


def test_a_server_gets_the_key_of_the_settings_file(capsys, tmp_path: Path):
    with openai_server.Server(openai_server.stream()) as server:
        (tmp_path / "keys.json").write_text(json.dumps({server.place: "sk-of-the-file"}))
        made = plan(capsys, "--planner", "endpoint", "--url", server.url, "--llm", "small")
    assert made["planner"] == "endpoint small" and made["goal"] == GOAL
    [(_, headers, asked)] = server.requests
    assert headers["Authorization"] == "Bearer sk-of-the-file" and asked["model"] == "small"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--planner", "mllm", "--llm", "nowhere/at/all"), "nowhere/at/all"),
        (("--planner", "endpoint", "--url", "ftp://127.0.0.1/v1"), "http"),
        (("--fewest", "5", "--most", "2"), "5"),
        (("--embedding", "nowhere"), "nowhere"),
        (("--library", "nowhere.jsonl", "--embedding", "none"), "nowhere.jsonl"),
    ],
)
def test_bad_input_is_told_in_one_line(capsys, options, says):
    words = ["plan", "--image", str(MINI / "demo.png"), "--goal", "sew on a shirt button", *options]
    assert main(words) == 1
    out, err = capsys.readouterr()
    told = err[err.index("ksgen: ") :]
    assert out == "" and says in told and told.count("\n") == 1
