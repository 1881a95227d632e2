"""Every template holds what the server says of its nodes, and the check finds what is broken."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from check_template import problems_of
from comfy_server import REPO, Server
from PIL import Image

GRAPHS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (REPO / "workflows").glob("*.json")}


@pytest.mark.parametrize("name", sorted(GRAPHS))
def test_a_template_holds_what_the_server_says_of_its_nodes(server: Server, name: str):
    assert problems_of(GRAPHS[name], server.get("/object_info"), server.get("/models")) == []


@pytest.mark.parametrize("name", sorted(GRAPHS))
def test_a_template_has_a_thumbnail_that_is_small(name: str):
    path = REPO / "workflows" / f"{name}.jpg"
    with Image.open(path) as picture:
        assert picture.format == "JPEG" and picture.size == (512, 512)
    assert path.stat().st_size < 30_000


def only(graph: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(one for one in graph["nodes"] if one["type"] == kind)


def socket(graph: dict[str, Any], kind: str, name: str) -> dict[str, Any]:
    return next(one for one in only(graph, kind)["inputs"] if one["name"] == name)


def link_to(graph: dict[str, Any], kind: str, name: str) -> list[Any]:
    return next(link for link in graph["links"] if link[0] == socket(graph, kind, name)["link"])


def widget(kind: str, number: int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(graph: dict[str, Any]) -> None:
        only(graph, kind)["widgets_values"][number] = value

    return change


def model(key: str, value: str) -> Callable[[dict[str, Any]], None]:
    def change(graph: dict[str, Any]) -> None:
        only(graph, "VAELoader")["properties"]["models"][0][key] = value

    return change


def cut(graph: dict[str, Any]) -> None:
    link = link_to(graph, "WanImageToVideo", "vae")
    graph["links"].remove(link)
    socket(graph, "WanImageToVideo", "vae")["link"] = None
    for output in only(graph, "VAELoader")["outputs"]:
        output["links"] = [number for number in output["links"] if number != link[0]]


def swap(graph: dict[str, Any]) -> None:
    """The picture into the text's place and the text into the picture's."""
    one, other = link_to(graph, "WanImageToVideo", "start_image"), link_to(graph, "CLIPTextEncode", "clip")
    socket(graph, "WanImageToVideo", "start_image")["link"], socket(graph, "CLIPTextEncode", "clip")["link"] = (
        other[0],
        one[0],
    )
    one[3:5], other[3:5] = other[3:5], one[3:5]


BROKEN = {
    "a node that is nowhere": (lambda graph: only(graph, "VAEDecode").update(type="VAEDecoder"), "has no such node"),
    "a widget value too few": (lambda graph: only(graph, "KSamplerAdvanced")["widgets_values"].pop(), "too few"),
    "a widget value too many": (lambda graph: only(graph, "VAELoader")["widgets_values"].append(1), "too many"),
    "a sampler that is nowhere": (widget("KSamplerAdvanced", 5, "eulr"), "sampler_name: 'eulr' is no choice"),
    "a planner that is nowhere": (widget("KSGenPlanSkill", 1, "guess"), "planner: 'guess' is no choice"),
    "a number out of range": (widget("KSamplerAdvanced", 3, 0), "steps: 0 is not within"),
    "a number inside a choice": (widget("KSGenPlanSkill", 2, 100), "planner.fewest: 100 is not within"),
    "a number between the steps": (widget("WanImageToVideo", 0, 641), "width: 641 is none of the steps"),
    "a number that is none": (widget("ModelSamplingSD3", 0, "5"), "shift: '5' is no FLOAT"),
    "a truth for a number": (widget("KSamplerAdvanced", 3, True), "steps: True is no INT"),
    "a number for a text": (widget("CLIPTextEncode", 0, 7), "text: 7 is no STRING"),
    "no word after a seed": (widget("KSGenStepLoopStart", 3, 7), "seed, after a run: 7 is no choice"),
    "a file that is not offered": (widget("VAELoader", 0, "other.safetensors"), "'other.safetensors' is no choice"),
    "an offer that is not used": (widget("VAELoader", 0, "other.safetensors"), "no widget has this file"),
    "a link to another file": (model("url", "https://huggingface.co/a/b/resolve/main/c"), "is no link to this file"),
    "a link to a page": (model("url", "https://huggingface.co/a/b/blob/main/wan_2.1_vae.safetensors"), "is no link"),
    "a folder that is nowhere": (model("directory", "vaes"), "has no model folder vaes"),
    "a required input without a link": (cut, "vae: nothing is connected"),
    "links in each other's place": (swap, "does not fit"),
    "a type that the output has not": (
        lambda graph: link_to(graph, "WanImageToVideo", "vae").__setitem__(5, "MODEL"),
        "but the output gives VAE",
    ),
    "an output of another type": (
        lambda graph: only(graph, "VAELoader")["outputs"][0].update(type="CLIP"),
        "output 0: a CLIP here, a VAE there",
    ),
    "an input that is nowhere": (
        lambda graph: socket(graph, "WanImageToVideo", "vae").update(name="autoencoder"),
        "autoencoder: the server has no such input",
    ),
    "an input of another type": (
        lambda graph: socket(graph, "WanImageToVideo", "vae").update(type="CLIP"),
        "vae: a CLIP here, a VAE there",
    ),
    "a link that one end forgot": (
        lambda graph: socket(graph, "WanImageToVideo", "vae").update(link=None),
        "the input does not know of it",
    ),
    "a link that the graph forgot": (
        lambda graph: graph["links"].remove(link_to(graph, "WanImageToVideo", "vae")),
        "its ends know of it",
    ),
    "no note": (
        lambda graph: graph["nodes"].remove(only(graph, "MarkdownNote")),
        "there is no note",
    ),
    "a note without the links": (widget("MarkdownNote", 0, "models/vae"), "the note has no link to it"),
    "a note without the folders": (widget("MarkdownNote", 0, ""), "the note does not name its folder"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_in_a_template_is_found(server: Server, what: str):
    graph = copy.deepcopy(GRAPHS["clips-wan22-i2v"])
    change, words = BROKEN[what]
    change(graph)
    problems = problems_of(graph, server.get("/object_info"), server.get("/models"))
    assert any(words in problem for problem in problems), problems
