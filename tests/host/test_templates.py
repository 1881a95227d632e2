"""The templates: listed, served, and run to their videos on a fresh install with the embedded models."""

from __future__ import annotations

import copy
import json

import pytest
from comfy_server import PACK, REPO, Server
from graph import prompt_of
from test_run import count_frames

TEMPLATES = ["quickstart", "native-clips"]


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


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_is_whole(server: Server, name: str):
    """Every link joins sockets that exist and agree, and every node is known."""
    graph, info = template(server, name), server.get("/object_info")
    nodes = {node["id"]: node for node in graph["nodes"]}
    for number, source, output, target, socket, kind in graph["links"]:
        assert number in nodes[source]["outputs"][output]["links"]
        assert nodes[target]["inputs"][socket]["link"] == number
        declared = info[nodes[source]["type"]]["output"]
        assert kind == declared[output] == nodes[source]["outputs"][output]["type"]
    assert {node["type"] for node in graph["nodes"]} - set(info) <= {"MarkdownNote"}


@pytest.mark.parametrize("name", TEMPLATES)
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
