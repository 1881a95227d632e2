"""Clips joined to one film: H.264 in MP4, with a chapter per step, subtitles, cross-fades, titles and the clips' sound.

The rules:
- The film has the first clip's size, or its shape if that is too large for the settings, made even as H.264 in 4:2:0
  asks for it by repeating the last row or column.
  Pictures of another size are scaled to fit in it and centred on black. Pixels are as wide for their height as those
  of the clips or, if these differ, square.
- Its rate is the clips' rate or, if they differ, the highest of them.
- Clip k begins where the clips before it end, each shortened by one cross-fade; this is computed from the film's start
  in exact fractions, so that no rounding adds up. Film frame n shows, of each clip, the frame that is on at n / rate.
  So the film is as long as its clips, less the cross-fades, to within half a frame; at one rate without cross-fades
  every frame of every clip is there once.
- Clips that begin with the last frames of the clip before do so once too often: with an overlap of n, the first n
  frames of every clip but the first are left out, with their sound, before anything else is reckoned.
- In a cross-fade pictures and sound are mixed evenly from the one to the other, a picture by the middle of its time.
- A chapter and its subtitle reach from the middle of one cross-fade to the middle of the next.
- Pictures of H.264 files of one kind are not encoded again if nothing is to be done to them: `copies`.
- A clip without sound is silent, and sound that is longer than its pictures is cut; the film has a sound track, 48 kHz
  stereo in AAC, if any of the clips has one.

Frames are read, mixed and encoded one by one: of clips in files no more are held than decoder and encoder look ahead.
Legend: H, W height and width in pixels.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..checkpoints import atomically
from ..errors import KSGenError
from ..types import Clip
from ..video import SMALL, Facts, as_rate, facts_of
from . import subtitles
from .audio import SoundTrack
from .copies import can_copy, copied_packets, copied_stream
from .pictures import Part, pictures
from .titles import check_titles

if TYPE_CHECKING:
    import av
    import numpy as np
    from av.container import OutputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

log = logging.getLogger("ksgen")
Done = TypeVar("Done")

ENCODER = {"crf": "14", "preset": "medium", "x264-params": "mbtree=0"}
"""x264's options: no loss that the eye sees. Its macroblock tree reads memory that was never written when pictures are
small, so that with it the same frames now and then give another file."""
BT709 = 1
"""FFmpeg's number of the colour space, primaries and transfer curve that players expect."""
LONGEST_NAME = 255
"""Bytes that MP4 has for the name of a chapter."""


@dataclass(frozen=True)
class FilmSettings:
    """How clips are joined: seconds of cross-fade, whether a step's text is drawn over the first two seconds of its
    clip, whether the film gets a track of subtitles, which players can switch off, how many frames every clip after
    the first begins with that the film does not show, and how many pixels its longer side has at most."""

    cross_fade: float = 0.0
    titles: bool = False
    subtitles: bool = True
    overlap: int = 0
    longest_side: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.cross_fade < math.inf:
            raise KSGenError(f"A cross-fade takes 0 seconds (none) or more, got {self.cross_fade}.")
        if self.overlap < 0:
            raise KSGenError(f"Clips overlap by 0 frames (not at all) or more, got {self.overlap}.")
        if self.longest_side is not None and self.longest_side < 2:
            raise ValueError(f"the longer side of a film has 2 pixels or more, got {self.longest_side}")


@dataclass(frozen=True)
class Joined:
    """Frame `number` (from 1) of `total` is encoded."""

    number: int
    total: int


def join(
    path: str | Path, clips: Sequence[Clip], texts: Sequence[str] | None = None, settings: FilmSettings | None = None
) -> Generator[Joined, None, list[subtitles.Span]]:
    """Write the clips, one after the other, as one film in MP4; `path` is written whole or not at all.

    Returns the `spans` of the clips.

    `texts`, one per clip, name the chapters and make the subtitles and the titles; without them chapters are numbered
    and nothing is written over or under the picture. What cannot be done is refused before anything is written.
    Raises `KSGenError` if a clip cannot be read, is too short for the overlap or the cross-fade, no font here has the
    letters of a title, or the disk does not take the film.
    """
    settings = settings or FilmSettings()
    if texts is not None and len(texts) != len(clips):
        raise ValueError(f"a film of {len(clips)} clips needs as many texts, got {len(texts)}")
    if texts is not None and settings.titles:
        check_titles(texts)
    parts = lay_out(clips, settings)
    with atomically(path) as temporary:
        yield from _encode(temporary, parts, texts, settings)
    return _spans(parts)


def finish(events: Generator[Joined, None, Done], show: Callable[[int, int], object]) -> Done:
    """Let a film be written to its end and give what that returns; `show` is told of every frame.

    What `show` raises ends the writing and takes away what was written.
    """
    with closing(events):
        while True:
            try:
                event = next(events)
            except StopIteration as done:
                return done.value
            show(event.number, event.total)


def write_video(
    path: str | Path, clips: Sequence[Clip], texts: Sequence[str] | None = None, settings: FilmSettings | None = None
) -> None:
    """`join` from beginning to end."""
    for _ in join(path, clips, texts, settings):
        pass


def spans(clips: Sequence[Clip], settings: FilmSettings | None = None) -> list[subtitles.Span]:
    """Start and end in seconds of each clip's chapter in the film of `join`; each begins where the one before ends.

    Raises `KSGenError` as `join` does.
    """
    return _spans(lay_out(clips, settings or FilmSettings()))


def lay_out(clips: Sequence[Clip], settings: FilmSettings) -> tuple[Part, ...]:
    """When each clip begins and ends in the film.

    Raises `KSGenError` for one that is too short for the overlap or the cross-fade.
    """
    if not clips:
        raise ValueError("a film needs at least one clip")
    fade = Fraction(settings.cross_fade).limit_denominator(10**6) if len(clips) > 1 else Fraction(0)
    parts, start = [], Fraction(0)
    for number, clip in enumerate(clips, 1):
        facts = facts_of(clip)
        count = facts.count
        skip = settings.overlap if number > 1 else 0
        if skip >= count:
            raise KSGenError(
                f"Clip {number} has {count} frame{'s' if count > 1 else ''}, of which an overlap of {skip} leaves none "
                f"for the film. Give an overlap of at most {count - 1}, or a longer clip."
            )
        part = Part(clip, facts, as_rate(clip.fps), start, skip)
        if fade > part.seconds / 2:
            shown = " without the overlap" if skip else ""
            raise KSGenError(
                f"Clip {number} lasts {float(part.seconds):.3g} s{shown}, and the cross-fade of {float(fade):.3g} s is "
                f"longer than half of it. Give one of at most {float(part.seconds / 2):.3g} s, or a longer clip."
            )
        parts.append(part)
        start = part.end - fade
    return tuple(parts)


def _spans(parts: Sequence[Part]) -> list[tuple[Fraction, Fraction]]:
    cuts = [(before.end + after.start) / 2 for before, after in zip(parts, parts[1:], strict=False)]
    return list(zip([Fraction(0), *cuts], [*cuts, parts[-1].end], strict=True))


def _encode(
    path: str, parts: Sequence[Part], texts: Sequence[str] | None, settings: FilmSettings
) -> Generator[Joined, None, None]:
    """Picture, sound and subtitles side by side, in the order in which they are shown."""
    import av

    rate = max(part.rate for part in parts)
    total = max(1, math.floor(parts[-1].end * rate + Fraction(1, 2)))
    aspect, cuts = _aspect(parts), _spans(parts)
    own = _own_size(parts[0].facts, aspect)
    size = _size(own, settings.longest_side)
    # The clock of the whole film, in which every frame has a whole number, and so its length is exact.
    ticks = rate.numerator * math.ceil(1000 / rate.numerator)
    options = {"movflags": "faststart", "movie_timescale": str(ticks)}
    with ExitStack() as opened:
        file = opened.enter_context(av.open(path, "w", options=options))
        fades = settings.cross_fade > 0 and len(parts) > 1
        if not fades and not settings.titles and size == own and can_copy(parts):
            packets = copied_packets(copied_stream(file, parts[0]), parts)
        else:
            shown = pictures(parts, rate, total, size, texts if settings.titles else None, aspect)
            packets = _encoded(_video_stream(file, size, rate, aspect), opened.enter_context(closing(shown)), rate)
        opened.enter_context(closing(packets))
        sound = None
        if any(part.facts.sound for part in parts):
            sound = opened.enter_context(closing(SoundTrack(file, parts)))
        words: Iterator[tuple[Fraction, Packet]] = iter(())
        if texts is not None and settings.subtitles:
            words = _subtitle_packets(file, cuts, texts, Fraction(1, ticks))
        if len(parts) > 1 or texts is not None:
            _set_chapters(file, cuts, texts, Fraction(1, ticks))
        due = next(words, None)
        for number in range(1, total + 1):
            file.mux(next(packets))
            while due is not None and due[0] < number / rate:
                file.mux(due[1])
                due = next(words, None)
            if sound is not None:
                sound.write_until(number / rate)
            yield Joined(number, total)
        file.mux(list(chain.from_iterable(packets)))
        if sound is not None:
            sound.finish(parts[-1].end)


def _aspect(parts: Sequence[Part]) -> Fraction:
    """How wide a pixel of the film is shown for its height: as all clips have it, or else 1."""
    aspects = {part.facts.aspect for part in parts}
    return aspects.pop() if len(aspects) == 1 else Fraction(1)


def _own_size(facts: Facts, aspect: Fraction) -> tuple[int, int]:
    """Height and width of a clip whose pixels become those of the film, none of which is lost."""
    stretch = facts.aspect / aspect
    return round(facts.height * max(1, 1 / stretch)), round(facts.width * max(1, stretch))


def _size(own: tuple[int, int], longest_side: int | None) -> tuple[int, int]:
    """Height and width of the film: the first clip's own, or in proportion if its longer side is too long."""
    scale = Fraction(longest_side or max(own), max(own))
    height, width = (max(1, round(side * scale)) for side in own) if scale < 1 else own
    return height, width


def _encoded(stream: VideoStream, shown: Iterator[np.ndarray], rate: Fraction) -> Generator[list[Packet], None, None]:
    """For each picture what the encoder has ready by then, at last the rest."""
    for number, picture in enumerate(shown):
        yield stream.encode(_frame(picture, number, rate))
    yield stream.encode(None)


def _video_stream(file: OutputContainer, size: tuple[int, int], rate: Fraction, aspect: Fraction) -> VideoStream:
    stream = file.add_stream("libx264", rate=rate, options=dict(ENCODER))
    stream.height, stream.width = (side + side % 2 for side in size)
    stream.pix_fmt = "yuv420p"
    stream.codec_context.time_base = 1 / rate
    stream.codec_context.sample_aspect_ratio = aspect
    stream.codec_context.thread_count = 1 if size[0] * size[1] <= SMALL else 0
    for tag in ("colorspace", "color_primaries", "color_trc", "color_range"):
        setattr(stream.codec_context, tag, BT709)  # color_range 1 is "limited"
    return stream


def _frame(picture: np.ndarray, number: int, rate: Fraction) -> av.VideoFrame:
    """uint8 `[H, W, 3]` -> a frame in yuv420p with even height and width."""
    import av
    import numpy as np

    height, width = picture.shape[:2]
    if height % 2 or width % 2:
        picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    frame = frame.reformat(format="yuv420p", dst_colorspace="itu709")
    frame.pts, frame.time_base = number, 1 / rate
    return frame


def _subtitle_packets(
    file: OutputContainer, cuts: Sequence[subtitles.Span], texts: Sequence[str], tick: Fraction
) -> Iterator[tuple[Fraction, Packet]]:
    stream = subtitles.add_track(file, tick)
    if stream is None:
        log.warning("The film has no subtitle track: PyAV here is older than 17. Update it to have one.")
        return iter(())
    return subtitles.packets(stream, cuts, texts)


def _set_chapters(
    file: OutputContainer, cuts: Sequence[subtitles.Span], texts: Sequence[str] | None, tick: Fraction
) -> None:
    """One chapter per clip; players list them by these names.

    FFmpeg writes them twice, as a track and as Nero's list. The list counts in one byte, so of a film with more than
    255 steps it holds the first 255; the track, which players and FFmpeg read too, holds all.
    """
    names = [f"{number}. {' '.join(text.split())}" for number, text in enumerate(texts or [], 1)]
    names = names or [f"Step {number}" for number in range(1, len(cuts) + 1)]
    file.set_chapters(
        [
            {
                "id": number,
                "start": round(start / tick),
                "end": round(end / tick),
                "time_base": tick,
                "metadata": {"title": name.encode()[:LONGEST_NAME].decode(errors="ignore")},
            }
            for number, ((start, end), name) in enumerate(zip(cuts, names, strict=True))
        ]
    )
