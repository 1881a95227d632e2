"""A storyboard as one HTML file that can be sent to anybody: goal, steps, key images and clips, all inside.

The file asks for nothing from outside, and its own Content-Security-Policy forbids it to. It reads without JavaScript,
in a light and a dark dress, on a telephone, and prints as a contact sheet.
Legend: H, W height and width in pixels, F frames.
"""

from __future__ import annotations

import base64
import hashlib
import io
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TextIO

from .. import pixels
from ..checkpoints import write_atomically
from ..film.join import FilmSettings, join
from ..types import Clip, KeyStep, Plan
from ..video import first_frame, measure, open_clip
from .page_look import SCRIPT, STYLE

if TYPE_CHECKING:
    import torch
    from PIL import Image

LONGEST_CLIP_SIDE = 640
"""A larger clip is made smaller: on the page it is some hundred pixels wide."""
LONGEST_PICTURE_SIDE = 1280
LONGEST_POSTER_SIDE = 320
"""Of the picture that stands where a clip will play; some telephones show nothing there until it does."""
JPEG = {"format": "JPEG", "quality": 88, "subsampling": 0}
"""Pillow's options: whole colour resolution, since thin coloured edges are what a coarse one spoils. Neither `optimize`
nor `progressive`: with them Pillow's buffer is too small for a picture of noise, as an untrained model makes it."""
CHUNK = 3 * 2**16
"""Bytes that are turned into base64 at a time: a multiple of three, so that the parts join without filling."""


def write_page(
    path: str | Path,
    plan: Plan,
    images: Iterable[torch.Tensor],
    clips: Sequence[Clip | None] | None = None,
    *,
    progress: Callable[[int, int], object] | None = None,
) -> None:
    """Write the storyboard as one HTML page; `path` is written whole or not at all.

    `images` has the key image `[H, W, 3]` of each step, `clips` the clip of each step, or None where there is none.
    One step is held at a time, if `images` is read lazily and the clips lie in files. The pictures of a clip in an
    H.264 file of at most `LONGEST_CLIP_SIDE` pixels a side go in as they are, any other's are encoded anew, as all
    sound is; what else a file holds, such as the workflow it was made with, does not go in.
    `progress` is called after each frame of a clip and after each step with how many steps are done, of how many; what
    it raises ends the writing.
    Raises `KSGenError` if a picture or a clip cannot be read or the file cannot be written.
    """
    count = len(plan.steps)
    if clips is not None and len(clips) != count:
        raise ValueError(f"a page needs a clip, or None, for each of {count} steps, got {len(clips)}")
    films = clips or [None] * count
    show = progress or (lambda *_: None)

    def write(temporary: str) -> None:
        with open(temporary, "w", encoding="utf-8", newline="\n") as page:
            page.write(_head(plan, any(films)))
            for number, (step, image, clip) in enumerate(zip(plan.steps, images, films, strict=True), 1):
                _write_step(page, number, step, image, clip, partial(show, number - 1, count))
                show(number, count)
            page.write(_foot(plan, any(films)))

    write_atomically(path, write)


def _head(plan: Plan, plays: bool) -> str:
    rules = f"default-src 'none'; base-uri 'none'; form-action 'none'; style-src {_hash(STYLE)}; img-src data:"
    if plays:
        rules += f"; media-src data:; script-src {_hash(SCRIPT)}"
    goal = escape(plan.goal[:1].upper() + plan.goal[1:])
    count = len(plan.steps)
    button = '<button type="button" id="play" hidden>Play all</button>\n' if plays else ""
    icon = (
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 2 2'><circle cx='1' cy='1' r='1' fill='#ce5c34'/></svg>"
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{rules}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="KS-Gen">
<title>{goal}</title>
<link rel="icon" href="data:image/svg+xml;base64,{base64.b64encode(icon.encode()).decode()}">
<style>{STYLE}</style>
</head>
<body>
<header>
<div>
<h1 dir="auto" lang="">{goal}</h1>
<p>{count} key step{"s" if count > 1 else ""}</p>
</div>
{button}</header>
<main>
<ol class="{"films" if plays else "stills"}{" few" if count <= 2 else ""}">
"""


def _write_step(
    page: TextIO, number: int, step: KeyStep, image: torch.Tensor, clip: Clip | None, show: Callable[[], object]
) -> None:
    from PIL import Image

    text = escape(step.text)
    page.write(
        f'<li id="step-{number}">\n<article>\n<div class="head"><span class="number">{number}</span>'
        f'<h2 dir="auto" lang="">{text}</h2></div>\n<div class="pictures">\n<figure class="still">'
    )
    picture = pixels.to_pil(pixels.one_picture(image))
    picture.thumbnail((LONGEST_PICTURE_SIDE, LONGEST_PICTURE_SIDE), Image.Resampling.LANCZOS)
    page.write(f'<img width="{picture.width}" height="{picture.height}" alt="Key image of step {number}: {text}" src="')
    _write_picture(page, picture)
    page.write('"><figcaption>Key image</figcaption></figure>\n')
    if clip is not None:
        with tempfile.TemporaryDirectory(prefix="ksgen-page-") as folder:
            file, picture, seconds = _film(clip, Path(folder), show)
            page.write(
                f'<figure class="film"><div class="screen">\n<video width="{picture.width}" height="{picture.height}" '
                f'controls muted loop playsinline preload="metadata" aria-label="Clip of step {number}: {text}" '
                'poster="'
            )
            picture.thumbnail((LONGEST_POSTER_SIDE, LONGEST_POSTER_SIDE))
            _write_picture(page, picture)
            page.write('" src="')
            with file.open("rb") as source:
                _write_data(page, "video/mp4", source)
        page.write(f'"></video></div><figcaption>Clip, {seconds:.1f} s</figcaption></figure>\n')
    page.write("</div>\n")
    states = [(name, state) for name, state in (("Before", step.before), ("After", step.after)) if state]
    if states:
        rows = "".join(
            f'<div><dt>{name}</dt><dd dir="auto" lang="">{escape(state)}</dd></div>' for name, state in states
        )
        page.write(f"<dl>{rows}</dl>\n")
    page.write("</article>\n</li>\n")


def _foot(plan: Plan, plays: bool) -> str:
    sources = "".join(f'<li dir="auto" lang="">{escape(source)}</li>' for source in plan.sources)
    if sources:
        sources = f"<p>The plan follows:</p>\n<ul>{sources}</ul>\n"
    script = f"<script>{SCRIPT}</script>\n" if plays else ""
    return f"""</ol>
</main>
<footer>
<p>Planner: <span dir="auto" lang="">{escape(plan.planner)}</span></p>
{sources}</footer>
{script}</body>
</html>
"""


def _hash(text: str) -> str:
    """What a Content-Security-Policy calls an inline script or style that it lets pass."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _write_data(page: TextIO, kind: str, source: BinaryIO) -> None:
    """The whole of `source` as a data URL, chunk by chunk."""
    page.write(f"data:{kind};base64,")
    while chunk := source.read(CHUNK):
        page.write(base64.b64encode(chunk).decode())


def _write_picture(page: TextIO, picture: Image.Image) -> None:
    data = io.BytesIO()
    picture.save(data, **JPEG)
    data.seek(0)
    _write_data(page, "image/jpeg", data)


def _film(clip: Clip, folder: Path, show: Callable[[], object]) -> tuple[Path, Image.Image, float]:
    """The clip as a film in `folder` that browsers play; its first picture and its seconds. `show` is called per frame.

    The film is always a new file, even where its pictures are taken over as they are: in the clip's own there may be
    the user's whole workflow, and sound that browsers do not play.
    """
    from PIL import Image

    path = folder / "clip.mp4"
    with closing(join(path, [clip], settings=FilmSettings(longest_side=LONGEST_CLIP_SIDE))) as joined:
        for _ in joined:
            show()
    film = open_clip(path)
    return path, Image.fromarray(first_frame(film)), measure(film)[0] / film.fps
