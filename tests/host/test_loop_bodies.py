"""Bodies of many kinds: undeclared inputs, lazy switches, texts of any script, sides that fail, second passes."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from shutil import copy

import numpy as np
import pytest
from comfy_server import NodeFailed, Server, new_base_folder
from loop_graphs import TEXTS6, loop, plan_text, run_counting, run_well, start
from test_run import node, read_pictures

HERE = Path(__file__).parent


@pytest.fixture(scope="module", params=["default", "lru"])
def looping(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server in the host's default cache mode, and one that remembers many prompts."""
    base = new_base_folder(tmp_path_factory.mktemp("bodies") / "base")
    copy(HERE / "gate_node.py", base / "custom_nodes")
    server = Server(base, ("--cache-lru", "200") if request.param == "lru" else ())
    yield server
    server.stop()


@pytest.fixture
def seed() -> int:
    return uuid.uuid4().int % 2**40


def pictures_of(server: Server, ran) -> np.ndarray:
    return read_pictures(server, ran.outputs["pictures"]["images"])


def test_an_input_that_a_class_does_not_declare_gets_the_steps_value(looping: Server, seed: int):
    plain = pictures_of(looping, run_well(looping, loop(start={"seed": seed})))
    prompt = loop(start={"seed": seed}, draw={"text": ["joined", 0]})
    prompt["joined"] = node("TestJoinTexts", text_1="step:", way="plain", text_2=["start", 1], text_3=["start", 1])
    prompt["said"] = node("PreviewAny", source=["joined", 0])
    ran = run_well(looping, prompt)
    said = [entry["text"][0] for key, entry in sorted(ran.outputs.items()) if key.endswith(".said")]
    assert said == [f"step: {text} {text}" for text in TEXTS6]
    assert not any(np.array_equal(a, b) for a, b in zip(plain, pictures_of(looping, ran), strict=True))


def test_a_lazy_switch_takes_the_place_of_what_the_last_step_lacks(looping: Server, seed: int):
    prompt = loop(start={"seed": seed, "key_images": ["many", 0]}, draw={"images": ["switch", 0]})
    prompt["many"] = node("RepeatImageBatch", image=["picture", 0], amount=6)
    prompt["switch"] = node("ComfySwitchNode", switch=["start", 17], on_true=["start", 5], on_false=["start", 6])
    ran = run_well(looping, prompt)
    assert ran.counts["noise"] == 6 and len(pictures_of(looping, ran)) == 6
    # Without the switch the last step cannot be made, but the others can.
    prompt = loop(start={"seed": seed + 1, "key_images": ["many", 0], "steps": "1-5"}, draw={"images": ["start", 6]})
    prompt["many"] = node("RepeatImageBatch", image=["picture", 0], amount=6)
    assert run_well(looping, prompt).report == "6 steps: 0 remembered, 5 made, 1 left out."


def test_texts_of_any_script_and_length(looping: Server, seed: int):
    texts = ["用热水冲洗茶壶" * 30, "Залейте чай кипятком " * 12, "اسكب الماء"]
    assert run_well(looping, loop(texts, start={"seed": seed})).report == "3 steps: 0 remembered, 3 made."


def test_a_side_that_fails_does_not_cost_the_result(looping: Server, seed: int):
    prompt = loop(start={"seed": seed})
    prompt["side"] = node("TestGate", image=["noise", 0], text="the side")
    prompt["inside"] = node("PreviewImage", images=["side", 0])
    fail = looping.base / "input" / "fail.txt"
    fail.write_text("the side")
    try:
        assert [kind for kind, _ in run_counting(looping, prompt).messages if kind == "execution_error"]
    finally:
        fail.unlink()
    assert run_well(looping, prompt).report == "6 steps: 1 remembered, 5 made."


def test_running_only_a_preview_inside_runs_its_loop(looping: Server, seed: int):
    prompt = loop(start={"seed": seed})
    prompt["inside"] = node("PreviewImage", images=["noise", 0])
    request = {"prompt": prompt, "client_id": uuid.uuid4().hex, "partial_execution_targets": ["inside"]}
    entry = looping.wait(looping.post("/prompt", request)["prompt_id"])
    assert sum(key.endswith(".inside") for key in entry["outputs"]) == 6 and "show" not in entry["outputs"]


def test_what_was_left_out_is_there_when_it_was_made_in_the_meantime(looping: Server, seed: int):
    for steps, report in (("2", "0 remembered, 1 made"), ("1", "1 remembered, 1 made"), ("2", "2 remembered, 0 made")):
        ran = run_well(looping, loop(start={"seed": seed, "steps": steps}))
        assert report in ran.report and len(pictures_of(looping, ran)) == sum(map(int, report.split()[::2]))


def test_a_file_that_is_damaged_while_the_host_remembers_the_loop_is_not_served(looping: Server, seed: int):
    results = looping.base / "user" / "ksgen" / "results"
    before = set(results.glob("*/*/clip.mkv"))
    first = run_well(looping, loop(start={"seed": seed}))
    path = sorted(set(results.glob("*/*/clip.mkv")) - before)[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    again = loop(start={"seed": seed}, firsts={"which": "last frame"})  # only what is behind the loop is new
    with pytest.raises(NodeFailed, match="damaged or gone"):
        run_well(looping, again)
    assert run_well(looping, again).report == "6 steps: 5 remembered, 1 made."
    assert np.array_equal(
        pictures_of(looping, first), pictures_of(looping, run_well(looping, loop(start={"seed": seed})))
    )


def test_a_second_pass_over_clips_makes_only_what_changed(looping: Server, seed: int):
    def graph(texts: list[str]) -> dict:
        prompt = loop(texts, start={"seed": seed})
        prompt["start2"] = start(plan=["end", 2], clips=["end", 0], seed=seed)
        prompt["larger"] = node("ImageScaleBy", image=["start2", 18], upscale_method="nearest-exact", scale_by=2.0)
        prompt["end2"] = node("KSGenStepLoopEnd", loop=["start2", 0], result=["larger", 0])
        prompt["firsts"]["inputs"]["clips"] = ["end2", 0]
        return prompt

    first = run_well(looping, graph(TEXTS6))
    assert first.counts["larger"] == 6 and pictures_of(looping, first).shape[1:3] == (96, 128)
    second = run_well(looping, graph([*TEXTS6[:3], "fry", *TEXTS6[4:]]))
    assert second.counts["noise"] == second.counts["larger"] == 1


def test_locks_are_refused_in_a_loop_inside_a_loop(looping: Server, seed: int):
    prompt = loop(["wash"], start={"seed": seed})
    del prompt["frames"], prompt["gate"]
    prompt |= {
        "plan_in": node("KSGenPlanFromText", goal="one step", text=plan_text(["dry"], dry=" | lock")),
        "start_in": start(plan=["plan_in", 0], image=["start", 7], seed=["start", 10]),
        "draw": node(**{**prompt["draw"]["inputs"], "class_type": "TextOverlay", "images": ["start_in", 8]}),
        "noise": node("ImageAddNoise", image=["draw", 0], seed=["start_in", 10], strength=0.1),
        "end_in": node("KSGenStepLoopEnd", loop=["start_in", 0], result=["noise", 0]),
        "frames_in": node("KSGenClipFrames", clips=["end_in", 0], number=0, which="all frames"),
        "end": node("KSGenStepLoopEnd", loop=["start", 0], result=["frames_in", 0]),
    }
    with pytest.raises(NodeFailed, match="cannot be locked"):
        run_well(looping, prompt)


def test_a_model_folder_that_has_the_name_of_a_constant_does_not_count(looping: Server, seed: int):
    prompt = loop(start={"seed": seed}, draw={"text": ["joined", 0]})
    prompt["joined"] = node("TestJoinTexts", text_1=["start", 1], way="wan")
    run_well(looping, prompt)
    folder = looping.base / "models" / "loras" / "wan"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{seed}.safetensors").write_bytes(b"a lora")
    prompt["start"]["inputs"]["name"] = "again"
    assert run_well(looping, prompt).counts["noise"] == 0
