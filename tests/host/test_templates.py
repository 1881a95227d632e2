"""The templates: listed, served, and run to their ends on a fresh install with the embedded models."""

from __future__ import annotations

import copy
import json

import pytest
from comfy_server import PACK, REPO, Server
from graph import prompt_of
from test_planners import REPLY, TEXTS_WRITTEN
from test_run import count_frames

FILMS = ["quickstart", "native-clips"]
LOOPS = [
    "quickstart-loop",
    "key-images-qwen-edit",
    "key-images-flux2-klein",
    "clips-wan22-i2v",
    "clips-wan22-first-last",
    "clips-ltx-2.3",
    "clips-minimax-h3",
]
"""Run in test_loop_templates.py."""
TEMPLATES = [*FILMS, "diffusers-models", "plan-only", "plan-native-llm", *LOOPS]


def template(server: Server, name: str) -> dict:
    return server.get(f"/api/workflow_templates/{PACK}/{name}.json")


def test_the_templates_are_listed_and_are_the_only_template_folder(server: Server):
    assert sorted(server.get("/workflow_templates")[PACK]) == sorted(TEMPLATES)
    others = ["example_workflows", "example", "examples", "workflow"]
    assert not [name for name in others if (REPO / name).exists()]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_is_served_with_its_thumbnail(server: Server, name: str):
    assert template(server, name) == json.loads((REPO / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    assert server.get_bytes(f"/api/workflow_templates/{PACK}/{name}.jpg").startswith(b"\xff\xd8\xff")


@pytest.mark.parametrize("name", FILMS)
def test_a_template_runs_to_its_video(server: Server, name: str):
    graph = template(server, name)
    before = copy.deepcopy(graph)
    prompt = prompt_of(graph, server.get("/object_info"))
    assert graph == before
    save = next(number for number, one in prompt.items() if one["class_type"] == "SaveVideo")
    outputs = server.run(prompt, seconds=900)
    frames, width, height = count_frames(server.file(outputs[save]["images"][0]))
    assert frames >= 2 * 17 and frames % 17 == 0
    assert (width, height) == (128, 128)


def test_the_planning_template_runs_to_its_plan(server: Server):
    prompt = prompt_of(template(server, "plan-only"), server.get("/object_info"))
    outputs = server.run(prompt)
    named = {node["class_type"]: outputs.get(number) for number, node in prompt.items()}
    assert named["KSGenRetrieveExamples"]["text"][0].startswith("found by words")
    assert named["KSGenEditPlan"]["text"][0].startswith("1. ")
    plan = json.loads(named["PreviewAny"]["text"][0])
    assert plan["goal"] == "make a cup of tea" and len(plan["steps"]) >= 3


def test_the_template_with_the_hosts_own_language_model_runs_to_its_plan(server: Server):
    """The file that it names has gigabytes: a tiny model of the same classes stands in for the loader's output."""
    prompt = prompt_of(template(server, "plan-native-llm"), server.get("/object_info"))
    loader = next(number for number, node in prompt.items() if node["class_type"] == "CLIPLoader")
    prompt[loader] = {"class_type": "TestWritingTextEncoder", "inputs": {"text": REPLY}}
    outputs = server.run(prompt)
    preview = next(number for number, node in prompt.items() if node["class_type"] == "PreviewAny")
    assert [step["text"] for step in json.loads(outputs[preview]["text"][0])["steps"]] == TEXTS_WRITTEN
