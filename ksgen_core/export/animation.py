"""Clips as one animated WebP: a picture that moves wherever a picture is shown, without a player.

Legend: F frames, H, W height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints import write_atomically
from ..errors import KSGenError
from ..film.pictures import fitted
from ..types import Clip
from ..video import frames

if TYPE_CHECKING:
    import numpy as np

ENCODER = "libwebp_anim"
LONGEST_SIDE = 16383
"""WebP's limit."""
SHORTEST = 11
"""Milliseconds that a frame is shown at least: browsers show one of 10 or less for 100."""


def write_webp(
    path: str | Path,
    clips: Sequence[Clip],
    *,
    width: int | None = None,
    quality: int = 80,
    loop: bool = True,
    progress: Callable[[int, int], object] | None = None,
) -> None:
    """Write the clips, one after the other, as one animated WebP; `path` is written whole or not at all.

    The first clip sets the size, or its shape if `width` says how wide the picture is; frames of another shape are
    fitted and centred on black. Every frame begins at its exact time, rounded to a millisecond, so that nothing adds
    up. A frame that would begin less than `SHORTEST` milliseconds after the one before is left out; the others keep
    their times. Frames in a row that look the same at this quality become one that is shown longer.
    `quality` is 0 (smallest) to 100, `loop` plays without end instead of once. Frames of clips in files are read one by
    one; beside them the memory holds the file. `progress` is called after each frame and each clip with how many clips
    are done, of how many; what it raises ends the writing. Raises `KSGenError` if the size is not what WebP allows or a
    clip cannot be read.
    """
    if not clips:
        raise ValueError("an animation needs at least one clip")
    if not 0 <= quality <= 100:
        raise ValueError(f"the quality is 0 to 100, got {quality}")
    show = progress or (lambda *_: None)
    data = bytearray()
    encoder: Any = None
    size, time, last = (0, 0), Fraction(0), -SHORTEST
    for number, clip in enumerate(clips, 1):
        duration = 1000 / Fraction(clip.fps)
        for array in frames(clip):
            if encoder is None:
                size = _size(array.shape[1], array.shape[0], width)
                encoder = _open_encoder(*size, quality)
            start, time = round(time), time + duration
            if start - last >= SHORTEST:
                data += _encode(encoder, fitted(array, (size[1], size[0])), start)
                last = start
            show(number - 1, len(clips))
        show(number, len(clips))
    data += _encode(encoder, None, 0)
    _set_end_and_loop(data, round(time), loop)
    write_atomically(path, lambda temporary: Path(temporary).write_bytes(data))


def _size(own_width: int, own_height: int, width: int | None) -> tuple[int, int]:
    """Width and height of the animation. Raises `KSGenError` if WebP does not allow them."""
    width = width or own_width
    height = max(1, round(own_height * width / own_width))
    if max(width, height) > LONGEST_SIDE:
        raise KSGenError(
            f"The animation would be {width}x{height} pixels, but WebP allows {LONGEST_SIDE} a side. "
            "Choose a smaller width."
        )
    return width, height


def _encode(encoder: Any, array: np.ndarray | None, start: int) -> bytes:
    """Give the encoder a frame `[H, W, 3]` that begins at `start` ms, or None for the end, after which it gives the
    bytes of the whole file."""
    import av

    if array is None:
        return b"".join(bytes(packet) for packet in encoder.encode(None))
    # RGB, since libwebp knows best what WebP makes of colours.
    frame = av.VideoFrame.from_ndarray(array, format="rgb24").reformat(format="bgra")
    frame.pts, frame.time_base = start, Fraction(1, 1000)
    return b"".join(bytes(packet) for packet in encoder.encode(frame))


def _open_encoder(width: int, height: int, quality: int) -> Any:
    import av
    from av.codec.codec import UnknownCodecError

    try:
        encoder: Any = av.CodecContext.create(ENCODER, "w")
    except UnknownCodecError as error:
        raise KSGenError(
            "The av package was built without WebP animations. Install the one from PyPI, or save a video instead."
        ) from error
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "bgra"
    encoder.time_base, encoder.framerate = Fraction(1, 1000), Fraction(1000)
    encoder.options = {"quality": str(quality)}
    return encoder


def _set_end_and_loop(data: bytearray, end: int, loop: bool) -> None:
    """Write into the file what the encoder guesses or does not know: how long the last frame is shown, how often all.

    https://developers.google.com/speed/webp/docs/riff_container: chunks of a name, a length and a body of even length.
    A film of equal frames is a still picture and has neither chunk.
    """
    place, sum_before, last = 12, 0, None
    while place < len(data):
        name, length = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        if name == b"ANIM":
            data[place + 12 : place + 14] = (0 if loop else 1).to_bytes(2, "little")
        if name == b"ANMF":
            if last is not None:
                sum_before += int.from_bytes(data[last : last + 3], "little")
            last = place + 20
        place += 8 + length + length % 2
    if last is not None:
        data[last : last + 3] = (end - sum_before).to_bytes(3, "little")
