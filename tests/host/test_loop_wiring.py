"""What may hang in a loop and on it: previews inside, pictures that a step lacks, videos, loops after and in loops."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from shutil import copy

import av
import numpy as np
import pytest
from comfy_server import NodeFailed, Refused, Server, new_base_folder
from loop_graphs import TEXTS6, loop, plan_text, run_counting, run_well, start
from test_run import count_frames, node, read_pictures

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def looping(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = new_base_folder(tmp_path_factory.mktemp("wiring") / "base")
    copy(HERE / "gate_node.py", base / "custom_nodes")
    server = Server(base)
    yield server
    server.stop()


@pytest.fixture
def seed() -> int:
    return uuid.uuid4().int % 2**40


def failure(server: Server, prompt: dict) -> NodeFailed:
    with pytest.raises(NodeFailed) as caught:
        server.run(prompt)
    return caught.value


def test_a_preview_inside_runs_per_step_and_loads_nothing_when_all_is_remembered(looping: Server, seed: int):
    def graph() -> dict:
        prompt = loop(start={"seed": seed}, draw={"images": ["base", 0]})
        prompt["base"] = node("EmptyImage", width=64, height=48, batch_size=1, color=seed % 2**24)
        return {**prompt, "inside": node("PreviewImage", images=["noise", 0])}

    first = run_well(looping, graph())
    assert first.counts["inside"] == 6 and first.counts["base"] == 1
    assert [key for key in first.outputs if key.startswith("end.")]
    again = run_well(looping, {**graph(), "base": node("EmptyImage", **{**graph()["base"]["inputs"]})})
    assert again.counts["inside"] == 0 and again.counts["noise"] == 0


def test_nothing_before_the_body_runs_when_all_is_remembered(looping: Server, seed: int):
    """After a restart, when the host remembers nothing, neither loaders nor previews of the body run."""
    prompt = loop(start={"seed": seed}, draw={"images": ["base", 0]})
    prompt["base"] = node("EmptyImage", width=64, height=48, batch_size=1, color=seed % 2**24)
    prompt["inside"] = node("PreviewImage", images=["noise", 0])
    run_well(looping, prompt)
    server = Server(looping.base)
    try:
        ran = run_well(server, prompt)
    finally:
        server.stop()
    assert ran.counts["base"] == ran.counts["noise"] == ran.counts["inside"] == 0
    assert ran.report == "6 steps: 6 remembered, 0 made."


def test_frames_of_the_loop_are_those_of_the_same_nodes_by_hand(looping: Server, seed: int):
    prompt = loop(start={"seed": seed})
    prompt["all"] = node("PreviewImage", images=["frames_of", 0])
    prompt["frames_of"] = node("KSGenClipFrames", clips=["end", 0], number=0, which="all frames")
    for k, text in enumerate(TEXTS6):
        own = {
            "draw": {**prompt["draw"]["inputs"], "images": ["picture", 0], "text": text},
            "frames": {"image": [f"draw{k}", 0], "amount": 5},
            "noise": {**prompt["noise"]["inputs"], "image": [f"frames{k}", 0], "seed": seed},
        }
        prompt |= {f"{name}{k}": node(prompt[name]["class_type"], **inputs) for name, inputs in own.items()}
        prompt[f"hand{k}"] = node("PreviewImage", images=[f"noise{k}", 0])
    outputs = run_well(looping, prompt).outputs
    looped = read_pictures(looping, outputs["all"]["images"])
    by_hand = np.concatenate([read_pictures(looping, outputs[f"hand{k}"]["images"]) for k in range(6)])
    assert looped.shape == by_hand.shape == (30, 48, 64, 3) and looped.std() > 1
    assert np.array_equal(looped, by_hand)


def test_a_body_sees_how_the_previous_step_went_on_a_contact_sheet(looping: Server, seed: int):
    def body(frames: list, suffix: str, noise: int | list) -> dict:
        nodes = {
            "sheet": node("KSGenContactSheet", frames=frames, count=4, columns=0),
            "small": node(
                "ImageScale", image=[f"sheet{suffix}", 0], upscale_method="area", width=64, height=48, crop="disabled"
            ),
            "frames": node("RepeatImageBatch", image=[f"small{suffix}", 0], amount=5),
            "noise": node("ImageAddNoise", image=[f"frames{suffix}", 0], seed=noise, strength=0.5),
        }
        return {f"{name}{suffix}": one for name, one in nodes.items()}

    prompt = loop(TEXTS6[:3], start={"seed": seed}) | body(["start", 9], "", ["start", 10])
    prompt = {name: one for name, one in prompt.items() if name not in ("draw", "gate")}
    for number in (1, 2, 3):
        prompt[f"of{number}"] = node("KSGenClipFrames", clips=["end", 0], number=number, which="all frames")
        prompt[f"see{number}"] = node("PreviewImage", images=[f"of{number}", 0])
        before = [f"of{number - 1}", 0] if number > 1 else ["picture", 0]
        prompt |= body(before, str(number), seed)
        prompt[f"hand{number}"] = node("PreviewImage", images=[f"noise{number}", 0])
    ran = run_well(looping, prompt)
    assert ran.counts["sheet"] == 3
    for number in (1, 2, 3):
        looped = read_pictures(looping, ran.outputs[f"see{number}"]["images"])
        by_hand = read_pictures(looping, ran.outputs[f"hand{number}"]["images"])
        assert looped.shape == (5, 48, 64, 3) and np.array_equal(looped, by_hand)


def test_key_images_begin_with_the_given_picture_and_carry(looping: Server, seed: int):
    prompt = loop(carry=True, start={"seed": seed, "makes": "key images"}, noise={"image": ["draw", 0]})
    del prompt["frames"], prompt["gate"], prompt["firsts"]
    prompt["pictures"]["inputs"]["images"] = ["end", 1]
    prompt["given"] = node("PreviewImage", images=["picture", 0])
    ran = run_well(looping, prompt)
    assert ran.counts["noise"] == 5
    assert ran.report == "6 steps: 0 remembered, 5 made, the first is the initial picture."
    pictures = read_pictures(looping, ran.outputs["pictures"]["images"])
    (given,) = read_pictures(looping, ran.outputs["given"]["images"])
    assert len(pictures) == 6 and np.array_equal(pictures[0], given)
    (words,) = run_well(looping, {**prompt, "clips": node("KSGenJoinClips", clips=["end", 0])} | save("clips")).blocked
    assert "makes key images and has no clips" in words


def save(name: str) -> dict:
    return {"save": node("SaveVideo", video=[name, 0], filename_prefix="test/loop", format="auto", codec="auto")}


def test_key_images_of_one_loop_go_into_the_next(looping: Server, seed: int):
    """Draw, then render from key image to key image; a new text for one step draws and renders what hangs on it."""

    def graph(texts: list[str]) -> dict:
        prompt = loop(texts, carry=False, start={"seed": seed, "makes": "key images"}, noise={"image": ["draw", 0]})
        del prompt["frames"], prompt["gate"], prompt["show"], prompt["firsts"], prompt["pictures"]
        prompt |= {
            "start2": start(plan=["end", 2], key_images=["end", 1], seed=seed),
            "both": node(
                "ImageStitch",
                image1=["start2", 5],
                image2=["start2", 6],
                direction="right",
                match_image_size=True,
                spacing_width=0,
                spacing_color="white",
            ),
            "rendered": node("RepeatImageBatch", image=["both", 0], amount=["start2", 12]),
            "end2": node("KSGenStepLoopEnd", loop=["start2", 0], result=["rendered", 0]),
            "show": node("PreviewAny", source=["end2", 4]),
            "join": node("KSGenJoinClips", clips=["end2", 0]),
        }
        return prompt | save("join")

    # The last step has no next picture: its clip is half as wide.
    first = run_well(looping, graph(TEXTS6))
    assert first.counts["noise"] == 5 and first.counts["rendered"] == 6
    ran = run_well(looping, graph([*TEXTS6[:3], "fry", *TEXTS6[4:]]))
    assert ran.counts["noise"] == 1 and ran.counts["rendered"] == 2  # the step, and the one whose end it is
    assert ran.report == "6 steps: 4 remembered, 2 made."


def test_a_picture_that_a_step_has_not_is_left_out_or_refused(looping: Server, seed: int):
    prompt = loop(start={"seed": seed}, draw={"images": ["start", 6]})
    prompt["start"]["inputs"]["key_images"] = ["many", 0]
    prompt["many"] = node("RepeatImageBatch", image=["picture", 0], amount=6)
    error = failure(looping, prompt)
    assert "Step 6 has no next key image" in error.message
    del prompt["many"], prompt["start"]["inputs"]["key_images"]
    assert "Step 1 has no next key image" in failure(looping, prompt).message


def test_videos_with_sound_are_results_and_stay_as_they_are(looping: Server, seed: int):
    prompt = loop(start={"seed": seed})
    prompt["sound"] = node("EmptyAudio", duration=1.0, sample_rate=44100, channels=2)
    prompt["video"] = node("CreateVideo", images=["noise", 0], fps=["start", 13], audio=["sound", 0])
    prompt["end"]["inputs"]["result"] = ["video", 0]
    prompt["join"] = node("KSGenJoinClips", clips=["end", 0])
    ran = run_well(looping, prompt | save("join"))
    path = looping.file(ran.outputs["save"]["images"][0])
    assert count_frames(path) == (30, 64, 48)
    with av.open(str(path)) as film:
        assert len(film.streams.audio) == 1
    assert run_well(looping, prompt | save("join")).counts["noise"] == 0


def test_a_loop_inside_a_loop(looping: Server, seed: int):
    """For every step, a plan of its own is gone through, and the pictures of that are the step's clip."""
    prompt = loop(["wash", "peel"], start={"seed": seed})
    del prompt["frames"], prompt["gate"], prompt["firsts"], prompt["pictures"]
    prompt |= {
        "plan_in": node("KSGenPlanFromText", goal="one step", text=["both", 0]),
        "both": node("StringConcatenate", string_a=["start", 1], string_b="dry", delimiter="\n"),
        "start_in": start(plan=["plan_in", 0], image=["start", 7], seed=["start", 10], name="inner"),
        "draw": node(**as_inputs(prompt["draw"], images=["start_in", 8], text=["start_in", 1])),
        "noise": node("ImageAddNoise", image=["draw", 0], seed=["start_in", 10], strength=0.1),
        "clip_in": node("RepeatImageBatch", image=["noise", 0], amount=["start_in", 12]),
        "end_in": node("KSGenStepLoopEnd", loop=["start_in", 0], result=["clip_in", 0]),
        "frames_in": node("KSGenClipFrames", clips=["end_in", 0], number=0, which="all frames"),
        "end": node("KSGenStepLoopEnd", loop=["start", 0], result=["frames_in", 0]),
    }
    ran = run_well(looping, prompt)
    assert ran.counts["noise"] == 4 and ran.report == "2 steps: 0 remembered, 2 made."
    prompt["plan"]["inputs"]["text"] = plan_text(["wash", "cut"])
    ran = run_well(looping, prompt)
    assert ran.counts["noise"] == 2 and ran.report == "2 steps: 1 remembered, 1 made."


def as_inputs(one: dict, **changes) -> dict:
    return {"class_type": one["class_type"], **one["inputs"], **changes}


def test_a_server_that_is_killed_loses_only_the_step_in_work(tmp_path: Path, seed: int):
    base = new_base_folder(tmp_path / "base")
    copy(HERE / "gate_node.py", base / "custom_nodes")
    (base / "input" / "wait.txt").write_text("season")
    server, gates = Server(base), []

    def kill(message: dict) -> None:
        if message["type"] == "executing" and message["data"]["display_node"] == "gate":
            gates.append(message)
            if len(gates) == 5:
                server.process.kill()

    with pytest.raises(Exception):  # noqa: B017  the connection breaks, in one of several ways
        run_counting(server, loop(start={"seed": seed}), kill)
    server.process.wait()
    (base / "input" / "wait.txt").write_text("")
    server = Server(base)
    try:
        ran = run_well(server, loop(start={"seed": seed}))
    finally:
        server.stop()
    assert ran.counts["noise"] == 2 and ran.report == "6 steps: 4 remembered, 2 made."


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"end": {"result": ["picture", 0]}}, "uses nothing of a step"),
        ({"draw": {"text": "always the same"}, "noise": {"seed": 1, "image": ["draw", 0]}}, "uses nothing of a step"),
        ({"start": {"steps": "two"}}, "'two' is no step"),
        (
            {"start": {"frame_step": 4}, "ltx": {"length": ["start", 12]}},
            "EmptyLTXVLatentVideo takes 1, 9, 17 and so on",
        ),
        ({"start": {"steps": "4-7"}}, "the plan has the steps 1 to 6"),
        ({"start": {"makes": "key images", "image": ["two", 0]}}, "One initial picture"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(looping: Server, changes: dict, words: str):
    ltx = changes.pop("ltx", None)
    prompt = loop(**changes)
    if ltx:
        sizes = {"width": 64, "height": 64, "batch_size": 1}
        prompt["ltx"] = node("EmptyLTXVLatentVideo", **sizes, **ltx)
        prompt["end"]["inputs"]["result"] = ["decoded", 0]
        prompt["decoded"] = node("VAEDecode", samples=["ltx", 0], vae=["vae", 0])
        prompt["vae"] = node("VAELoader", vae_name="pixel_space")
    prompt["two"] = node("EmptyImage", width=64, height=48, batch_size=2, color=0)
    ran = run_counting(looping, prompt)
    (error,) = [details for kind, details in ran.messages if kind == "execution_error"]
    assert words in error["exception_message"] and ran.counts["noise"] == 0


def test_a_body_that_blocks_a_step_says_so_and_keeps_the_steps_before(looping: Server, seed: int):
    prompt = loop(start={"seed": seed})
    (looping.base / "input" / "block.txt").write_text("cut")
    try:
        assert "Step 3 has no result" in failure(looping, prompt).message
    finally:
        (looping.base / "input" / "block.txt").unlink()
    assert run_well(looping, prompt).report == "6 steps: 2 remembered, 4 made."


def test_grey_frames_become_a_clip(looping: Server, seed: int):
    prompt = loop(start={"seed": seed}, end={"result": ["gate", 0]}, draw={"color": f"#{seed % 2**24:06x}"})
    (looping.base / "input" / "grey.txt").write_text("cut")
    try:
        ran = run_well(looping, prompt)
    finally:
        (looping.base / "input" / "grey.txt").unlink()
    third = read_pictures(looping, ran.outputs["pictures"]["images"])[2]
    assert np.array_equal(third[..., 0], third[..., 1]) and np.array_equal(third[..., 1], third[..., 2])


def test_a_start_without_an_end_says_so(looping: Server):
    prompt = loop()
    prompt["pictures"] = node("PreviewImage", images=["noise", 0])
    del prompt["end"], prompt["show"]
    assert "has no end" in failure(looping, prompt).message


def test_a_missing_file_is_refused_when_queued(looping: Server):
    prompt = loop(draw={"images": ["paper", 0]})
    prompt["paper"] = node("LoadImage", image="nowhere.png")
    with pytest.raises(Refused, match=r"nowhere\.png"):
        looping.run(prompt)


def test_the_plan_that_comes_out_has_the_seeds(looping: Server, seed: int):
    prompt = loop(start={"seed": seed, "seeds": "seed + step number"})
    prompt["shown"] = node("PreviewAny", source=["edit", 1])
    prompt["edit"] = node("KSGenEditPlan", plan=["end", 2], text="")
    ran = run_well(looping, prompt)
    assert ran.outputs["edit"]["text"][0].splitlines()[2] == f"3. cut | seed {seed + 2}"
