"""A ComfyUI server for the tests of this folder, or one loud line that says that there is none."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copy, copytree

import pytest
import tiny_mllm
from comfy_server import HOW_TO_GET_A_HOST, Server, find_host, new_base_folder, run_in_host
from tiny_clip import new_clip_folder

HERE = Path(__file__).parent
NO_HOST = f"NO COMFYUI FOUND, so nothing of the nodes was tested. {HOW_TO_GET_A_HOST}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if find_host() is None:
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=NO_HOST))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """All skipped tests from one place, so that pytest tells of them in one line, with their number."""
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple) and report.longrepr[2].endswith(NO_HOST):
        report.longrepr = (__file__, 1, report.longrepr[2])
        report.keywords.pop("skip", None)
    return report


TEXTS = ["put the tea bag into the mug", "pour hot water into the mug", "stir the tea with the spoon"]
GOAL = "make a cup of tea"


def add_tiny_models(models: Path) -> None:
    """A complete models folder `ksgen/tiny`, untrained and minimal, so that every node runs in seconds.

    Its clip weights are also where the host's own loaders look, as `tiny/...`.
    """
    from ksgen_core.clips.wan_native import export_native
    from ksgen_core.training import sdxl_folder, wan_folder
    from ksgen_core.types import KeyStep, Plan

    folder = models / "ksgen" / "tiny"
    sdxl_folder.new_sdxl_folder(folder, TEXTS, sdxl_folder.TINY, seed=0)
    wan_folder.new_wan_folder(folder, TEXTS, wan_folder.TINY, seed=0)
    for file in export_native(folder / "clips", folder / "native"):
        place = models / file.parent.name / "tiny"
        place.mkdir(parents=True)
        file.rename(place / file.name)
    plan = Plan(GOAL, tuple(KeyStep(text) for text in TEXTS), planner="by hand")
    (folder / "library.jsonl").write_text(json.dumps(plan.to_json()) + "\n", encoding="utf-8")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base folder of the server, with a folder `tiny` of untrained models beside the embedded ones."""
    folder = new_base_folder(tmp_path_factory.mktemp("comfy") / "base")
    add_tiny_models(folder / "models")
    copytree(tiny_mllm.folder("gemma3"), folder / "models" / "LLM" / "tiny")
    new_clip_folder(folder / "models" / "sentence_transformers" / "tiny", TEXTS)
    # What another pack, or a download that is not yet whole, may leave there.
    (folder / "models" / "sentence_transformers" / "half").mkdir()
    (folder / "models" / "sentence_transformers" / "half" / "config.json").touch()
    copy(HERE / "writing_text_encoder.py", folder / "custom_nodes")
    return folder


@pytest.fixture(scope="session")
def server(base: Path):
    server = Server(base)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def pack(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What the host's own loader says about the pack, in a process of its own."""
    folder = new_base_folder(tmp_path_factory.mktemp("pack") / "base")
    return run_in_host(HERE / "inspect_pack.py", str(folder))
