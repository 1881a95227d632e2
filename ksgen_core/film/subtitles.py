"""Subtitles: which text is shown from when to when, as SRT, as WebVTT, and as a track of an MP4 that players can hide.

A span is (start, end) in seconds, exact as `fractions.Fraction`; SRT and WebVTT round it to thousandths.
"""

from __future__ import annotations

import html
import re
import struct
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoints import write_atomically

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.packet import Packet
    from av.subtitles.stream import SubtitleStream

Span = tuple[Fraction, Fraction]

MILLI = Fraction(1, 1000)
JOINER = "\u2060"
"""A character that nobody sees: with it what looks like a tag is none."""
STYLE = b"""[Script Info]
ScriptType: v4.00+

[V4+ Styles]
Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, Bold, Italic, Underline, \
StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, Shadow, Alignment, MarginL, MarginR, MarginV, Encoding
Style: Default,Arial,16,&Hffffff,&Hffffff,&H0,&H0,0,0,0,0,100,100,0,0,1,1,0,2,10,10,10,1

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
"""
"""FFmpeg's encoder of MP4's timed text (3GPP TS 26.245) takes its styles from such a head of an ASS file."""


def write_subtitles(film: Path, spans: Sequence[Span], texts: Sequence[str]) -> None:
    """Write the subtitles of a film beside it, under its name, as SRT and as WebVTT."""
    for ending, text in ((".srt", to_srt(spans, texts)), (".vtt", to_vtt(spans, texts))):
        write_atomically(
            film.with_suffix(ending), lambda temporary, text=text: Path(temporary).write_text(text, encoding="utf-8")
        )


def to_srt(spans: Sequence[Span], texts: Sequence[str]) -> str:
    """The text of an SRT file. The format has no way to escape, so what players take for a tag is taken apart.

    A text that is blank has no cue.
    """
    cues = []
    for start, end, text in _cues(spans, texts):
        # Players know <b>, </font> and {\an8}; "-->" would be read as a time.
        shown = re.sub(r"<(?=[a-zA-Z/])|\{(?=\\)|--(?=>)", lambda found: found[0] + JOINER, text)
        cues.append(f"{len(cues) + 1}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{shown}\n")
    return "\n".join(cues)


def to_vtt(spans: Sequence[Span], texts: Sequence[str]) -> str:
    """The text of a WebVTT file, with "&", "<" and ">" escaped as https://www.w3.org/TR/webvtt1 asks.

    A text that is blank has no cue.
    """
    cues = [
        f"{_clock(start, '.')} --> {_clock(end, '.')}\n{html.escape(text, quote=False)}\n"
        for start, end, text in _cues(spans, texts)
    ]
    return "\n".join(["WEBVTT\n", *cues])


def add_track(file: OutputContainer, tick: Fraction) -> SubtitleStream | None:
    """A subtitle track of an MP4 file, or None if this PyAV is older than 17 and cannot write one.

    Times in it are multiples of `tick` seconds. Its language is left open: texts are in the user's. Players show the
    track until it is switched off, since FFmpeg enables the first track of every kind.
    """
    from av.subtitles.codeccontext import SubtitleCodecContext

    if not hasattr(SubtitleCodecContext, "subtitle_header"):
        return None
    stream = file.add_stream("mov_text")
    stream.codec_context.subtitle_header = STYLE
    stream.time_base = tick
    return stream


def packets(stream: SubtitleStream, spans: Sequence[Span], texts: Sequence[str]) -> Iterator[tuple[Fraction, Packet]]:
    """What goes into the track, each with the second at which it is shown. A text that is blank has none."""
    import av

    tick = Fraction(stream.time_base or MILLI)
    for start, end, text in _cues(spans, texts, tick):
        # A sample of timed text: its length in two bytes, then UTF-8 in which nothing has to be escaped.
        data = text.encode()[: 2**16 - 1].decode(errors="ignore").encode()
        packet = av.Packet(len(data) + 2)  # not av.Packet(data): PyAV 17.0 keeps no copy, and the muxer waits
        packet.update(struct.pack(">H", len(data)) + data)
        packet.stream, packet.time_base = stream, tick
        packet.pts = packet.dts = start
        packet.duration = end - start
        yield start * tick, packet


def _cues(spans: Sequence[Span], texts: Sequence[str], tick: Fraction = MILLI) -> Iterator[tuple[int, int, str]]:
    """Start and end in ticks, and the text as a subtitle can show it.

    A blank line would end a cue, and control characters have no place in one.
    """
    for (start, end), text in zip(spans, texts, strict=True):
        lines = (re.sub(r"[\x00-\x1f\x7f]+", " ", line).strip() for line in text.splitlines())
        if shown := "\n".join(line for line in lines if line):
            yield round(start / tick), round(end / tick), shown


def _clock(thousandths: int, mark: str) -> str:
    """`01:02:03,004` of SRT or, with a point as the mark, of WebVTT."""
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{mark}{rest % 1000:03}"
