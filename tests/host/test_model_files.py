"""Model folders as users have them: links to nowhere and in circles, parts within parts, files written anew."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from shutil import copy

import pytest
from comfy_server import REPO, Server, new_base_folder
from test_run import node

KEYSTEPS = REPO / "ksgen_core/mini/keysteps"
SDXL = json.dumps({"_class_name": "StableDiffusionXLPipeline"})
VISION = json.dumps({"architectures": ["CLIPVisionModelWithProjection"]})


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = new_base_folder(tmp_path_factory.mktemp("files") / "base") / "models"
    diffusers, elsewhere = models / "diffusers", models.parent / "elsewhere"
    for folder in (diffusers / "sdxl", elsewhere / "linked"):
        write(folder / "model_index.json", SDXL)
        write(folder / "image_encoder/config.json", VISION)
        write(folder / "prior/model_index.json", SDXL)
    for place in ("here", "again"):
        os.symlink(elsewhere, diffusers / place, target_is_directory=True)
    for number in range(6):  # every way through them ends at once
        write(diffusers / f"round/{number}/model_index.json", SDXL)
        os.symlink(diffusers, diffusers / f"round/{number}/back", target_is_directory=True)
    nowhere = models / "nowhere"
    for link in (
        "diffusers/moved/model_index.json",
        "diffusers/moved/image_encoder/config.json",
        "clip_vision/moved/config.json",
        "ipadapter/moved.safetensors",
        "ksgen/moved.safetensors",
        "loras/moved.safetensors",
        "LLM/moved/config.json",
        "sentence_transformers/moved/config.json",
    ):
        (models / link).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(nowhere, models / link)
    for circle in ("clip_vision/circle", "ksgen/circle", "LLM/circle"):
        os.symlink(models / circle, models / circle)
    copy(KEYSTEPS / "skill_transformer.safetensors", models / "ksgen/mine.safetensors")
    copy(KEYSTEPS / "ip_adapter/ip-adapter-plus.safetensors", models / "ipadapter/plus.safetensors")
    write(models / "clip_vision/vision/config.json", VISION)
    write(models / "ksgen/whole/keysteps/model_index.json", SDXL)
    write(models / "loras/style.safetensors", "not read before it is used")
    return models


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Server]:
    server = Server(models.parent)
    yield server
    server.stop()


def options(server: Server, node_id: str) -> dict[str, list[str]]:
    inputs = server.get(f"/object_info/{node_id}")[node_id]["input"]["required"]
    return {name: one[1]["options"] for name, one in inputs.items() if "options" in one[1]}


def test_links_to_nowhere_take_no_node_away(server):
    assert "IMPORT FAILED" not in server.log()
    for node_id in ("KSGenLoadDiffusers", "KSGenLoadSkillTransformer", "KSGenLoadLora", "KSGenLoadLibrary"):
        offered = [name for names in options(server, node_id).values() for name in names]
        assert offered and not [name for name in offered if "circle" in name], node_id
    assert options(server, "KSGenLoadSkillTransformer")["ip_adapter"] == ["plus.safetensors", "embedded"]
    assert options(server, "KSGenLoadDiffusers")["skill_transformer"][1:] == ["mine.safetensors", "embedded"]


def test_a_diffusers_folder_is_listed_whole_by_each_of_its_names_and_never_through_a_circle(server):
    offered = options(server, "KSGenLoadDiffusers")
    rounds = [f"round/{number}" for number in range(6)]
    assert sorted(offered["key_model"]) == sorted(["none", "again/linked", "here/linked", "sdxl", *rounds])
    assert sorted(offered["image_encoder"][1:]) == sorted(
        ["vision", *(f"{name}/image_encoder" for name in ("again/linked", "here/linked", "sdxl"))]
    )


OWN = dict.fromkeys(("skill_transformer", "ip_adapter", "image_encoder"), "the folder's own")
PARTS = {"skill_transformer": "mine.safetensors", "ip_adapter": "plus.safetensors"}
LOADERS = {
    "native": node("KSGenLoadSkillTransformer", **PARTS),
    "own": node("KSGenLoadDiffusers", key_model="sdxl", clip_model="none", **OWN),
    "given": node("KSGenLoadDiffusers", key_model="here/linked", clip_model="none", **{**OWN, **PARTS}),
    "lora": node("KSGenLoadLora", models=["own", 0], lora="style.safetensors", put_on="key image model", strength=1.0),
    "folder": node("KSGenLoadModels", folder="whole"),
    "embedded": node("KSGenLoadModels", folder="embedded"),
}


def read_again(server: Server) -> set[str]:
    """The loading nodes that run."""
    shown = {f"{name}.shown": node("PreviewAny", source=[name, 0]) for name in LOADERS}
    entry = server.wait(server.queue(LOADERS | shown))
    assert entry["status"]["completed"], entry["status"]
    (cached,) = [details["nodes"] for kind, details in entry["status"]["messages"] if kind == "execution_cached"]
    return LOADERS.keys() - set(cached)


def test_a_file_that_is_written_anew_is_read_again_and_no_other(server, models):
    assert read_again(server) == LOADERS.keys() and read_again(server) == set()
    for file, readers in {
        "ksgen/mine.safetensors": {"native", "given"},
        "ipadapter/plus.safetensors": {"native", "given"},
        "diffusers/sdxl/model_index.json": {"own", "lora"},
        "diffusers/sdxl/image_encoder/config.json": {"own", "lora"},
        "loras/style.safetensors": {"lora"},
        "ksgen/whole/keysteps/model_index.json": {"folder"},
    }.items():
        path = models / file
        path.write_bytes(path.read_bytes())
        assert read_again(server) == readers, file
        assert read_again(server) == set(), file
