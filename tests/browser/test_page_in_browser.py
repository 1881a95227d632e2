"""The storyboard's page and the animated WebP in headless Chromium, from a file, without a server.

Needs the development extras (playwright) and a Chromium or Chrome.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("playwright.sync_api", reason="NO PLAYWRIGHT, so the page was not tested: pip install -e .[dev]")

from chromium import HOW_TO_GET_CHROMIUM, browser_path  # noqa: E402
from playwright.sync_api import Browser, Page, sync_playwright  # noqa: E402

from ksgen_core.export.animation import write_webp  # noqa: E402
from ksgen_core.export.page import write_page  # noqa: E402
from ksgen_core.types import Clip, KeyStep, Plan  # noqa: E402

if browser_path() is None:
    pytest.skip(f"NO CHROMIUM FOUND, so the page was not tested. {HOW_TO_GET_CHROMIUM}", allow_module_level=True)

TEXTS = ["boil <script>alert(1)</script> & 'wait'", "ضع كيس الشاي في الكوب", "pour"]
STEPS = tuple(KeyStep(text, before="cold", after="hot") for text in TEXTS)
PLAN = Plan("make <img src=https://example.org/x> tea", STEPS, ("https://example.org/",))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of three steps, the last of which has no clip."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    frames = torch.linspace(0, 1, 4)[:, None, None, None].expand(4, 48, 80, 3).clone()
    clips = [Clip.of(frames, 16.0), Clip.of(frames.mT[..., :80, :].mT.flip(0), 16.0), None]
    write_page(path, PLAN, [torch.full((48, 80, 3), 0.25 * k) for k in range(1, 4)], clips)
    return path


class Visit:
    """A page that is open, what it asked the network for and what it complained about."""

    def __init__(self, browser: Browser, file: Path, **options) -> None:
        self.context = browser.new_context(**options)
        self.context.set_offline(True)
        self.page: Page = self.context.new_page()
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(file.as_uri())

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_error: object) -> None:
        self.context.close()


LOADED = "() => [...document.querySelectorAll('video')].every(video => video.readyState >= 2)"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_it_opens_without_the_network_and_without_complaint(browser: Browser, file: Path, scheme: str, width: int):
    with Visit(browser, file, color_scheme=scheme, viewport={"width": width, "height": 800}) as visit:
        page = visit.page
        page.wait_for_function(LOADED)
        assert [url for url in visit.asked if not url.startswith("data:")] == [file.as_uri()]
        assert visit.complaints == []
        sizes = page.evaluate("() => [...document.querySelectorAll('video')].map(v => [v.videoWidth, v.videoHeight])")
        assert sizes == [[80, 48]] * 2
        assert page.evaluate("() => [...document.images].map(i => i.complete && i.naturalWidth)") == [80] * 3
        assert page.locator("h2").all_text_contents() == TEXTS
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width, "nothing sticks out"
        paper = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, paper[4:-1].split(","))) < 3 * 128) == (scheme == "dark")
        assert page.evaluate("() => getComputedStyle(document.querySelectorAll('h2')[1]).direction") == "rtl"


def test_play_all_plays_one_clip_after_the_other_and_can_be_stopped(browser: Browser, file: Path):
    with Visit(browser, file) as visit:
        page = visit.page
        page.evaluate(
            """() => { window.played = []; document.querySelectorAll('video').forEach((film, k) =>
                ['play', 'ended'].forEach(what => film.addEventListener(what, () => played.push(what + k)))) }"""
        )
        page.get_by_role("button", name="Play all").click()
        page.wait_for_function("() => window.played.length === 4")
        assert page.evaluate("() => window.played") == ["play0", "ended0", "play1", "ended1"]
        page.get_by_role("button", name="Play all").wait_for()
        assert page.evaluate("() => [...document.querySelectorAll('video')].map(film => film.loop)") == [True, True]
        page.get_by_role("button", name="Play all").click()
        page.get_by_role("button", name="Stop").click()
        assert page.evaluate("() => [...document.querySelectorAll('video')].every(film => film.paused)")
        assert page.locator("article.playing").count() == 0 and visit.complaints == []


def test_one_clip_plays_again_and_again_with_controls(browser: Browser, file: Path):
    with Visit(browser, file) as visit:
        page = visit.page
        assert page.locator("video[controls]").count() == 0
        page.get_by_role("button", name="Play: Clip of step 1").click()
        first = "document.querySelector('video')"
        page.wait_for_function(f"() => !{first}.paused && {first}.played.length && {first}.currentTime > 0")
        assert page.evaluate(f"() => [{first}.controls, {first}.loop, {first}.muted]") == [True, True, True]
        assert page.get_by_role("button", name="Play: Clip of step 1").count() == 0


def test_it_reads_and_plays_without_javascript(browser: Browser, file: Path):
    with Visit(browser, file, java_script_enabled=False) as visit:
        page = visit.page
        assert page.locator("h2").all_text_contents() == TEXTS
        assert page.locator("video[controls]").count() == 2
        assert not page.locator("button").is_visible()


def test_it_prints_pictures_in_place_of_clips(browser: Browser, file: Path):
    with Visit(browser, file) as visit:
        page = visit.page
        page.emulate_media(media="print")
        assert [image.is_visible() for image in page.locator("img").all()] == [True] * 3
        assert not any(film.is_visible() for film in page.locator("video").all())
        assert not any(button.is_visible() for button in page.locator("button").all())
        tops = page.evaluate("() => [...document.querySelectorAll('article')].map(a => a.getBoundingClientRect().top)")
        assert len(set(tops)) == 1, "three steps stand side by side"


def test_chromium_shows_every_frame_of_an_animated_webp_for_its_time(browser: Browser, tmp_path: Path):
    frames = torch.linspace(0, 1, 12)[:, None, None, None].expand(12, 48, 80, 3).clone()
    write_webp(tmp_path / "a.webp", [Clip.of(frames, 24000 / 1001), Clip.of(frames[:6], 8.0)])
    with Visit(browser, tmp_path / "a.webp") as visit:
        found = visit.page.evaluate(
            """async (bytes) => {
                const decoder = new ImageDecoder({ data: new Uint8Array(bytes), type: "image/webp" })
                await decoder.tracks.ready
                const track = decoder.tracks.selectedTrack, times = []
                for (let k = 0; k < track.frameCount; k++) {
                    const { image } = await decoder.decode({ frameIndex: k })
                    times.push([image.codedWidth, image.codedHeight, image.duration / 1000])
                }
                return [track.animated, track.repetitionCount, times]
            }""",
            list((tmp_path / "a.webp").read_bytes()),
        )
    animated, repeats, times = found
    assert animated and repeats in (None, float("inf")) and {(w, h) for w, h, _ in times} == {(80, 48)}
    assert len(times) == 18 and sum(t for _, _, t in times) == 500 + 6 * 125
