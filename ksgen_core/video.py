"""Clips in video files: reading any, and writing FFV1 in Matroska, which loses nothing. `film` writes H.264.

A clip has one rate, but telephones and recorders of screens write frames at any time: frame n of the clip is the one
that is on at the middle of its time, (n + 1/2) / rate seconds after the first. So picture and sound stay in step, and
of a file with one rate every frame is there once, however roughly its times are rounded.
Legend: F frames, H, W height and width in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING

from . import pixels
from .checkpoints import write_atomically
from .errors import KSGenError
from .types import Clip

if TYPE_CHECKING:
    import numpy as np
    import torch
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

SMALL = 512 * 512
"""Up to this many pixels one thread encodes fastest: starting more takes longer than the film."""
LOSSLESS = {"level": "3", "g": "1"}
"""FFV1's options: its version 3, which has slices, and frames that do not lean on each other, which is as small and
faster to read. The checksum in every slice helps nobody here: PyAV cannot ask the decoder to stop at a wrong one."""
RATE_TAG = "KSGEN_FPS"
"""Matroska keeps the length of a frame in whole nanoseconds, from which 60000/1001 comes back as another number."""


def write_lossless(path: str | Path, frames: Iterable[torch.Tensor | np.ndarray], fps: float | Fraction) -> None:
    """Write frames, `[F, H, W, 3]` or one `[H, W, 3]` after the other, so that they come back as they are.

    FFV1 in Matroska, 8-bit RGB; `path` ends in ".mkv" and is written whole or not at all. uint8 frames are kept as
    they are. Floats 0..1 are cut to 8 bits, not rounded, as the host's SaveImage and SaveVideo do: so the file holds,
    bit for bit, what the host itself would have saved. The rate comes back exactly if its denominator is at most 1001.
    The same frames give the same file. Raises `KSGenError` if the disk does not take it.
    """
    rate = as_rate(fps)
    write_atomically(path, lambda temporary: _encode_lossless(temporary, frames, rate))


def _encode_lossless(path: str, frames: Iterable[torch.Tensor | np.ndarray], rate: Fraction) -> None:
    import av
    import numpy as np

    # Without "bitexact" every Matroska file gets a random number.
    with av.open(path, "w", options={"fflags": "+bitexact"}) as file:
        stream = file.add_stream("ffv1", rate=rate, options=dict(LOSSLESS))
        stream.codec_context.time_base = 1 / rate
        stream.pix_fmt = "bgr0"
        file.metadata[RATE_TAG] = str(rate)
        number = -1
        for number, picture in enumerate(frames):
            array = _as_uint8(picture)
            height, width = array.shape[:2]
            if number == 0:
                stream.height, stream.width = height, width
                small = height * width <= SMALL
                stream.codec_context.thread_count = 1 if small else 0
                stream.codec_context.options = {**LOSSLESS, "slices": "4" if small else "16"}
            if (height, width) != (stream.height, stream.width):
                raise ValueError(f"frame {number} is {width}x{height}, the first one {stream.width}x{stream.height}")
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24").reformat(format="bgr0")
            frame.pts, frame.time_base = number, 1 / rate
            file.mux(stream.encode(frame))
        if number < 0:
            raise ValueError("a clip needs at least one frame")
        file.mux(stream.encode(None))


def _as_uint8(picture: torch.Tensor | np.ndarray) -> np.ndarray:
    """uint8, or float 0..1 -> uint8 `[H, W, 3]`."""
    import numpy as np
    import torch

    array = np.asarray(picture)
    if array.ndim != 3 or array.shape[-1] != 3:
        raise ValueError(f"a frame must be [H, W, 3], got {array.shape}")
    return array if array.dtype == np.uint8 else pixels.cut_to_uint8(torch.as_tensor(picture))


def as_rate(fps: float | Fraction) -> Fraction:
    """Frames a second as a fraction with a denominator of at most 1001, the one of 30000/1001.

    Raises `KSGenError` if that is not more than 0.
    """
    rate = Fraction(fps).limit_denominator(1001) if 0 < fps < math.inf else Fraction(0)
    if rate <= 0:
        raise KSGenError(f"A clip has at least 1/1001 frames per second, got {float(fps):g}. Give a higher rate.")
    return rate


def open_clip(path: str | Path) -> Clip:
    """The clip in a video file: its rate is read now, its frames whenever they are asked for.

    Raises `KSGenError`, naming the file, if it is missing or no video.
    """
    path = Path(path)
    with opened(path) as (file, stream):
        fps = _rate(file, stream, path)
        _ = next(file.decode(stream))  # a file without a frame ends here
    return Clip(fps, lambda: read_video(path)[0], path)


def frames(clip: Clip) -> Generator[np.ndarray, None, None]:
    """The clip's frames, uint8 `[H, W, 3]`, one by one; those of a file are decoded one by one too, others are cut to
    8 bits as `write_lossless` and the host do.

    Raises `KSGenError`, naming the file, if it is missing or broken.
    """
    clip.check()
    if clip.path is not None:
        yield from _decoded(clip.path)
    else:
        for picture in clip.frames:
            yield pixels.cut_to_uint8(picture)


def first_frame(clip: Clip) -> np.ndarray:
    """How the clip begins, uint8 `[H, W, 3]`; of a file no more than that is decoded."""
    with closing(frames(clip)) as film:
        return next(film)


@dataclass(frozen=True)
class Facts:
    """What a clip is, without its frames: their number, height and width in pixels, how wide a pixel is shown for its
    height, by how many quarter turns to the left players show the file, and whether it has sound that can be decoded.

    Height, width and aspect are those of the turned frames.
    """

    count: int
    height: int
    width: int
    aspect: Fraction = Fraction(1)
    turns: int = 0
    sound: bool = False


def facts_of(clip: Clip) -> Facts:
    """What a clip is. Of a file one frame is decoded for it and the times of the others are read.

    Raises `KSGenError`, naming the file, if it is missing or no video.
    """
    clip.check()
    if clip.path is None:
        count, height, width = clip.frames.shape[:3]
        return Facts(count, height, width, sound=clip.sound is not None)
    with opened(clip.path) as (file, stream):
        times, shown = [], None
        for packet in file.demux(stream):
            if packet.size and not packet.is_discard:
                times.append((packet.pts, packet.duration))
            if shown is None:
                shown = next(iter(packet.decode()), None)
        if shown is None or not times:
            raise _no_frames(clip.path)
        count, turns = sum(_repeats(times, file, stream, clip.path)), rotation(shown)
        aspect, sound = Fraction(stream.sample_aspect_ratio or 1), sound_stream(file) is not None
        if turns % 2:
            return Facts(count, shown.width, shown.height, 1 / aspect, turns, sound)
        return Facts(count, shown.height, shown.width, aspect, turns, sound)


def measure(clip: Clip) -> tuple[int, int, int]:
    """Number, height and width of the clip's frames, as `facts_of` finds them."""
    facts = facts_of(clip)
    return facts.count, facts.height, facts.width


def _repeats(
    times: Sequence[tuple[int | None, int | None]], file: InputContainer, stream: VideoStream, path: Path
) -> list[int]:
    """How many frames of the clip each frame of the file is, by its time and duration in ticks: 1 at an even rate.

    `times` are those of all packets that are shown, in any order, the result is in the order of time.
    """
    stored = [pts for pts, _ in times if pts is not None]
    if len(stored) < len(times) or RATE_TAG in file.metadata:
        return [1] * len(times)  # a file without times, or one of `write_lossless`
    scale, shown = as_rate(_rate(file, stream, path)) * Fraction(stream.time_base or 1), sorted(stored)
    # MP4 keeps for how long a frame is decoded, which is how long it is on if frames do not lean on later ones.
    end = shown[-1] + (times[-1][1] or 0 if stored == shown else 0)
    numbers = [math.floor((pts - shown[0]) * scale + Fraction(1, 2)) for pts in (*shown, end)]
    numbers[-1] = max(numbers[-1], numbers[-2] + 1)
    return [after - number for number, after in zip(numbers, numbers[1:], strict=False)]


def read_video(path: str | Path) -> tuple[torch.Tensor, float]:
    """The frames float32 0..1 `[F, H, W, 3]` of a video file and its frames per second.

    Raises `KSGenError`, naming the file, if it is missing or no video.
    """
    import torch

    path = Path(path)
    with opened(path) as (file, stream):
        fps = _rate(file, stream, path)
    arrays = list(_decoded(path))
    film = torch.empty(len(arrays), *arrays[0].shape)
    for number in range(len(arrays)):
        # The last one goes first and is let go of, so that a film needs little more memory than what is returned.
        array = arrays.pop()
        film[-1 - number] = pixels.from_uint8(array)
    return film, fps


def _decoded(path: Path) -> Generator[np.ndarray, None, None]:
    """The frames of a video file, one at least, uint8 `[H, W, 3]`, one by one, upright as players show them."""
    import numpy as np

    with opened(path) as (file, stream):
        shown = [(p.pts, p.duration) for p in file.demux(stream) if p.size and not p.is_discard]
        repeats = _repeats(shown, file, stream, path) if shown else []
    with opened(path) as (file, stream):
        if stream.height * stream.width <= SMALL:
            stream.codec_context.thread_count = 1
        frame = None
        for frame, times in zip(file.decode(stream), chain(repeats, repeat(1)), strict=False):
            if times:
                # RGB has the full range anyway; if it is not named, PyAV before 17 takes BT.709 for BT.601.
                array = frame.to_ndarray(format="rgb24", dst_color_range="JPEG")
                yield from repeat(np.ascontiguousarray(np.rot90(array, rotation(frame))), times)
        if frame is None:
            raise _no_frames(path)


def sound_stream(file: InputContainer) -> AudioStream | None:
    """The first sound that there is a decoder for; to decode another one ends the process."""
    return next((stream for stream in file.streams.audio if stream.codec_context is not None), None)


def rotation(frame: VideoFrame) -> int:
    """By how many quarter turns to the left players show a frame, as a telephone held upright asks for it."""
    return round(frame.rotation / 90)


@contextmanager
def opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """A video file and its first video stream. What FFmpeg says inside the `with` becomes a `KSGenError`."""
    import av

    if not path.is_file():
        raise KSGenError(f"The clip {path} is missing. Check the path, or make it again.")
    try:
        with av.open(str(path)) as file:
            yield file, file.streams.video[0]
    except (av.FFmpegError, IndexError, StopIteration) as error:
        raise KSGenError(
            f"{path} cannot be read as a video ({error}). Give another file, or delete it and make it again."
        ) from error


def _rate(file: InputContainer, stream: VideoStream, path: Path) -> float:
    rate = file.metadata.get(RATE_TAG) or stream.average_rate or stream.base_rate
    if not rate:
        raise _no_frames(path)
    return float(Fraction(rate))


def _no_frames(path: Path) -> KSGenError:
    return KSGenError(f"{path} holds no frames. Give another file, or delete it and make it again.")
