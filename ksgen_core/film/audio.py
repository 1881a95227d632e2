"""The sound of a film: that of its clips, where it has one, else silence, mixed in the cross-fades.

Legend: N samples at 48 kHz; sound is float32 -1..1 `[2, N]`, left and right.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from fractions import Fraction
from itertools import chain
from typing import TYPE_CHECKING

from ..errors import KSGenError
from ..video import sound_stream
from .pictures import Part

if TYPE_CHECKING:
    import av
    import numpy as np
    from av.container import OutputContainer

    from ..types import Sound

SAMPLES = 48_000
"""A second."""
BIT_RATE = 192_000
PIECE = 4096
"""Samples of silence that are made at once."""
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}
"""By the number of channels; other numbers are mixed to one, evenly."""
GAP = 0.01
"""Seconds without sound from which on they are taken for silence: Matroska rounds times to thousandths."""


class SoundTrack:
    """The sound track of a film that is being written: AAC in stereo."""

    def __init__(self, file: OutputContainer, parts: Sequence[Part]) -> None:
        self._file = file
        self._stream = file.add_stream("aac", rate=SAMPLES, layout="stereo")
        self._stream.bit_rate = BIT_RATE
        self._pieces = sound(parts)
        self._position = 0

    def write_until(self, time: Fraction) -> None:
        """Encode up to `time` seconds of the film, or a little more, so that picture and sound lie side by side."""
        import av
        import numpy as np

        while self._position < time * SAMPLES and (piece := next(self._pieces, None)) is not None:
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece), format="fltp", layout="stereo")
            frame.sample_rate = SAMPLES
            frame.pts, frame.time_base = self._position, Fraction(1, SAMPLES)
            self._position += piece.shape[1]
            self._file.mux(self._stream.encode(frame))

    def finish(self, end: Fraction) -> None:
        """Encode the rest up to `end` seconds."""
        self.write_until(end)
        self._file.mux(self._stream.encode(None))

    def close(self) -> None:
        """Let go of the clips' files."""
        self._pieces.close()


def sound(parts: Sequence[Part]) -> Generator[np.ndarray, None, None]:
    """The sound of a film, piece by piece `[2, N]`; clip k begins with the sample at its start, rounded.

    Raises `KSGenError`, naming the file, if a clip's sound cannot be decoded.
    """
    import numpy as np

    begins = [round(part.start * SAMPLES) for part in parts]
    ends = [round(part.end * SAMPLES) for part in parts]
    before = np.zeros((2, 0), np.float32)  # how the clip before fades out, from this one's beginning on
    for k, part in enumerate(parts):
        count = ends[k] - begins[k]
        fade_in = before.shape[1]
        fade_out = ends[k] - begins[k + 1] if k + 1 < len(parts) else 0
        done, after = 0, []
        for piece in _of_clip(part, count):
            middles = np.arange(done, done + piece.shape[1]) + 0.5
            if fade_in:
                piece = piece * np.minimum(1, middles / fade_in).astype(np.float32)
            if fade_out:
                piece = piece * np.minimum(1, (count - middles) / fade_out).astype(np.float32)
            mixed = before[:, done : done + piece.shape[1]]
            piece[:, : mixed.shape[1]] += mixed
            done += piece.shape[1]
            kept = max(0, min(piece.shape[1], count - fade_out - done + piece.shape[1]))
            if kept:
                yield piece[:, :kept]
            if kept < piece.shape[1]:
                after.append(piece[:, kept:])
        before = np.concatenate([np.zeros((2, 0), np.float32), *after], axis=1)


def _of_clip(part: Part, count: int) -> Generator[np.ndarray, None, None]:
    """`count` samples of one clip's sound from its first picture in the film on, piece by piece: cut, or followed by
    silence."""
    import av
    import numpy as np

    done = 0
    try:
        for piece in _decoded(part) if part.facts.sound else ():
            piece = piece[:, : count - done]
            done += piece.shape[1]
            yield piece
            if done == count:
                return
    except (av.FFmpegError, ValueError) as error:
        raise KSGenError(
            f"The sound of {part.clip.path} cannot be decoded ({error}). Make that clip again, or without sound."
        ) from error
    while done < count:
        piece = np.zeros((2, min(PIECE, count - done)), np.float32)
        done += piece.shape[1]
        yield piece


def _decoded(part: Part) -> Generator[np.ndarray, None, None]:
    """All of one clip's sound from its first picture in the film on, at 48 kHz in stereo."""
    import av
    import numpy as np

    if part.clip.path is None:
        begin = float(part.skip / part.rate)
        yield from _without_start(_without_gaps(_in_memory(part.clip.sound)), round(begin * SAMPLES))
        return
    with av.open(str(part.clip.path)) as file:
        stream, picture = sound_stream(file), file.streams.video[0]
        sounds = file.decode(stream) if stream is not None else iter(())
        first = next(sounds, None)
        if first is None:
            return
        begin = float((picture.start_time or 0) * picture.time_base + part.skip / part.rate)
        skip = round((begin - (first.time or 0.0)) * SAMPLES)
        if skip < 0:
            yield np.zeros((2, -skip), np.float32)
        yield from _without_start(_without_gaps(chain([first], sounds)), max(0, skip))


def _without_start(pieces: Iterable[np.ndarray], skip: int) -> Generator[np.ndarray, None, None]:
    for piece in pieces:
        left_out = min(skip, piece.shape[1])
        skip -= left_out
        if left_out < piece.shape[1]:
            yield piece[:, left_out:]


def _in_memory(sound: Sound | None) -> Generator[av.AudioFrame, None, None]:
    import av
    import numpy as np

    if sound is None:
        return
    samples = sound.samples.clamp(-1, 1).numpy()
    if len(samples) not in LAYOUTS:
        samples = samples.mean(0, keepdims=True)
    for start in range(0, samples.shape[1], PIECE):
        part = np.ascontiguousarray(samples[:, start : start + PIECE])
        frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=LAYOUTS[len(part)])
        frame.sample_rate, frame.pts, frame.time_base = sound.rate, start, Fraction(1, sound.rate)
        yield frame


def _without_gaps(sounds: Iterable[av.AudioFrame]) -> Generator[np.ndarray, None, None]:
    """Decoded sound at 48 kHz in stereo, with silence where the file has none for a while."""
    import numpy as np

    resampler, due = None, None
    for frame in sounds:
        gap = frame.time - due if frame.time is not None and due is not None else 0.0
        if resampler is not None and gap > GAP:
            yield from _in_stereo(resampler, None)
            resampler = None
            for done in range(0, round(gap * SAMPLES), PIECE):
                yield np.zeros((2, min(PIECE, round(gap * SAMPLES) - done)), np.float32)
        if resampler is None:
            resampler, due = _resampler(frame), frame.time
        yield from _in_stereo(resampler, frame)
        if due is not None:
            due += frame.samples / frame.sample_rate
    if resampler is not None:
        yield from _in_stereo(resampler, None)


def _resampler(frame: av.AudioFrame) -> av.AudioResampler:
    """FFmpeg would make mono quieter on its way to stereo, and more than two channels too loud if they are floats: it
    scales their sum to 1 at most for whole numbers only."""
    import av

    channels = frame.layout.nb_channels
    return av.AudioResampler(
        format="s32p" if channels > 2 else "fltp", layout="mono" if channels == 1 else "stereo", rate=SAMPLES
    )


def _in_stereo(resampler: av.AudioResampler, frame: av.AudioFrame | None) -> Generator[np.ndarray, None, None]:
    import numpy as np

    for resampled in resampler.resample(frame):
        array = resampled.to_ndarray()
        if array.dtype == np.int32:
            array = (array / 2**31).astype(np.float32)
        yield np.repeat(array, 3 - array.shape[0], axis=0)
