"""Sound of a step's video, without loss beside its pictures: FLAC in the same Matroska file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}
BLOCK = 4096
"""Samples handed to the encoder at once; FLAC's usual block."""


def add_sound(pictures: Path, target: Path, waveform: torch.Tensor, rate: int) -> None:
    """Write the film `pictures` with the sound `[C, N]` float -1..1 at `rate` samples a second to `target`.

    More channels than two that are not 5.1 are mixed to one, evenly.
    """
    import av
    import numpy as np

    samples = waveform.detach().float().cpu().clamp(-1, 1)
    if len(samples) not in LAYOUTS:
        samples = samples.mean(0, keepdim=True)
    layout = LAYOUTS[len(samples)]
    # 24 bits of float samples, in the upper part of 32, as FLAC takes them.
    whole = (samples.double().numpy() * (2**23 - 1)).round().astype(np.int32) << 8
    # Without the library's version and random numbers in it, the same film is the same file.
    exact = {"fflags": "+bitexact"}
    with av.open(str(pictures)) as source, av.open(str(target), "w", options=exact) as film:
        film.metadata.update(source.metadata)  # the exact rate is there: Matroska itself counts milliseconds
        video = film.add_stream_from_template(source.streams.video[0])
        # Packets get their length from it; without, a player may not show the last one.
        video.codec_context.framerate = source.streams.video[0].average_rate
        sound = film.add_stream("flac", rate=rate, layout=layout, format="s32")
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = video
                film.mux(packet)
        for start in range(0, whole.shape[1], BLOCK):
            part = np.ascontiguousarray(whole[:, start : start + BLOCK].T.reshape(1, -1))
            frame = av.AudioFrame.from_ndarray(part, format="s32", layout=layout)
            frame.sample_rate, frame.pts = rate, start
            film.mux(sound.encode(frame))
        film.mux(sound.encode(None))
