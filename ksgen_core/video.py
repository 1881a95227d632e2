"""Clips as video files: H.264 in MP4, which every player and browser shows, and FFV1 in Matroska, which loses nothing.

Legend: F frames, H, W height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from . import pixels
from .checkpoints import write_atomically
from .errors import KSGenError
from .types import Clip

if TYPE_CHECKING:
    import numpy as np
    import torch

TICKS = 90_000
"""Ticks a second of a film whose clips have several rates; MPEG's own clock."""
ENCODER = {"crf": "14", "preset": "medium", "x264-params": "mbtree=0"}
"""x264's options: no loss that the eye sees. Its macroblock tree reads memory that was never written when pictures are
small, so that with it the same frames now and then give another file."""
SMALL = 512 * 512
"""Up to this many pixels one thread encodes fastest: starting more takes longer than the film."""
LOSSLESS = {"level": "3", "g": "1"}
"""FFV1's options: its version 3, which has slices, and frames that do not lean on each other, which is as small and
faster to read. The checksum in every slice helps nobody here: PyAV cannot ask the decoder to stop at a wrong one."""
RATE_TAG = "KSGEN_FPS"
"""Matroska keeps the length of a frame in whole nanoseconds, from which 60000/1001 comes back as another number."""
BT709 = 1
"""FFmpeg's number of the colour space, primaries and transfer curve that players expect."""


def write_video(path: str | Path, clips: Sequence[Clip]) -> None:
    """Write the clips, one after the other, as one film; `path` is written whole or not at all.

    Frames are read clip by clip, so that a long film needs the memory of one clip. An odd height or width gets one
    more row or column, as H.264 in 4:2:0 asks for even ones. Raises `KSGenError` if the clips differ in size.
    """
    if not clips:
        raise ValueError("a film needs at least one clip")
    write_atomically(path, partial(_encode, clips=clips))


def _encode(path: str, clips: Sequence[Clip]) -> None:
    import av

    one_rate = len({clip.fps for clip in clips}) == 1
    rate = Fraction(clips[0].fps).limit_denominator(1001)
    with av.open(path, "w", options={"movflags": "faststart"}) as file:
        stream = file.add_stream("libx264", rate=rate, options=dict(ENCODER))
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = 1 / rate if one_rate else Fraction(1, TICKS)
        for tag in ("colorspace", "color_primaries", "color_trc", "color_range"):
            setattr(stream.codec_context, tag, BT709)  # color_range 1 is "limited"
        size, ticks = None, Fraction(0)
        for number, clip in enumerate(clips, 1):
            frames = clip.frames
            height, width = frames.shape[1:3]
            if size is None:
                size = (height, width)
                stream.height, stream.width = height + height % 2, width + width % 2
                stream.codec_context.thread_count = 1 if height * width <= SMALL else 0
            if (height, width) != size:
                raise KSGenError(
                    f"Clip {number} is {width}x{height} pixels, the first one {size[1]}x{size[0]}. "
                    "Clips can be joined only if all have one size."
                )
            step = Fraction(1) if one_rate else TICKS / Fraction(clip.fps).limit_denominator(1001)
            for picture in frames:
                frame = _frame(picture)
                frame.pts, frame.time_base = round(ticks), stream.codec_context.time_base
                ticks += step
                file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def _frame(picture: torch.Tensor):
    """`[H, W, 3]` -> a PyAV frame in yuv420p with even height and width."""
    import av
    import numpy as np

    array = pixels.to_uint8(picture)
    array = np.pad(array, ((0, array.shape[0] % 2), (0, array.shape[1] % 2), (0, 0)), mode="edge")
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
    return frame.reformat(format="yuv420p", dst_colorspace="itu709")


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
            array = _cut_to_uint8(picture)
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


def _cut_to_uint8(picture: torch.Tensor | np.ndarray) -> np.ndarray:
    """uint8, or float 0..1 -> uint8 `[H, W, 3]`: trunc(255 x), as `nodes.py` of ComfyUI computes it for a PNG."""
    import numpy as np

    array = np.asarray(picture)
    if array.ndim != 3 or array.shape[-1] != 3:
        raise ValueError(f"a frame must be [H, W, 3], got {array.shape}")
    return array if array.dtype == np.uint8 else np.clip(255.0 * array, 0, 255).astype(np.uint8)


def as_rate(fps: float | Fraction) -> Fraction:
    """Frames a second as a fraction with a denominator of at most 1001, the one of 30000/1001."""
    return Fraction(fps).limit_denominator(1001)


def open_clip(path: str | Path) -> Clip:
    """The clip in a video file: its rate is read now, its frames whenever they are asked for.

    Raises `KSGenError`, naming the file, if it is missing or no video.
    """
    path = Path(path)
    _, fps = _decode(path, count=1)
    return Clip(fps, lambda: read_video(path)[0], path)


def read_video(path: str | Path) -> tuple[torch.Tensor, float]:
    """The frames float32 0..1 `[F, H, W, 3]` of a video file and its frames per second."""
    import numpy as np

    arrays, fps = _decode(Path(path), count=None)
    return pixels.from_uint8(np.stack(list(arrays))), fps


def _decode(path: Path, count: int | None) -> tuple[Iterable, float]:
    """The first `count` frames, or all, as uint8 arrays `[H, W, 3]`, and the rate."""
    import av

    if not path.is_file():
        raise KSGenError(f"The clip {path} is missing. Make it again with --resume.")
    try:
        with av.open(str(path)) as file:
            stream = file.streams.video[0]
            rate = Fraction(file.metadata.get(RATE_TAG) or stream.average_rate or stream.base_rate or 0)
            arrays = []
            for frame in file.decode(stream):
                arrays.append(frame.to_ndarray(format="rgb24"))
                if len(arrays) == count:
                    break
    except (av.FFmpegError, IndexError) as error:
        raise KSGenError(
            f"{path} cannot be read as a video ({error}). Delete it and run again with --resume."
        ) from error
    if not arrays or not rate:
        raise KSGenError(f"{path} holds no frames. Delete it and run again with --resume.")
    return arrays, float(rate)
