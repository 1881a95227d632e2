"""What the host's own loader finds in the pack."""

from __future__ import annotations

import json

import pytest
from comfy_server import REPO

IDS = [
    "KSGenLoadModels",
    "KSGenPlanSkill",
    "KSGenPlanFromText",
    "KSGenLoadPlan",
    "KSGenDrawKeySteps",
    "KSGenRenderClips",
    "KSGenStoryboard",
    "KSGenJoinClips",
    "KSGenSaveStoryboard",
    "KSGenStepLists",
    "KSGenSelectStep",
    "KSGenNativeText",
    "KSGenCollectClips",
    "KSGenLoadLibrary",
    "KSGenRetrieveExamples",
    "KSGenReplan",
    "KSGenEditPlan",
    "KSGenPlanPrompt",
    "KSGenPlanFromReply",
    "KSGenSaveFilm",
    "KSGenStepLoopStart",
    "KSGenStepLoopEnd",
    "KSGenClipFrames",
    "KSGenLoopStep",
    "KSGenLoopKeep",
    "KSGenLoopNext",
    "KSGenExportPage",
    "KSGenSaveWebP",
    "KSGenContactSheet",
    "KSGenLoadSkillTransformer",
    "KSGenForeseeTokens",
    "KSGenApplyImageTokens",
    "KSGenTokensToConditioning",
    "KSGenLoadDiffusers",
    "KSGenLoadLora",
]
"""Saved workflows name these: an id may be added, never renamed or removed."""


def test_the_pack_loads_without_a_warning_and_registers_every_id(pack):
    assert pack["loaded"] is True
    assert pack["warnings"] == []
    assert {node["id"] for node in pack["nodes"]} == set(IDS)


def test_loading_costs_under_100_ms_and_imports_no_heavy_package(pack):
    assert pack["seconds"] < 0.1
    ours = [name for name in pack["new_modules"] if "KS-Gen" in name]
    assert ours
    packages = {name.split(".")[0] for name in pack["new_modules"] if name not in ours}
    assert not packages & {"torch", "diffusers", "transformers", "accelerate", "torchvision", "PIL", "av", "numpy"}


def test_without_diffusers_the_user_is_told_what_to_install(pack):
    message = pack["without_diffusers"]
    assert message.startswith("KSGenError") and "diffusers" in message and "requirements.txt" in message


def test_no_file_or_folder_of_the_output_folder_is_ever_written_twice(pack):
    for first, second, third, folder, next_folder in pack["files"]:
        assert (first, second) == ("film_00001.mp4", "film_00002.mp4")
        assert third == "film_00004.mp4", "the subtitles of number 3 are there"
        assert folder != next_folder


def test_the_first_frames_of_clips_are_read_one_after_the_other(pack):
    assert pack["clips_read"] == [1, 2, 3]


def test_the_browser_is_not_told_of_every_frame_and_every_frame_can_be_the_last(pack):
    film, stopped = pack["film"], pack["stopped_film"]
    assert film["made"] == 3000 and film["raised"] == ""
    assert film["sent"][0] == [1, 3000] and film["sent"][-1] == [3000, 3000] and len(film["sent"]) < 300
    assert stopped["made"] == 7 and stopped["raised"] == "InterruptProcessingException"


def test_no_update_follows_the_one_in_which_the_user_cancels(pack):
    cancelled = pack["cancelled"]
    assert cancelled["asked"] == [1, 2, 3] and cancelled["closed"] == [True]
    assert cancelled["raised"] == "InterruptProcessingException" and cancelled["flag"] is False


def test_schema_ids_are_the_parameters_of_execute(pack):
    for node in pack["nodes"]:
        assert node["top_inputs"] == node["parameters"], node["id"]
        assert node["required"] == node["parameters_without_default"], node["id"]


def test_every_node_says_what_it_is(pack):
    for node in pack["nodes"]:
        assert node["class"] == node["id"]
        assert node["category"].split("/")[0] == "KS-Gen"
        assert " " in node["display_name"] and not node["display_name"].startswith("KSGen"), node["id"]
        assert node["description"] and node["search_aliases"], node["id"]
        for name, tooltip in [*node["inputs"].items(), *node["outputs"].items()]:
            assert tooltip, f"{node['id']}.{name} has no tooltip"
        assert len(node["outputs"]) > 0


@pytest.mark.parametrize("name", IDS)
def test_every_node_has_a_help_page(name):
    text = (REPO / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8")
    assert text.startswith("# ") and len(text) > 80


def test_the_english_texts_cover_every_node_and_socket(pack):
    texts = json.loads((REPO / "locales/en/nodeDefs.json").read_text(encoding="utf-8"))
    assert set(texts) == set(IDS)
    for node in pack["nodes"]:
        text = texts[node["id"]]
        assert text["display_name"] == node["display_name"] and text["description"] == node["description"]
        assert set(text["inputs"]) == set(node["inputs"])
        assert {name: one["tooltip"] for name, one in text["inputs"].items()} == node["inputs"]
        assert [one["tooltip"] for one in text["outputs"].values()] == list(node["outputs"].values())


def test_what_the_server_tells_the_front_end(server):
    info = server.get("/object_info")
    assert set(IDS) <= set(info)
    assert "embedded" in info["KSGenLoadModels"]["input"]["required"]["folder"][1]["options"]
    assert "tiny" in info["KSGenLoadModels"]["input"]["required"]["folder"][1]["options"]
    assert set(server.get("/i18n")["en"]["nodeDefs"]) >= set(IDS)
    assert server.get_bytes("/extensions/KS-Gen/docs/KSGenPlanSkill.md").startswith(b"# Plan a Skill")
    log = server.log()
    assert "IMPORT FAILED" not in log
    assert not [line for line in log.splitlines() if "KS-Gen" in line and ("WARNING" in line or "ERROR" in line)]
