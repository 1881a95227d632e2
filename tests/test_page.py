"""The storyboard's HTML page: whole and well-formed, nothing from outside, every text escaped, the clips inside."""

from __future__ import annotations

import base64
import io
import re
import tracemalloc
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from film_files import sound_of, turn, write_with_sound
from PIL import Image

from ksgen_core.errors import KSGenError
from ksgen_core.export.page import LONGEST_CLIP_SIDE, LONGEST_PICTURE_SIDE, write_page
from ksgen_core.film.join import write_video
from ksgen_core.types import Clip, KeyStep, Plan
from ksgen_core.video import open_clip, write_lossless

VOID = {"meta", "link", "img", "br", "hr", "input", "source", "wbr"}
NASTY = [
    "<script>alert('goal')</script>",
    "say \"hello\" & 'bye' &amp; <b>bold</b> --> ]]> <!--",
    "ضع كيس الشاي في الكوب",
    "שפוך מים \u202e חמים",
    "🫖 pour 👩🏽‍🍳 tea",
    "</style></title><img src=https://example.org/x onerror=alert(1)>",
    "two\nlines",
]


class Element:
    def __init__(self, tag: str, attrs: dict[str, str | None], inside: tuple[str, ...]) -> None:
        self.tag, self.attrs, self.inside, self.text = tag, attrs, inside, ""


class Strict(HTMLParser):
    """The elements of a page, in order; fails on a tag that is not closed, or closed out of turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self.open: list[Element] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {[element.tag for element in self.open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"{tag} has an attribute twice: {names}"
        element = Element(tag, dict(attrs), tuple(one.tag for one in self.open))
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert tag not in VOID and self.open and self.open[-1].tag == tag, f"</{tag}> in {[e.tag for e in self.open]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment nobody wrote: {data}")

    def all(self, tag: str) -> list[Element]:
        return [element for element in self.elements if element.tag == tag]


def plan_of(count: int) -> Plan:
    return Plan("make a cup of tea", tuple(KeyStep(f"do thing {k + 1}") for k in range(count)), ("a book",))


def picture(k: int = 0, height: int = 24, width: int = 40) -> torch.Tensor:
    return torch.full((height, width, 3), 0.1 + 0.02 * k)


def film(count: int = 5, height: int = 24, width: int = 40) -> torch.Tensor:
    return torch.linspace(0, 1, count)[:, None, None, None].expand(count, height, width, 3).clone()


def read(path: Path) -> Strict:
    return Strict(path.read_bytes().decode("utf-8"))


def inside(url: str | None) -> bytes:
    assert url is not None
    return base64.b64decode(url.split(";base64,", 1)[1], validate=True)


def decoded(data: bytes) -> list[av.VideoFrame]:
    with av.open(io.BytesIO(data)) as file:
        assert file.streams.video[0].codec_context.name == "h264"
        assert file.streams.video[0].pix_fmt == "yuv420p"
        return list(file.decode(video=0))


def test_every_step_has_its_number_text_states_picture_and_clip_in_order(tmp_path: Path):
    plan = Plan("make tea", (KeyStep("boil", before="cold", after="hot"), KeyStep("pour", after="full")), ("x",), "me")
    images = [picture(0), picture(20)]
    write_page(tmp_path / "page.html", plan, images, [Clip.of(film(5), 8.0), Clip.of(film(7), 8.0)])
    page = read(tmp_path / "page.html")
    assert [e.text for e in page.all("title")] == ["Make tea"] and page.all("h1")[0].text == "Make tea"
    assert page.all("html")[0].attrs["lang"] == "en"
    assert [e.text for e in page.all("h2")] == ["boil", "pour"]
    assert [e.text for e in page.all("span") if e.attrs.get("class") == "number"] == ["1", "2"]
    assert [e.text for e in page.all("dd")] == ["cold", "hot", "full"]
    assert [e.text for e in page.all("dt")] == ["Before", "After", "After"]
    for given, shown in zip(images, page.all("img"), strict=True):
        with Image.open(io.BytesIO(inside(shown.attrs["src"]))) as image:
            assert image.format == "JPEG"
            assert (str(image.width), str(image.height)) == (shown.attrs["width"], shown.attrs["height"])
            assert abs(image.getpixel((9, 9))[0] - float(given[9, 9, 0]) * 255) < 3
    assert [e.attrs["alt"] for e in page.all("img")] == ["Key image of step 1: boil", "Key image of step 2: pour"]
    videos = page.all("video")
    assert [len(decoded(inside(e.attrs["src"]))) for e in videos] == [5, 7]
    for e in videos:
        assert {"controls", "muted", "loop", "playsinline", "aria-label", "poster"} <= set(e.attrs)
        assert "autoplay" not in e.attrs
    assert page.all("footer")[0].text.split() == ["Planner:", "me", "The", "plan", "follows:", "x"]


def test_nothing_comes_from_outside_and_the_page_forbids_it(tmp_path: Path):
    plan = Plan("make tea", tuple(KeyStep(text, before=text, after=text) for text in NASTY), tuple(NASTY), NASTY[0])
    write_page(tmp_path / "page.html", plan, [picture()] * len(NASTY), [Clip.of(film(), 8.0)] * len(NASTY))
    page = read(tmp_path / "page.html")
    allowed = {"html", "head", "meta", "title", "link", "style", "body", "header", "main", "footer", "div", "h1", "h2"}
    allowed |= {"p", "button", "ol", "ul", "li", "article", "span", "figure", "figcaption", "img", "video", "dl", "dt"}
    assert {e.tag for e in page.elements} == allowed | {"dd", "script"}
    for e in page.elements:
        for name in ("src", "href", "poster", "srcset", "data", "action"):
            assert (e.attrs.get(name) or "data:").startswith("data:"), (e.tag, name)
        assert "style" not in e.attrs and not [name for name in e.attrs if name.startswith("on")]
    for e in (*page.all("style"), *page.all("script")):
        assert not re.search(r"url\(|@import|https?:|fetch|import\(", e.text)
    rules = next(e.attrs["content"] or "" for e in page.all("meta") if "http-equiv" in e.attrs)
    assert "default-src 'none'" in rules and "unsafe" not in rules and "http" not in rules


@pytest.mark.parametrize("text", NASTY)
def test_a_text_is_shown_as_it_is_and_never_read_as_html(tmp_path: Path, text: str):
    plan = Plan(text, (KeyStep(text, before=text, after=text),), (text,), text)
    write_page(tmp_path / "page.html", plan, [picture()], [Clip.of(film(), 8.0)])
    page = read(tmp_path / "page.html")
    assert page.all("title")[0].text == page.all("h1")[0].text == text[:1].upper() + text[1:]
    assert page.all("h2")[0].text == text
    assert [e.text for e in page.all("dd")] == [text, text]
    assert page.all("img")[0].attrs["alt"] == f"Key image of step 1: {text}"
    assert page.all("video")[0].attrs["aria-label"] == f"Clip of step 1: {text}"
    assert text in page.all("footer")[0].text and page.all("ul")[0].text == text
    assert len(page.all("script")) == 1 and len(page.all("img")) == 1
    for e in (*page.all("h1"), *page.all("h2"), *page.all("dd")):
        assert e.attrs["dir"] == "auto" and e.attrs["lang"] == "", "its direction and its language are its own"


def test_without_clips_the_page_has_pictures_and_neither_video_nor_script(tmp_path: Path):
    write_page(tmp_path / "page.html", plan_of(3), [picture(k) for k in range(3)])
    page = read(tmp_path / "page.html")
    assert len(page.all("img")) == 3
    assert not page.all("video") and not page.all("script") and not page.all("button") and not page.all("dl")


def test_a_step_without_a_clip_shows_its_picture_alone(tmp_path: Path):
    write_page(tmp_path / "page.html", plan_of(2), [picture()] * 2, [None, Clip.of(film(), 8.0)])
    page = read(tmp_path / "page.html")
    assert len(page.all("img")) == 2 and [e.attrs["aria-label"] for e in page.all("video")] == [
        "Clip of step 2: do thing 2"
    ]


def test_a_film_that_browsers_play_is_not_encoded_again(tmp_path: Path):
    noise = (torch.rand(9, 24, 40, 3) * 255).byte().float() / 255
    write_video(tmp_path / "clip.mp4", [Clip.of(noise, 8.0)])
    write_page(tmp_path / "page.html", plan_of(1), [picture()], [open_clip(tmp_path / "clip.mp4")])
    video = read(tmp_path / "page.html").all("video")[0]
    with av.open(str(tmp_path / "clip.mp4")) as file:
        own = [frame.to_ndarray() for frame in file.decode(video=0)]
    shown = [frame.to_ndarray() for frame in decoded(inside(video.attrs["src"]))]
    assert all(map(np.array_equal, own, shown)) and len(own) == len(shown) == 9


@pytest.mark.parametrize("size", [(24, 40), (720, 360)])
def test_the_workflow_in_a_film_is_not_given_to_strangers(tmp_path: Path, size: tuple[int, int]):
    with av.open(str(tmp_path / "clip.mp4"), "w", options={"movflags": "use_metadata_tags"}) as file:
        file.metadata["prompt"] = file.metadata["workflow"] = file.metadata["comment"] = "my own secret"
        stream = file.add_stream("libx264", rate=8)
        (stream.height, stream.width), stream.pix_fmt = size, "yuv420p"
        stream.metadata["title"] = "my own secret"
        for array in (film(4, *size) * 255).byte().numpy():
            file.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        file.mux(stream.encode(None))
    assert (tmp_path / "clip.mp4").read_bytes().count(b"my own secret") >= 3
    write_page(tmp_path / "page.html", plan_of(1), [picture()], [open_clip(tmp_path / "clip.mp4")])
    data = inside(read(tmp_path / "page.html").all("video")[0].attrs["src"])
    assert len(decoded(data)) == 4 and b"secret" not in data and b"workflow" not in data


@pytest.mark.parametrize(
    ("name", "sound", "size"),
    [
        ("a.mp4", "aac", 32),
        ("a.mp4", "aac", 720),
        ("a.mp4", "ac3", 32),
        ("a.mov", "pcm_s16le", 32),
        ("a.webm", "", 720),
    ],
)
def test_the_sound_of_a_clip_is_kept_in_a_kind_that_browsers_play(tmp_path: Path, name: str, sound: str, size: int):
    path = write_with_sound(tmp_path / name, 1.0, sound=sound, size=size)
    write_page(tmp_path / "page.html", plan_of(1), [picture()], [open_clip(path)])
    (tmp_path / "shown.mp4").write_bytes(inside(read(tmp_path / "page.html").all("video")[0].attrs["src"]))
    samples, said = sound_of(tmp_path / "shown.mp4")
    assert said["codec"] == "aac" and float(said["seconds"]) == pytest.approx(1.0, abs=0.05)
    assert 0.3 < np.sqrt(2) * samples[0, 12000:36000].std() < 0.7


@pytest.mark.parametrize("long", [64, 1280])
def test_a_film_that_was_taken_upright_lies_upright(tmp_path: Path, long: int):
    """Twice as wide as high in the file, left half dark; turned to the right the dark half is the upper one."""
    frames = torch.zeros(4, long // 2, long, 3)
    frames[:, :, long // 2 :] = 1
    write_video(tmp_path / "clip.mp4", [Clip.of(frames, 8.0)])
    turn(tmp_path / "clip.mp4")
    write_page(tmp_path / "page.html", plan_of(1), [picture()], [open_clip(tmp_path / "clip.mp4")])
    video = read(tmp_path / "page.html").all("video")[0]
    size, high = (str(min(long, 640) // 2), str(min(long, 640))), min(long, 640) // 2
    assert (video.attrs["width"], video.attrs["height"]) == size
    frame = decoded(inside(video.attrs["src"]))[0]
    array = frame.to_ndarray(format="rgb24")
    assert not getattr(frame, "rotation", 0) and array.shape[:2] == (2 * high, high)
    assert array[: high - 8].max() < 16 and array[high + 8 :].min() > 239
    with Image.open(io.BytesIO(inside(video.attrs["poster"]))) as poster:
        assert poster.height == 2 * poster.width
        assert poster.getpixel((2, 2))[0] < 16 and poster.getpixel((2, poster.height - 3))[0] > 239


@pytest.mark.parametrize("kind", ["in memory", "in a file"])
def test_the_poster_has_the_films_colours(tmp_path: Path, kind: str):
    """BT.709, as the film names it: read as BT.601, this red would be some 20 levels off."""
    colour = torch.tensor([0.8, 0.1, 0.2])
    clip = Clip.of(colour.expand(3, 48, 64, 3).clone(), 8.0)
    if kind == "in a file":
        write_video(tmp_path / "clip.mp4", [clip])
        clip = open_clip(tmp_path / "clip.mp4")
    write_page(tmp_path / "page.html", plan_of(1), [picture()], [clip])
    video = read(tmp_path / "page.html").all("video")[0]
    with Image.open(io.BytesIO(inside(video.attrs["poster"]))) as poster:
        assert poster.getpixel((20, 20)) == pytest.approx((204, 25.5, 51), abs=4)


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [("a.mkv", "ffv1", "bgr0"), ("a.mp4", "libx264", "yuv444p"), ("a.mkv", "libx264", "yuv420p")],
)
def test_any_other_film_is_encoded_anew(tmp_path: Path, name: str, codec: str, pix_fmt: str):
    with av.open(str(tmp_path / name), "w") as file:
        stream = file.add_stream(codec, rate=8)
        stream.width, stream.height, stream.pix_fmt = 40, 24, pix_fmt
        for k in range(6):
            array = (film(6)[k] * 255).byte().numpy()
            file.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24").reformat(format=pix_fmt)))
        file.mux(stream.encode(None))
    write_page(tmp_path / "page.html", plan_of(1), [picture()], [open_clip(tmp_path / name)])
    frames = decoded(inside(read(tmp_path / "page.html").all("video")[0].attrs["src"]))
    assert len(frames) == 6 and (frames[0].width, frames[0].height) == (40, 24)
    levels = [float(frame.to_ndarray(format="rgb24").mean()) for frame in frames]
    assert levels == pytest.approx([51 * k for k in range(6)], abs=4)


def test_large_pictures_and_films_are_made_smaller_and_keep_their_shape(tmp_path: Path):
    images, clips = [picture(0, 1000, 2000)], [Clip.of(film(2, 500, 1001), 8.0)]
    write_video(tmp_path / "clip.mp4", clips)
    for made in (clips, [open_clip(tmp_path / "clip.mp4")]):
        write_page(tmp_path / "page.html", plan_of(1), images, made)
        page = read(tmp_path / "page.html")
        frame = decoded(inside(page.all("video")[0].attrs["src"]))[0]
        assert (frame.width, frame.height) == (LONGEST_CLIP_SIDE, 320)
        assert (page.all("video")[0].attrs["width"], page.all("video")[0].attrs["height"]) == ("640", "320")
    image = page.all("img")[0]
    assert (image.attrs["width"], image.attrs["height"]) == (str(LONGEST_PICTURE_SIDE), "640")
    assert images[0].shape == (1000, 2000, 3)


def test_twenty_steps_are_written_one_at_a_time(tmp_path: Path):
    """The memory that Python holds does not grow with the number of steps; tensors and codecs have their own."""
    side, count = 256, 20
    write_video(tmp_path / "clip.mp4", [Clip.of(torch.rand(8, side, side, 3), 8.0)])
    size = (tmp_path / "clip.mp4").stat().st_size * 4 // 3
    seen = []

    def images():
        for k in range(count):
            yield picture(k, side, side)

    tracemalloc.start()
    try:
        write_page(
            tmp_path / "page.html",
            plan_of(count),
            images(),
            [open_clip(tmp_path / "clip.mp4")] * count,
            progress=lambda number, total: seen.append((number, total)),
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seen == [(done, count) for k in range(count) for done in (*[k] * 8, k + 1)], "per frame and per step"
    whole = (tmp_path / "page.html").stat().st_size
    assert whole > count * size and peak < whole / 5
    page = read(tmp_path / "page.html")
    assert [e.text for e in page.all("h2")] == [f"do thing {k + 1}" for k in range(count)]
    assert [e.attrs["id"] for e in page.all("li") if "id" in e.attrs] == [f"step-{k + 1}" for k in range(count)]


def test_of_a_large_film_in_a_file_only_frames_are_in_memory(tmp_path: Path):
    size = (24, 360, 720)
    write_lossless(tmp_path / "clip.mkv", film(*size), 24000 / 1001)
    tracemalloc.start()
    try:
        write_page(tmp_path / "page.html", plan_of(1), [picture()], [open_clip(tmp_path / "clip.mkv")])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 24 * 360 * 720 * 3 / 3
    data = inside(read(tmp_path / "page.html").all("video")[0].attrs["src"])
    assert len(decoded(data)) == 24
    with av.open(io.BytesIO(data)) as file:
        assert file.streams.video[0].average_rate == Fraction(24000, 1001)


def test_the_same_storyboard_gives_the_same_file(tmp_path: Path):
    for name in ("a.html", "b.html"):
        write_page(tmp_path / name, plan_of(2), [picture(), picture(9)], [Clip.of(film(), 8.0)] * 2)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path):
    (tmp_path / "page.html").write_text("before")

    def stop(number: int, _total: int) -> None:
        if number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_page(tmp_path / "page.html", plan_of(3), [picture()] * 3, progress=stop)
    with pytest.raises(ValueError):
        write_page(tmp_path / "page.html", plan_of(3), [picture()] * 2)
    with pytest.raises(ValueError, match="each of 3 steps, got 2"):
        write_page(tmp_path / "page.html", plan_of(3), [picture()] * 3, [None] * 2)
    calls = []

    def stop_in_a_clip(number: int, _total: int) -> None:
        calls.append(number)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_page(tmp_path / "page.html", plan_of(1), [picture()], [Clip.of(film(5), 8.0)], progress=stop_in_a_clip)
    assert calls == [0, 0], "after the second of five frames"
    (tmp_path / "clip.mp4").write_bytes(b"no film at all")
    broken = Clip(8.0, lambda: open_clip(tmp_path / "clip.mp4").frames, tmp_path / "clip.mp4")
    with pytest.raises(KSGenError, match="clip.mp4 cannot be read as a video"):
        write_page(tmp_path / "page.html", plan_of(1), [picture()], [broken])
    assert (tmp_path / "page.html").read_text() == "before"
    assert {path.name for path in tmp_path.iterdir()} == {"page.html", "clip.mp4"}
