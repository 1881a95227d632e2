"""Nodes of other packs as the body of a step loop, in a real server. The packs are not part of this repository.

The folder in KSGEN_TEST_PACKS holds them, each in a folder of its name, with what they need in the host's Python:
`ComfyUI-KJNodes` and `rgthree-comfy` (pictures, switches, seeds), `ComfyUI-VideoHelperSuite` (files of video).
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from comfy_server import Server, new_base_folder
from loop_graphs import Ran, run_counting, run_well
from PIL import Image
from test_run import count_frames, node, read_pictures
from third_party_graphs import BODIES, kj_pictures, rgthree_switch, vhs_beside, vhs_driven, vhs_file

KJ, VHS, RGTHREE = "ComfyUI-KJNodes", "ComfyUI-VideoHelperSuite", "rgthree-comfy"
TEXTS = ["wash", "peel", "cut"]
EDITED = ["wash", "fry", "cut"]


PACKS = os.environ.get("KSGEN_TEST_PACKS")
if not PACKS:
    reason = f"KSGEN_TEST_PACKS is not set: a folder with {KJ}, {VHS} and {RGTHREE}"
    pytest.skip(reason, allow_module_level=True)
if missing := [name for name in (KJ, VHS, RGTHREE) if not (Path(PACKS) / name / "__init__.py").is_file()]:
    pytest.skip(f"KSGEN_TEST_PACKS={PACKS} has no {', '.join(missing)}", allow_module_level=True)


@pytest.fixture(scope="module")
def looping(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = new_base_folder(tmp_path_factory.mktemp("packs") / "base")
    for name in (KJ, VHS, RGTHREE):
        os.symlink(Path(PACKS).resolve() / name, base / "custom_nodes" / name, target_is_directory=True)
    down, across = np.mgrid[0:48, 0:64]
    ramp = np.stack([across * 4, down * 5, 255 - across * 3], -1)
    Image.fromarray(ramp.astype(np.uint8)).save(base / "input" / "paper.png")
    server = Server(base)
    yield server
    server.stop()


@pytest.fixture
def seed() -> int:
    """A seed that no other test has, so that nothing is remembered at first."""
    return uuid.uuid4().int % 2**40


def runs_of(ran: Ran, body) -> int:
    """How often the body ran; all of its nodes ran as often."""
    counts = {name: ran.counts[name] for name in BODIES[body]}
    assert len(set(counts.values())) == 1, counts
    return next(iter(counts.values()))


def drive(server: Server, level: int) -> None:
    """Write the video that `vhs_driven` reads: six frames, each of another grey, the same file for the same level."""
    path = server.base / "input" / "drive.mkv"
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as file:
        stream = file.add_stream("ffv1", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "bgr0"
        for k in range(6):
            grey = np.full((48, 64, 3), level + 20 * k, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        file.mux(stream.encode(None))
    os.utime(path, (level, level))  # the pack's loaders tell files apart by their times


@pytest.fixture(autouse=True)
def driving(looping: Server) -> None:
    drive(looping, 40)


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_only_an_edited_step_runs_again(looping: Server, seed: int, body):
    first = run_well(looping, body(TEXTS, seed))
    assert runs_of(first, body) == 3 and first.report == "3 steps: 0 remembered, 3 made."
    assert runs_of(run_well(looping, body(TEXTS, seed)), body) == 0
    # The name is no part of what makes a result, but the host looks at the loop again.
    named = run_well(looping, body(TEXTS, seed, "tea"))
    assert runs_of(named, body) == 0 and named.report == "3 steps: 3 remembered, 0 made."
    edited = run_well(looping, body(EDITED, seed))
    assert runs_of(edited, body) == 1 and edited.report == "3 steps: 2 remembered, 1 made."


def test_a_restarted_server_remembers_all_of_them(looping: Server, seed: int):
    for body in BODIES:
        assert runs_of(run_well(looping, body(TEXTS, seed)), body) == 3
    server = Server(looping.base)
    try:
        for body in BODIES:
            ran = run_well(server, body(TEXTS, seed))
            assert runs_of(ran, body) == 0 and ran.report == "3 steps: 3 remembered, 0 made.", body
    finally:
        server.stop()


def test_frames_are_those_of_the_same_nodes_by_hand(looping: Server, seed: int):
    prompt = kj_pictures(TEXTS, seed)
    names = ("label", "resize", "match", "switch", "frames", "noise")
    for k, text in enumerate(TEXTS):
        gives = {1: text, 7: ["picture", 0], 10: seed, 12: 5, 16: k == 0}

        def by_hand(given, gives=gives, k=k):
            linked = isinstance(given, list)
            return (gives[given[1]] if given[0] == "start" else [f"{given[0]}{k}", given[1]]) if linked else given

        for name in names:
            inputs = {one: by_hand(given) for one, given in prompt[name]["inputs"].items()}
            prompt[f"{name}{k}"] = node(prompt[name]["class_type"], **inputs)
        prompt[f"hand{k}"] = node("PreviewImage", images=[f"noise{k}", 0])
    prompt["frames_of"] = node("KSGenClipFrames", clips=["end", 0], number=0, which="all frames")
    prompt["all"] = node("PreviewImage", images=["frames_of", 0])
    ran = run_well(looping, prompt)
    assert ran.counts["match"] == 2  # the first step does not ask for it
    looped = read_pictures(looping, ran.outputs["all"]["images"])
    hand = np.concatenate([read_pictures(looping, ran.outputs[f"hand{k}"]["images"]) for k in range(3)])
    assert looped.shape == (15, 80, 96, 3) and looped.std() > 1 and np.array_equal(looped, hand)


@pytest.mark.parametrize("kind", ["h264-mp4", "h265-mp4", "webm", "av1-webm", "ffv1-mkv", "ProRes"])
def test_a_file_of_video_combine_is_kept_as_it_is_with_its_sound(looping: Server, seed: int, kind: str):
    prompt = vhs_file(TEXTS, seed)
    prompt["combine"]["inputs"]["format"] = f"video/{kind}"
    prompt["parts"] = node("GetVideoComponents", video=["end", 3])
    prompt["split"] = node("VHS_SplitImages", images=["parts", 0], split_index=2)
    prompt["second"] = node("PreviewAny", source=["split", 3])
    prompt["join"] = node("KSGenJoinClips", clips=["end", 0])
    prompt["save"] = node("SaveVideo", video=["join", 0], filename_prefix="test/loop", format="auto", codec="auto")
    ran = run_well(looping, prompt)
    saved = [Path(ran.outputs[key]["gifs"][0]["fullpath"]) for key in ran.outputs if key.endswith("combine")]
    kept = [path.read_bytes() for path in (looping.base / "user" / "ksgen" / "results").rglob(f"clip{saved[0].suffix}")]
    assert len(saved) == 3 and all(path.read_bytes() in kept for path in saved)
    assert ran.outputs["second"]["text"] == ["3"] * 3  # of the list of videos, each split at frame 2
    film = looping.file(ran.outputs["save"]["images"][0])
    assert count_frames(film) == (15, 64, 64)
    with av.open(str(film)) as file:
        assert len(file.streams.audio) == 1
        assert abs(file.duration / av.time_base - 15 / 8) < 0.05


@pytest.mark.parametrize(("kind", "suffix"), [("image/webp", ".webp"), ("video/8bit-png", ".png")])
def test_what_is_no_video_file_is_refused_at_the_first_step(looping: Server, seed: int, kind: str, suffix: str):
    prompt = vhs_file(TEXTS, seed)
    prompt["combine"]["inputs"]["format"] = kind
    ran = run_counting(looping, prompt)
    (error,) = [details for what, details in ran.messages if what == "execution_error"]
    assert suffix in error["exception_message"] and ran.counts["combine"] == 1


def test_every_step_is_saved_beside_the_result(looping: Server, seed: int):
    ran = run_well(looping, vhs_beside(TEXTS, seed))
    saved = [entry["gifs"][0] for key, entry in ran.outputs.items() if key.endswith("combine")]
    assert len(saved) == 3
    for one in saved:
        assert count_frames(path := looping.file(one)) == (5, 64, 64)
        assert not path.with_name(path.name.replace("-audio", "")).exists()


def test_another_video_behind_a_loader_makes_every_step_anew(looping: Server, seed: int):
    for level, count in ((40, 3), (90, 3), (40, 0)):
        drive(looping, level)
        assert runs_of(run_well(looping, vhs_driven(TEXTS, seed)), vhs_driven) == count


def test_without_a_next_key_image_the_switch_takes_the_other_picture(looping: Server, seed: int):
    ran = run_well(looping, rgthree_switch(TEXTS, seed))
    compared = [entry["b_images"] for key, entry in ran.outputs.items() if key.endswith("compare")]
    assert [len(pictures) for pictures in compared] == [1, 1, 0]
    assert [entry["text"] for key, entry in ran.outputs.items() if key.endswith("display")] == [[one] for one in TEXTS]


def sound(mode: str) -> dict:
    """KJNodes' sound on the way; it says of itself that it always changes, or that it never does."""
    return node("PlaySoundKJ", any_input=["noise", 0], audio_path="", mode=mode, volume=0.5, duration=1.0)


def test_a_node_that_always_changes_is_named_and_nothing_behind_it_remembered(looping: Server, seed: int):
    prompt = kj_pictures(TEXTS, seed)
    prompt["sound"] = sound("always")
    prompt["end"]["inputs"]["result"] = ["sound", 0]
    for _ in range(2):
        ran = run_well(looping, prompt)
        assert runs_of(ran, kj_pictures) == 3 and "Nothing is remembered behind PlaySoundKJ:" in ran.report
    prompt["sound"] = sound("on_change")
    assert run_well(looping, prompt).report == "3 steps: 0 remembered, 3 made."
    assert runs_of(run_well(looping, prompt), kj_pictures) == 0


def test_a_node_that_says_a_random_number_is_named(looping: Server, seed: int):
    prompt = rgthree_switch(TEXTS, seed)
    prompt["own_seed"]["inputs"]["seed"] = -1  # a new one at every run, which it draws for itself
    for _ in range(2):
        ran = run_well(looping, prompt)
        assert ran.counts["label"] == 3 and "Nothing is remembered behind Seed (rgthree):" in ran.report


def test_beside_the_result_a_node_that_always_changes_costs_nothing(looping: Server, seed: int):
    prompt = kj_pictures(TEXTS, seed)
    prompt["sound"] = sound("always")
    assert run_well(looping, prompt).counts["sound"] == 3
    again = run_well(looping, prompt)
    assert again.counts["sound"] == 0 and runs_of(again, kj_pictures) == 0
