"""Diffusers folders of every kind in a real ComfyUI: listed, drawn and rendered with as the core does it without it."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from comfy_server import NodeFailed, Refused, Server, run_in_host
from core_graphs import (
    KEYS,
    KINDS,
    LEAST,
    PARTS,
    PLAN,
    SEED,
    drawing,
    drawn,
    graph,
    kept,
    loading,
    rendered,
    rendering,
    run,
)
from safetensors.torch import load_file
from test_run import node

from ksgen_core.types import Plan

pytest_plugins = ["core_fixtures"]

TOLERANCE = 1 / 255
"""One 8-bit value. Measured: 0, the same torch on the same processor."""
SECONDS = Plan(PLAN.goal, (replace(PLAN.steps[0], seconds=0.9), replace(PLAN.steps[1], seconds=0.3)))
DRAWN = {
    "skill": {"models": {"key": "sdxl", **PARTS}},
    "adapter": {
        "models": {"key": "sdxl", **{k: v for k, v in PARTS.items() if k != "skill_transformer"}},
        "policy": "image_prompt",
    },
    "negative": {"models": {"key": "sdxl"}, "negative": "coffee"},
    "size": {"models": {"key": "sdxl"}, "width": 128, "height": 64},
    "kontext": {"models": {"key": "flux-kontext"}},
}
RENDERED = {
    **{kind: {} for kind in KINDS},
    "wan14 negative": {"negative": "coffee", "guidance": 2.0},
    "wan14 size": {"width": 96, "height": 32},
    "wan14 to next": {"to_next": True, "end_image": ["p2", 0]},
    "wan14 seconds": {"plan": SECONDS, "fps": 8.0},
}


def named(name: str) -> str:
    return name.replace(" ", "_")


@pytest.fixture(scope="session")
def headless(core_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The same without the host, all in one process of its Python."""
    models, place = core_base / "models", tmp_path_factory.mktemp("headless")
    files = [str(core_base / f"input/{number}.png") for number in range(3)]
    jobs = {}
    for name, case in DRAWN.items():
        settings = {"policy": case.get("policy", "auto"), "updates": 2, "guidance": 2.0}
        settings |= {"size": [case.get("height", 96), case.get("width", 96)], "negative": case.get("negative", "")}
        jobs[name] = job("key_steps", PLAN, files[:1], settings, given(models, **case["models"]))
    for name, case in RENDERED.items():
        kind = name.partition(" ")[0]
        settings = {"updates": 2, "guidance": case.get("guidance", 1.0), "frames": LEAST.get(kind, 5)}
        settings |= {key: case[key] for key in ("negative", "fps") if key in case}
        if "width" in case:
            settings["size"] = [case["height"], case["width"]]
        settings["to_next"] = case.get("to_next", False)
        clip = {"clip_folder": str(models / "diffusers/video" / kind)}
        jobs[named(name)] = job("clips", case.get("plan", PLAN), files[:2], settings, clip)
        if "end_image" in case:
            jobs[named(name)]["end"] = files[2]
    (place / "job.json").write_text(json.dumps(jobs))
    made = run_in_host(Path(__file__).parent / "make_headless.py", str(place))
    return {name: load_file(place / f"{name}.safetensors")["images"] for name in made}


def job(stage: str, plan: Plan, pictures: list[str], settings: dict, models: dict) -> dict:
    texts = {"stage": stage, "plan": plan.to_json(), "seed": SEED, "pictures": pictures}
    return {**texts, "settings": settings, "models": models}


def given(models: Path, key: str, **parts: str) -> dict[str, str]:
    """The fields of `build.open_models` for what the loading node is given."""
    places = {"skill_transformer": "ksgen", "ip_adapter": "ipadapter", "image_encoder": "clip_vision"}
    found = {name.replace("ip_adapter", "adapter"): str(models / places[name] / file) for name, file in parts.items()}
    return {"key_folder": str(models / "diffusers" / key), **found}


def test_the_folders_are_listed_by_kind_and_an_unknown_one_is_not(core_server: Server):
    inputs = core_server.get("/object_info/KSGenLoadDiffusers")["KSGenLoadDiffusers"]["input"]["required"]
    options = {name: one[1]["options"] for name, one in inputs.items()}
    keys = [name for name in KEYS if name != "kolors" or find_spec("sentencepiece")]
    assert sorted(options["key_model"]) == sorted(["none", *keys])
    assert sorted(options["clip_model"]) == sorted(["none", *(f"video/{kind}" for kind in KINDS)])
    for name, file in PARTS.items():
        assert file in options[name], name


@pytest.mark.parametrize("name", DRAWN)
def test_key_images_are_those_of_the_core_without_the_host(core_server, headless, name):
    got = drawn(core_server, **DRAWN[name])
    assert got.shape == headless[name].shape and (got - headless[name]).abs().max() <= TOLERANCE
    assert not got[0].equal(got[1])


def test_each_way_of_drawing_shows_in_the_pictures(headless):
    plain = headless["negative"]
    assert not headless["skill"][1].equal(headless["adapter"][1]) and not headless["skill"][1].equal(plain[1])
    assert headless["size"].shape[1:3] == (64, 128)


@pytest.mark.parametrize("name", RENDERED)
def test_clips_are_those_of_the_core_without_the_host(core_server, headless, name):
    got, wanted = rendered(core_server, name.partition(" ")[0], **RENDERED[name]), headless[named(name)]
    assert got.shape == wanted.shape and (got - wanted).abs().max() <= TOLERANCE
    assert got.isfinite().all()


def test_each_way_of_rendering_shows_in_the_clips(headless):
    plain = headless["wan14"]
    assert len(plain) == 10 and headless["wan14_size"].shape[1:3] == (32, 96)
    assert len(headless["wan14_seconds"]) == 9 + 5, "0.9 s and 0.3 s at 8 fps, 4 frames a time and one"
    for name in ("wan14_negative", "wan14_to_next"):
        assert not headless[name].equal(plain), name


def test_layer_by_layer_the_clips_are_the_same_and_the_host_does_not_load_the_backbone(core_server, headless):
    core_server.post("/test/watch", {})
    got = rendered(core_server, "wan14", models={"offload": "layer by layer"})
    asked = {name for load in core_server.get("/test/seen")["loads"] for name in load["asked"]}
    assert "UMT5EncoderModel" in asked and "WanTransformer3DModel" not in asked
    assert (got - headless["wan14"]).abs().max() <= TOLERANCE


def test_with_8_bit_weights_the_clips_are_nearly_the_same(core_server, headless):
    got = rendered(core_server, "wan14", models={"fp8": True})
    assert 0 < (got - headless["wan14"]).abs().mean() < 0.1


def test_kolors_draws_or_says_what_is_missing(core_server):
    pytest.importorskip("sentencepiece", reason="a Kolors folder is made with it")
    try:
        images = drawn(core_server, models={"key": "kolors"})
    except NodeFailed as failed:
        assert "sentencepiece" in failed.message
        return
    assert images.isfinite().all() and images.shape == (2, 96, 96, 3)


def test_a_whole_storyboard_of_two_folders_is_saved_and_previews_arrive(core_server: Server):
    client, previews, progress = uuid.uuid4().hex, 0, {"draw": [], "render": []}
    prompt = graph(
        models=loading("flux-kontext", "video/hunyuan"),
        draw=drawing(seed=21, updates=3),
        render=rendering("hunyuan", plan=["draw", 1], key_images=["draw", 0], seed=21, updates=3),
        folder=node(
            "KSGenSaveStoryboard",
            plan=["draw", 1],
            key_images=["draw", 0],
            clips=["render", 0],
            filename_prefix="core/tea",
        ),
    )
    with core_server.listen(client) as messages:
        prompt_id = core_server.queue(prompt, client)
        while True:
            message = messages.next()
            if isinstance(message, bytes):
                previews += 1
                continue
            data = message["data"]
            if message["type"] == "progress" and data["node"] in progress:
                progress[data["node"]].append((data["value"], data["max"]))
            if message["type"] == "executing" and data["node"] is None and data["prompt_id"] == prompt_id:
                break
    assert core_server.wait(prompt_id)["status"]["completed"], core_server.log()[-2000:]
    # One edit, for the first key image is the picture itself; two clips.
    assert progress["draw"][-1] == (3, 3) and progress["render"][-1] == (6, 6) and previews >= 2
    folder = core_server.base / "output/core/tea_00001"
    assert len([*(folder / "clips").glob("*.mp4")]) == len([*(folder / "key_images").glob("*.png")]) == 2
    assert json.loads((folder / "plan.json").read_text())["steps"][1]["seed"] == 22


def with_lora(lora: str, place: str, strength: float) -> dict[str, dict]:
    return {"lora": node("KSGenLoadLora", models=["models", 0], lora=lora, put_on=place, strength=strength)}


@pytest.mark.parametrize(
    "lora, place",
    [("wan_high", "clip model"), ("wan_low", "clip model, low-noise expert"), ("sdxl", "key image model")],
)
def test_a_lora_changes_what_is_made_and_without_strength_nothing(core_server, lora, place):
    made = {}
    for strength in (1.0, 0.0):
        nodes = {"models": loading("sdxl", "video/wan14"), **with_lora(f"{lora}.safetensors", place, strength)}
        for name in ("models", "lora"):
            key = f"{name}.made"
            nodes[key] = drawing(name) if lora == "sdxl" else rendering("wan14", name, updates=4)
            nodes |= kept(key, 0 if lora == "sdxl" else 1)
        made[strength] = run(core_server, graph(**nodes))
    assert made[0.0]["lora.made"].equal(made[0.0]["models.made"])
    assert made[1.0]["models.made"].equal(made[0.0]["models.made"]), "the models that came in stay as they were"
    assert not made[1.0]["lora.made"].equal(made[1.0]["models.made"])


def test_a_lora_of_another_model_is_refused_by_name(core_server):
    nodes = {"models": loading(clip="video/ltx"), **with_lora("wan_high.safetensors", "clip model", 1.0)}
    with pytest.raises(NodeFailed, match="wan_high.safetensors"):
        run(core_server, graph(**nodes, render=rendering("ltx", "lora"), **kept("render", 1)))


def test_what_does_not_fit_is_refused(core_server):
    with pytest.raises(Refused, match="unknown"):
        rendered(core_server, "../unknown")
    with pytest.raises(NodeFailed, match="No model was chosen for rendering clips"):
        run(core_server, graph(models=loading("sdxl"), render=rendering("wan14"), **kept("render", 1)))
    with pytest.raises(NodeFailed, match="takes no IP-Adapter"):
        drawn(core_server, models={"key": "flux-kontext", **PARTS})
    with pytest.raises(NodeFailed, match="cannot end a clip"):
        rendered(core_server, "svd", to_next=True)
