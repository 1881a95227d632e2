"""Subtitles as text: right times, and no text of the user's can break out of its cue."""

from __future__ import annotations

import io
import re
from fractions import Fraction

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksgen_core.film.subtitles import JOINER, to_srt, to_vtt

TWO = [(Fraction(0), Fraction(3, 2)), (Fraction(3, 2), Fraction(3723 * 1000 + 4, 1000))]


def test_the_formats_to_the_letter():
    assert to_srt(TWO, ["one", "two"]) == (
        "1\n00:00:00,000 --> 00:00:01,500\none\n\n2\n00:00:01,500 --> 01:02:03,004\ntwo\n"
    )
    assert to_vtt(TWO, ["one", "two"]) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\none\n\n00:00:01.500 --> 01:02:03.004\ntwo\n"
    )


def test_times_are_rounded_to_the_nearest_thousandth_and_still_meet():
    thirds = [(Fraction(k, 3), Fraction(k + 1, 3)) for k in range(3)]
    times = re.findall(r"[\d:,]{12}", to_srt(thirds, ["a", "b", "c"]))
    assert times == [f"00:00:0{t}" for t in ("0,000", "0,333", "0,333", "0,667", "0,667", "1,000")]


def test_a_blank_text_has_no_cue_and_the_others_are_numbered_on():
    assert to_srt(TWO, [" \n", "two"]).startswith("1\n00:00:01,500")
    assert to_vtt(TWO, ["", "\t"]) == "WEBVTT\n"
    with pytest.raises(ValueError):
        to_srt(TWO, ["one"])


def test_tags_and_arrows_are_shown_as_they_were_typed():
    text = "a <b>bold</b> & {\\an8}x\n\n00:00:01,000 --> 00:00:02,000"
    (vtt,) = to_vtt(TWO[:1], [text]).split("\n\n")[1:]
    assert vtt.split("\n")[1:3] == [
        "a &lt;b&gt;bold&lt;/b&gt; &amp; {\\an8}x",
        "00:00:01,000 --&gt; 00:00:02,000",
    ]
    srt = to_srt(TWO[:1], [text])
    assert srt.count("-->") == 1 and srt.replace(JOINER, "").endswith(text.replace("\n\n", "\n") + "\n")


@given(st.lists(st.text(), min_size=2, max_size=2))
def test_no_text_breaks_out_of_its_cue(texts):
    wanted = [text for text in texts if re.sub(r"[\x00-\x1f\x7f]", " ", " ".join(text.splitlines())).strip()]
    for subtitles, heads in ((to_srt(TWO, texts), 0), (to_vtt(TWO, texts), 1)):
        blocks = [block for block in subtitles.split("\n\n") if block.strip("\n")]
        assert len(blocks) == len(wanted) + heads
        assert subtitles.count("-->") == len(wanted)
        assert not re.search(r"[\x00-\x09\x0b-\x1f]", subtitles)


@pytest.mark.parametrize("text", ["pour <b>hot</b> water", "a < b & <tea>", "A --> B", "two\nlines", "切胡萝卜"])
def test_a_reader_of_the_format_shows_the_text(text):
    """FFmpeg's readers, which take away tags and escapes, stand in for players."""
    for name, subtitles in (("srt", to_srt(TWO[:1], [text])), ("webvtt", to_vtt(TWO[:1], [text]))):
        with av.open(io.BytesIO(subtitles.encode()), format=name) as file:
            packets = [packet for packet in file.demux() if packet.size]
            (packet,) = packets
            assert (packet.pts * packet.time_base, packet.duration * packet.time_base) == (0, Fraction(3, 2))
            (cue,) = packet.decode()
            # Not `cue.dialogue`: PyAV before 18 takes it apart as signed bytes.
            said = cue.ass.decode().split(",", 8)[8]
        assert said.replace("\r", "").replace("\\N", "\n").replace(JOINER, "").replace("\\{", "{").strip() == text, name
