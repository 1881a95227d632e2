"""Pictures of a film that need no new encoding: those of clips in H.264 files of one kind, taken over as they are.

A packet holds one encoded picture. Its pts says when it is shown and its dts when it is decoded, in ticks of the file;
they differ where a picture leans on a later one.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..video import opened
from .pictures import Part

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream


def can_copy(parts: Sequence[Part]) -> bool:
    """Whether the packets of all clips, one after the other, are a film that every player shows frame by frame.

    For that they come from one encoder with the same settings and lie upright, every clip can be decoded alone, and its
    pictures have whole and even times and are all in the film: most pictures lean on the first ones.
    """
    kinds = set()
    for part in parts:
        kind = _kind(part)
        if kind is None or len(kinds | {kind}) > 1:
            return False
        kinds.add(kind)
    return True


def _kind(part: Part) -> tuple[Any, ...] | None:
    """What must be equal for a decoder to go on from one clip to the next; None if the clip cannot be copied."""
    if part.clip.path is None or part.skip or part.facts.turns:
        return None
    with opened(part.clip.path) as (file, stream):
        codec = stream.codec_context
        if (codec.name, codec.pix_fmt) != ("h264", "yuv420p") or not codec.extradata:
            return None
        step = _step(stream, part)
        packets = []
        for packet in file.demux(stream):
            if packet.is_discard:
                return None  # a cut hid pictures that are still in the file
            if packet.size and packet.pts is not None and packet.dts is not None:
                packets.append((packet.pts, packet.dts, packet.is_keyframe))
        if step is None or len(packets) != part.count:
            return None
        (first, begin, is_key), count = packets[0], len(packets)
        shown, decoded = sorted(packet[0] for packet in packets), [packet[1] for packet in packets]
        even = shown == list(range(first, first + count * step, step))
        in_order = decoded == list(range(begin, begin + count * step, step))
        if not (even and in_order and is_key):
            return None
        colours = (codec.color_range, codec.colorspace, codec.color_primaries, codec.color_trc)
        delay = (first - begin) / step
        return (
            part.rate,
            part.facts.height,
            part.facts.width,
            bytes(codec.extradata),
            stream.sample_aspect_ratio,
            *colours,
            delay,
        )


def _step(stream: VideoStream, part: Part) -> int | None:
    """Ticks of a frame, or None if they are not whole."""
    step = 1 / part.rate / Fraction(stream.time_base or 1)
    return int(step) if step.denominator == 1 else None


def copied_stream(file: OutputContainer, part: Part) -> VideoStream:
    """A stream of `file` for the packets of clips of this one's kind."""
    with opened(part.clip.path or Path()) as (_, template):
        return file.add_stream_from_template(template)


def copied_packets(target: VideoStream, parts: Sequence[Part]) -> Generator[list[Packet], None, None]:
    """The packets of all clips for the stream `target`, one at a time, with the times that they have in the film."""
    for part in parts:
        with opened(part.clip.path or Path()) as (file, stream):
            first, step, start = None, _step(stream, part) or 1, round(part.start * part.rate)
            for packet in file.demux(stream):
                if not packet.size or packet.pts is None or packet.dts is None:
                    continue
                first = packet.pts if first is None else first
                packet.pts = start + (packet.pts - first) // step
                packet.dts = start + (packet.dts - first) // step
                packet.duration, packet.time_base = 1, 1 / part.rate
                packet.stream = target
                yield [packet]
