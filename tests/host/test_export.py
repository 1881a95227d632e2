"""The export nodes in a real ComfyUI server."""

from __future__ import annotations

import base64
import io
import re

import av
import pytest
from comfy_server import NodeFailed, Server
from conftest import GOAL, TEXTS
from PIL import Image

Prompt = dict[str, dict]
COLOURS = (0xCC3322, 0x22AA44, 0x3355DD)


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def storyboard(**changes: dict) -> Prompt:
    """A plan written by hand, a grey key image per step, and clips of two frames: black, then the step's colour."""
    lines = "\n".join(f"{text} | seed {colour}" for text, colour in zip(TEXTS, COLOURS, strict=True))
    prompt = {
        "plan": node("KSGenPlanFromText", goal=GOAL, text=lines),
        "images": node("EmptyImage", width=64, height=48, batch_size=3, color=0x808080),
        "lists": node("KSGenStepLists", plan=["plan", 0], seed=0),
        "black": node("EmptyImage", width=64, height=48, batch_size=1, color=0),
        "colour": node("EmptyImage", width=64, height=48, batch_size=1, color=["lists", 2]),
        "films": node("ImageBatch", image1=["black", 0], image2=["colour", 0]),
        "clips": node("KSGenCollectClips", frames=["films", 0], fps=8.0),
        "page": node(
            "KSGenExportPage",
            plan=["plan", 0],
            key_images=["images", 0],
            clips=["clips", 0],
            filename_prefix="test/page",
        ),
        "webp": node("KSGenSaveWebP", clips=["clips", 0], width=0, quality=80, filename_prefix="test/a.b"),
    }
    for name, inputs in changes.items():
        prompt[name]["inputs"] |= inputs
    return prompt


def test_a_page_and_an_animation_are_saved_and_never_overwritten(server: Server):
    prompt = storyboard()
    prompt["show"] = node("PreviewAny", source=["page", 0])
    outputs = server.run(prompt)
    folder = server.base / "output" / "test"
    assert outputs["show"]["text"] == outputs["page"]["text"] == [str(folder / "page_00001.html")]
    page = (folder / "page_00001.html").read_text(encoding="utf-8")
    assert all(f'lang="">{text}</h2>' in page for text in TEXTS) and page.count("<img ") == 3
    films = re.findall(r'src="data:video/mp4;base64,([^"]+)"', page)
    for film, colour in zip(films, COLOURS, strict=True):
        with av.open(io.BytesIO(base64.b64decode(film))) as file:
            frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
        assert len(frames) == 2 and frames[0].max() < 8
        assert frames[1].mean((0, 1)) == pytest.approx(list(colour.to_bytes(3, "big")), abs=6)

    shown = outputs["webp"]
    assert shown["animated"] == [True] and shown["images"][0]["filename"] == "a.b_00001.webp"
    with Image.open(server.file(shown["images"][0])) as image:
        assert image.size == (64, 48) and image.n_frames == 6
    before = page.encode()
    again = server.run(storyboard(webp={"width": 32}, page={"filename_prefix": "test/page"}, plan={"goal": "tea"}))
    assert again["page"]["text"] == [str(folder / "page_00002.html")]
    assert (folder / "page_00001.html").read_bytes() == before
    with Image.open(server.file(again["webp"]["images"][0])) as image:
        assert image.size == (32, 24)
    assert {path.name for path in folder.glob("a.b*")} == {"a.b_00001.webp", "a.b_00002.webp"}


def test_a_page_needs_no_clips(server: Server):
    prompt = storyboard(page={"filename_prefix": "test/stills"})
    prompt = {name: prompt[name] for name in ("plan", "images", "page")}
    del prompt["page"]["inputs"]["clips"]
    server.run(prompt)
    page = (server.base / "output" / "test" / "stills_00001.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 3 and "<video" not in page


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": {"batch_size": 2}}, r"The plan has 3 steps, but 2 key image\(s\) came in"),
        ({"clips": {"frames": ["images", 0]}}, r"The plan has 3 steps, but 1 clip\(s\) came in"),
    ],
)
def test_what_does_not_belong_together_is_refused(server: Server, changes: dict, words: str):
    prompt = storyboard(**changes)
    del prompt["webp"]
    with pytest.raises(NodeFailed, match=words):
        server.run(prompt)
