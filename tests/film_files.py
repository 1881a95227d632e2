"""Small clips for the tests of films: of one grey a frame, and with a tone."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import av.subtitles.codeccontext
import numpy as np
import torch

from ksgen_core.pixels import from_uint8
from ksgen_core.types import Clip

SUBTITLE_TRACKS = int(hasattr(av.subtitles.codeccontext.SubtitleCodecContext, "subtitle_header"))
"""How many a film has: PyAV before 17 cannot write any."""


def grey_film(values: Iterable[int], fps: float = 8.0, size: int = 16) -> Clip:
    """A clip whose frame k is of the k-th value, 0..255, everywhere."""
    return Clip.of(torch.stack([from_uint8(np.full((size, size, 3), value, np.uint8)) for value in values]), fps)


def colours(height: int, width: int) -> Clip:
    """One frame of random colours, none of which is black."""
    array = np.random.default_rng(height).integers(64, 256, (1, height, width, 3), dtype=np.uint8)
    return Clip.of(from_uint8(array), 8.0)


def write_with_sound(
    path: Path,
    seconds: float,
    frequency: float = 440.0,
    rate: int = 48000,
    layout: str = "stereo",
    sounds: float | None = None,
    grey: int = 128,
    size: int = 32,
    sound: str = "",
    silent: tuple[float, float] = (0.0, 0.0),
) -> Path:
    """A film of `size` x `size` pixels at 8 frames a second with a tone of amplitude 0.5 for `sounds` seconds.

    H.264 and AAC in MP4, VP9 and Opus in WebM, unless `sound` names another codec; whole numbers in Matroska. From the
    one to the other second of `silent` the file holds no sound.
    """
    codecs = {".webm": ("libvpx-vp9", "libopus"), ".mkv": ("libx264", "pcm_s16le")}.get(path.suffix, ("libx264", "aac"))
    count = int((seconds if sounds is None else sounds) * rate)
    tone = 0.5 * np.sin(2 * np.pi * frequency * np.arange(count) / rate).astype(np.float32)
    with av.open(str(path), "w") as file:
        video = file.add_stream(codecs[0], rate=8)
        video.width = video.height = size
        video.pix_fmt = "yuv420p"
        audio = file.add_stream(sound or codecs[1], rate=rate, layout=layout)
        for _ in range(int(seconds * 8)):
            picture = av.VideoFrame.from_ndarray(np.full((size, size, 3), grey, np.uint8), format="rgb24")
            file.mux(video.encode(picture))
        channels = av.AudioLayout(layout).nb_channels
        frame = av.AudioFrame.from_ndarray(np.repeat(tone[None], channels, 0), format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        # Whole numbers may come in pieces of any length, other encoders cut them themselves.
        pieces = 1000 if audio.codec_context.name.startswith("pcm") else None
        resampler = av.AudioResampler(format=audio.format.name, layout=layout, rate=rate, frame_size=pieces)
        packets = []
        for resampled in [*resampler.resample(frame), *resampler.resample(None)]:
            packets += audio.encode(resampled)
        for packet in [*packets, *audio.encode(None)]:
            if packet.pts is None or not silent[0] <= packet.pts * packet.time_base < silent[1]:
                file.mux(packet)
        file.mux(video.encode(None))
    return path


def turn(path: Path) -> None:
    """Make an MP4 a film that players turn by a quarter to the right, as telephones held upright write it."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40  # ISO/IEC 14496-12, 8.3.2: the matrix of the first track's header
    data[place : place + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def sound_of(path: Path) -> tuple[np.ndarray, dict]:
    """The decoded sound `[channels, N]` of a film and what the file says of it."""
    with av.open(str(path)) as file:
        stream = file.streams.audio[0]
        said = {
            "rate": stream.rate,
            "channels": stream.channels,
            "codec": stream.codec_context.name,
            "seconds": stream.duration * stream.time_base,
        }
        return np.concatenate([frame.to_ndarray() for frame in file.decode(stream)], axis=1), said
