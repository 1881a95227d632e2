"""The film of a loop, saved with what Save Video would leave out."""

from __future__ import annotations

import av
import pytest
from comfy_server import NodeFailed, Server
from test_run import node


def film(**inputs) -> dict:
    prompt = {
        "plan": node("KSGenPlanFromText", goal="cook potatoes", text="wash\npeel"),
        "frames": node("EmptyImage", width=64, height=48, batch_size=8, color=0x336699),
        "lists": node("KSGenStepLists", plan=["plan", 0], seed=0),
        "noise": node("ImageAddNoise", image=["frames", 0], seed=["lists", 2], strength=0.1),
        "clips": node("KSGenCollectClips", frames=["noise", 0], fps=8.0),
        "film": node("KSGenSaveFilm", clips=["clips", 0], filename_prefix="test/saved", **inputs),
    }
    return prompt


def test_a_saved_film_has_chapters_and_subtitles_in_it_and_beside_it(server: Server):
    outputs = server.run(film(plan=["plan", 0]))
    path = server.file(outputs["film"]["images"][0])
    with av.open(str(path)) as file:
        assert [chapter["metadata"]["title"] for chapter in file.chapters()] == ["1. wash", "2. peel"]
        assert len(file.streams.subtitles) == 1 and file.streams.video[0].frames == 16
    assert "00:00:01,000 --> 00:00:02,000\npeel" in path.with_suffix(".srt").read_text(encoding="utf-8")
    assert path.with_suffix(".vtt").read_text(encoding="utf-8").startswith("WEBVTT")


def test_subtitles_beside_the_film_know_of_the_overlap(server: Server):
    path = server.file(server.run(film(plan=["plan", 0], overlap=4))["film"]["images"][0])
    with av.open(str(path)) as file:
        assert file.streams.video[0].frames == 12
    assert "00:00:01,000 --> 00:00:01,500\npeel" in path.with_suffix(".srt").read_text(encoding="utf-8")


def test_without_a_plan_nothing_lies_beside_the_film(server: Server):
    outputs = server.run(film())
    path = server.file(outputs["film"]["images"][0])
    assert path.is_file() and not path.with_suffix(".srt").exists()
    with pytest.raises(NodeFailed, match="none is connected"):
        server.run(film(titles=True))


def test_first_frames_stand_in_for_key_images(server: Server):
    prompt = film()
    prompt["sheet"] = node("KSGenStoryboard", plan=["plan", 0], clips=["clips", 0])
    prompt["shown"] = node("PreviewImage", images=["sheet", 0])
    assert len(server.run(prompt)["shown"]["images"]) == 1
    del prompt["sheet"]["inputs"]["clips"]
    with pytest.raises(NodeFailed, match="needs key images, or clips"):
        server.run(prompt)
