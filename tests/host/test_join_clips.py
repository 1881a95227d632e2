"""'Join Clips' and 'Save Storyboard' in a real ComfyUI server: films with chapters, subtitles, sound; cancelling."""

from __future__ import annotations

import uuid
from fractions import Fraction
from pathlib import Path

import av
import pytest
from comfy_server import NodeFailed, Server
from test_run import Prompt, node

TEXTS = ["put the tea bag into the mug", "pour hot water", "stir"]


def film(**join) -> Prompt:
    """Three clips of one colour each, of 8 frames, joined and saved; `join` are further inputs of 'Join Clips'."""
    prompt: Prompt = {
        "plan": node("KSGenPlanFromText", goal="make tea", text="\n".join(TEXTS)),
        "lists": node("KSGenStepLists", plan=["plan", 0], seed=0),
        "picture": node("EmptyImage", width=64, height=48, batch_size=8, color=0x336699),
        # A list input makes the native node run once per step.
        "noise": node("ImageAddNoise", image=["picture", 0], seed=["lists", 2], strength=0.01),
        "collect": node("KSGenCollectClips", frames=["noise", 0], fps=8.0),
        "join": node("KSGenJoinClips", clips=["collect", 0], **join),
        "save": node("SaveVideo", video=["join", 0], filename_prefix=f"test/{uuid.uuid4().hex}", format="auto"),
    }
    return prompt


def saved(server: Server, prompt: Prompt) -> Path:
    return server.file(server.run(prompt)["save"]["images"][0])


def told_of(path: Path) -> dict:
    """What a film's file says of itself."""
    with av.open(str(path)) as file:
        video = file.streams.video[0]
        return {
            "frames": video.frames,
            "seconds": Fraction(video.duration or 0) * (video.time_base or 0),
            "chapters": [chapter["metadata"]["title"] for chapter in file.chapters()],
            "sound": len(file.streams.audio),
            "subtitles": [
                bytes(packet)[2:].decode()
                for stream in file.streams.subtitles
                for packet in file.demux(stream)
                if packet.size > 2
            ],
        }


def test_a_graph_saved_before_the_node_had_settings_still_runs(server: Server):
    told = told_of(saved(server, film()))
    assert (told["frames"], told["seconds"], told["subtitles"], told["sound"]) == (24, 3, [], 0)


def test_frames_that_clips_repeat_are_left_out(server: Server):
    told = told_of(saved(server, film(overlap=2)))
    assert (told["frames"], told["seconds"]) == (20, Fraction(20, 8))
    with pytest.raises(NodeFailed, match="Clip 2 has 8 frames"):
        server.run(film(overlap=8))


def test_the_plans_texts_go_with_the_film(server: Server):
    path = saved(server, film(plan=["plan", 0], cross_fade=0.25, titles=True))
    told = told_of(path)
    assert (told["frames"], told["seconds"]) == (20, Fraction(5, 2))
    assert told["subtitles"] == TEXTS, "Save Video keeps the track"
    made = max((server.base / "temp").glob("ksgen_skill_*.mp4"), key=lambda file: file.stat().st_mtime_ns)
    assert told_of(made)["chapters"] == [f"{number}. {text}" for number, text in enumerate(TEXTS, 1)]
    assert told_of(made)["subtitles"] == TEXTS


@pytest.mark.parametrize(
    ("inputs", "words"),
    [({"cross_fade": 0.75}, "Clip 1 lasts 1 s"), ({"titles": True}, "none is connected")],
)
def test_what_cannot_be_joined_is_said_in_words(server: Server, inputs, words):
    before = set((server.base / "temp").glob("*"))
    with pytest.raises(NodeFailed) as failed:
        server.run(film(**inputs))
    assert words in failed.value.message
    assert set((server.base / "temp").glob("*")) <= before


def test_a_join_that_is_cancelled_leaves_nothing_and_the_next_one_runs(server: Server):
    prompt = film()
    prompt["picture"]["inputs"] |= {"width": 256, "height": 256, "batch_size": 150}
    before = set((server.base / "temp").glob("*"))
    client = uuid.uuid4().hex
    with server.listen(client) as messages:
        prompt_id = server.queue(prompt, client)
        while True:
            message = messages.next()
            state = isinstance(message, dict) and message["type"] == "progress" and message["data"]
            if state and state["node"] == "join" and state["value"] > 1:
                assert state["max"] == 450
                break
        server.post("/interrupt", {})
        entry = server.wait(prompt_id)
    assert not entry["status"]["completed"]
    assert [kind for kind, _ in entry["status"]["messages"]][-1] == "execution_interrupted"
    assert set((server.base / "temp").glob("*")) == before, "nor a file that was being written"
    assert told_of(saved(server, film()))["frames"] == 24


def test_the_saved_folder_holds_chapters_and_subtitles(server: Server):
    prompt = film()
    prompt["pictures"] = node("ImageFromBatch", image=["picture", 0], batch_index=0, length=3)
    prompt["folder"] = node(
        "KSGenSaveStoryboard",
        plan=["plan", 0],
        key_images=["pictures", 0],
        clips=["collect", 0],
        filename_prefix="test/film",
    )
    del prompt["join"], prompt["save"]
    server.run(prompt)
    folder = server.base / "output" / "test" / "film_00001"
    told = told_of(folder / "skill.mp4")
    assert told["chapters"] == [f"{number}. {text}" for number, text in enumerate(TEXTS, 1)]
    assert told["subtitles"] == TEXTS and told["seconds"] == 3
    assert "00:00:01,000 --> 00:00:02,000\npour hot water\n" in (folder / "skill.srt").read_text(encoding="utf-8")
    assert (folder / "skill.vtt").read_text(encoding="utf-8").startswith("WEBVTT")
