"""Clips joined to one film: every frame at its time, whatever sizes, rates and sounds the clips have."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from film_files import SUBTITLE_TRACKS, colours, grey_film, sound_of, write_with_sound
from hypothesis import given, settings
from hypothesis import strategies as st

from ksgen_core.errors import KSGenError
from ksgen_core.film.audio import sound
from ksgen_core.film.join import FilmSettings, Joined, join, lay_out, spans, write_video
from ksgen_core.film.pictures import pictures
from ksgen_core.types import Clip
from ksgen_core.video import frames, measure, open_clip, read_video, write_lossless

ROOT = Path(__file__).resolve().parent.parent


def shown(clips, fade=0.0, titles=None, overlap=0) -> list[np.ndarray]:
    """The film's pictures before they are encoded."""
    parts = lay_out(clips, FilmSettings(fade, overlap=overlap))
    rate = max(part.rate for part in parts)
    total = int(parts[-1].end * rate + Fraction(1, 2))
    return list(pictures(parts, rate, total, (parts[0].facts.height, parts[0].facts.width), titles))


def greys(pictures) -> list[int]:
    """The one value that each picture has everywhere."""
    assert all(picture.min() == picture.max() for picture in pictures)
    return [int(picture[0, 0, 0]) for picture in pictures]


# ---------------------------------------------------------------------------------------------------- time


def test_a_hundred_clips_are_a_hundred_chapters_and_not_a_frame_is_lost(tmp_path):
    clips = [Clip.of(torch.full((k % 3 + 1, 16, 16, 3), k / 100), 30000 / 1001) for k in range(100)]
    count = sum(len(clip.frames) for clip in clips)
    write_video(tmp_path / "film.mp4", clips, [f"step {k}" for k in range(100)])
    with av.open(str(tmp_path / "film.mp4")) as file:
        stream = file.streams.video[0]
        seconds = count * Fraction(1001, 30000)
        assert stream.duration * stream.time_base == seconds, "to the tick"
        assert file.duration == pytest.approx(float(seconds) * 10**6, abs=1)
        assert (stream.average_rate, stream.frames) == (Fraction(30000, 1001), count)
        chapters = file.chapters()
        times = [round(frame.pts * stream.time_base / Fraction(1001, 30000), 9) for frame in file.decode(stream)]
    assert times == list(range(count))
    assert [chapter["metadata"]["title"] for chapter in chapters] == [f"{k + 1}. step {k}" for k in range(100)]
    for chapter, (start, end) in zip(chapters, spans(clips), strict=True):
        assert abs(chapter["start"] * chapter["time_base"] - start) <= Fraction(1, 1000)
        assert abs(chapter["end"] * chapter["time_base"] - end) <= Fraction(1, 1000)
    assert spans(clips)[-1][1] == seconds


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.sampled_from([1, 8, 12.5, 24, 23.976, 30000 / 1001])), max_size=7),
    st.integers(1, 9),
    st.floats(0, 0.5),
)
def test_the_film_is_as_long_as_its_clips_less_the_cross_fades(others, count, share):
    clips = [Clip.of(torch.zeros(n, 16, 16, 3), fps) for n, fps in [(count, 8.0), *others]]
    fade = share * min(len(clip.frames) / clip.fps for clip in clips)
    exact = sum(
        (len(clip.frames) / Fraction(clip.fps).limit_denominator(1001) for clip in clips),
        -(len(clips) - 1) * Fraction(fade),
    )
    rate = max(clip.fps for clip in clips)
    assert abs(len(shown(clips, fade)) / rate - float(exact)) <= 0.5 / rate + 1e-4
    cuts = spans(clips, FilmSettings(fade))
    assert cuts[0][0] == 0 and float(cuts[-1][1]) == pytest.approx(float(exact), abs=1e-4)
    assert all(before[1] == after[0] for before, after in zip(cuts, cuts[1:], strict=False))
    assert all(start < end for start, end in cuts)


def test_at_one_rate_every_frame_is_there_once_and_bit_for_bit():
    clips = [grey_film(range(k, k + 5), fps=12.5) for k in (0, 50, 100)]
    assert greys(shown(clips)) == [*range(5), *range(50, 55), *range(100, 105)]


def test_at_several_rates_each_clip_shows_the_frame_of_its_time():
    slow, fast = grey_film([10, 20, 30], fps=8.0), grey_film([110, 120, 130], fps=12.0)
    # Film frame n is at n / 12: the slow clip is on until 4.5 / 12, then the fast one with half a frame's offset.
    assert greys(shown([slow, fast])) == [10, 10, 20, 30, 30, 110, 120, 130]
    many = [grey_film([k], fps=8.0) for k in range(99)] + [grey_film([200, 201], fps=30.0)]
    film = greys(shown(many))
    assert len(film) == round(99 / 8 * 30 + 2)
    assert all(value == n * 8 // 30 for n, value in enumerate(film[:371])), "no rounding adds up"


def write_at(path: Path, values: dict[int, int], rate: int = 60) -> Clip:
    """A file that shows greys from times in thousandths on, the last one for 1 / rate."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("ffv1" if path.suffix == ".mkv" else "libx264", rate=rate)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time, value in values.items():
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), value, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return open_clip(path)


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_a_file_without_an_even_rate_shows_each_frame_at_its_time(tmp_path, name):
    """As telephones and recorders of screens write them."""
    values = {0: 40, 100: 80, 700: 120, 733: 160, 1900: 200}
    clip = write_at(tmp_path / name, values)
    film = [int(picture.mean() / 10 + 0.5) * 10 for picture in frames(clip)]
    assert measure(clip)[0] == len(film) == len(clip.frames)
    for n, value in enumerate(film):
        middle = (n + 0.5) / clip.fps * 1000
        near = {shown for time, shown in values.items() if time - 2 <= middle}
        assert value in (max(near), max(v for t, v in values.items() if t + 2 <= middle)), "what is on in the middle"
    assert 1.9 - 0.5 / clip.fps <= len(film) / clip.fps <= 1.9 + 1.5 / clip.fps, "the last is on for a frame at most"
    write_video(tmp_path / "film.mp4", [clip])
    assert [int(picture.mean() * 25.5 + 0.5) * 10 for picture in read_video(tmp_path / "film.mp4")[0]] == film


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([8, 24, 30, 60, Fraction(30000, 1001)]), st.integers(1, 40), st.integers(0, 5000))
def test_an_even_rate_with_rounded_times_loses_and_repeats_nothing(tmp_path_factory, rate, count, begin):
    path = tmp_path_factory.mktemp("even") / "a.mkv"
    write_at(path, {begin + round(k * 1000 / rate): 5 * k for k in range(count)}, rate)
    clip = open_clip(path)
    assert measure(clip)[0] == len(list(frames(clip))) == count


def test_sound_and_picture_of_a_file_without_an_even_rate_stay_in_step(tmp_path):
    """The picture gets bright when the tone begins, 1.5 s after the start."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as file:
        video, audio = file.add_stream("libx264", rate=30), file.add_stream("pcm_s16le", rate=48000, layout="mono")
        video.width = video.height = 32
        video.pix_fmt = "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        for time in [*range(0, 200, 33), *range(1500, 3000, 33)]:
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 200 * (time >= 1500), np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            file.mux(video.encode(frame))
        tone = (np.sin(np.arange(144000) / 20) * 16000 * (np.arange(144000) >= 72000)).astype(np.int16)
        sounds = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
        sounds.sample_rate, sounds.pts, sounds.time_base = 48000, 0, Fraction(1, 48000)
        file.mux([*video.encode(None), *audio.encode(sounds), *audio.encode(None)])
    write_video(tmp_path / "film.mp4", [open_clip(path)])
    film, fps = read_video(tmp_path / "film.mp4")
    bright = int((film.mean((1, 2, 3)) > 0.4).int().argmax()) / fps
    loud = int(np.argmax(np.abs(sound_of(tmp_path / "film.mp4")[0][0]) > 0.2)) / 48000
    assert abs(bright - loud) < 1 / fps


# ------------------------------------------------------------------------------------------------- overlap


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.sampled_from([8, 12.5, 23.976, 30000 / 1001])), min_size=1, max_size=5),
    st.integers(1, 9),
    st.integers(0, 3),
    st.floats(0, 0.5),
)
def test_with_an_overlap_the_film_is_that_of_clips_without_their_first_frames(others, count, overlap, share):
    lengths = [(count, 8.0), *((overlap + n, fps) for n, fps in others)]
    clips = [grey_film(range(40 * k, 40 * k + n), fps) for k, (n, fps) in enumerate(lengths)]
    cut = [clips[0], *(Clip.of(clip.frames[overlap:], clip.fps) for clip in clips[1:])]
    fade = share * min(len(clip.frames) / clip.fps for clip in cut)
    assert greys(shown(clips, fade, overlap=overlap)) == greys(shown(cut, fade))
    assert spans(clips, FilmSettings(fade, overlap=overlap)) == spans(cut, FilmSettings(fade))


def test_chained_clips_show_every_frame_once_with_chapters_and_subtitles_at_their_time(tmp_path):
    clips = [grey_film(range(4 * k, 4 * k + 5)) for k in range(3)]
    assert greys(shown(clips, overlap=1)) == list(range(13))
    write_video(tmp_path / "film.mp4", clips, ["a", "b", "c"], FilmSettings(overlap=1))
    with av.open(str(tmp_path / "film.mp4")) as file:
        video, tracks = file.streams.video[0], file.streams.subtitles
        assert (video.frames, video.duration * video.time_base) == (13, Fraction(13, 8))
        chapters = [(c["start"] * c["time_base"], c["end"] * c["time_base"]) for c in file.chapters()]
        cues = [p.pts * words.time_base for words in tracks for p in file.demux(words) if p.size > 2]
    assert chapters == [(0, Fraction(5, 8)), (Fraction(5, 8), Fraction(9, 8)), (Fraction(9, 8), Fraction(13, 8))]
    assert cues == [0, Fraction(5, 8), Fraction(9, 8)] * SUBTITLE_TRACKS


def test_the_sound_of_left_out_frames_is_left_out_too(tmp_path):
    paths = [write_with_sound(tmp_path / "a.mp4", 1.0), write_with_sound(tmp_path / "b.mp4", 1.0, 1000.0, 44100)]
    clips = [open_clip(path) for path in paths]
    whole = np.concatenate(list(sound(lay_out(clips, FilmSettings()))), axis=1)
    film = np.concatenate(list(sound(lay_out(clips, FilmSettings(overlap=3)))), axis=1)
    assert whole.shape[1] - film.shape[1] == 3 * 6000, "3 / 8 s"
    assert (film == np.concatenate([whole[:, :48000], whole[:, 48000 + 3 * 6000 :]], axis=1)).all()
    write_video(tmp_path / "film.mp4", clips, settings=FilmSettings(overlap=3))
    assert sound_of(tmp_path / "film.mp4")[1]["seconds"] == Fraction(13, 8)


def test_an_overlap_that_leaves_nothing_of_a_clip_is_refused_before_anything_is_written(tmp_path):
    clips = [grey_film([0]), grey_film([0] * 4), grey_film([0] * 3)]
    with pytest.raises(KSGenError, match=r"Clip 3 has 3 frames.*overlap of 3.*at most 2"):
        write_video(tmp_path / "film.mp4", clips, settings=FilmSettings(overlap=3))
    assert not list(tmp_path.iterdir())
    assert len(shown(clips, overlap=2)) == 1 + 2 + 1, "the first clip may be shorter"
    with pytest.raises(KSGenError, match=r"Clip 2 lasts 0\.25 s without the overlap"):
        spans([grey_film([0] * 4)] * 2, FilmSettings(0.2, overlap=2))
    with pytest.raises(KSGenError, match="0 frames"):
        FilmSettings(overlap=-1)


# ------------------------------------------------------------------------------------------------ pictures


def test_a_cross_fade_mixes_evenly(tmp_path):
    film = greys(shown([grey_film([0] * 8), grey_film([200] * 8), grey_film([100] * 8)], fade=0.5))
    assert film == [0, 0, 0, 0, 25, 75, 125, 175, 188, 163, 138, 113, 100, 100, 100, 100]
    moving = greys(shown([grey_film([0, 10, 20, 30]), grey_film([100, 110, 120, 130])], fade=0.25))
    assert moving == [0, 10, 40, 90, 120, 130], "both go on while they are mixed: 3/4 20 + 1/4 100, 1/4 30 + 3/4 110"


def test_a_cross_fade_longer_than_half_a_clip_is_refused_before_anything_is_written(tmp_path):
    clips = [grey_film([0] * 16), grey_film([0] * 6), grey_film([0] * 16)]
    with pytest.raises(KSGenError, match=r"Clip 2 lasts 0\.75 s.*0\.5 s.*at most 0\.375 s"):
        write_video(tmp_path / "film.mp4", clips, settings=FilmSettings(0.5))
    assert not list(tmp_path.iterdir())
    assert len(shown(clips, fade=0.375)) == 38 - 6
    assert len(shown(clips[1:2], fade=0.5)) == 6, "one clip has nothing to fade to"
    for nonsense in (-1, float("nan"), float("inf")):
        with pytest.raises(KSGenError, match="0 seconds"):
            FilmSettings(cross_fade=nonsense)


def test_other_sizes_are_fitted_in_whole_on_black():
    first, wide, tall = colours(24, 32), colours(12, 32), colours(48, 32)
    film = shown([first, wide, tall])
    assert {picture.shape for picture in film} == {(24, 32, 3)}
    assert (film[0] == shown([first])[0]).all()
    assert (film[1][6:18] == shown([wide])[0]).all() and not film[1][:6].any() and not film[1][18:].any()
    assert film[2][:, 8:24].min() > 0 and not film[2][:, :8].any() and not film[2][:, 24:].any()


def write_wide(path: Path, aspect: Fraction, size: tuple[int, int] = (32, 32), rate: int = 8) -> Clip:
    """Four frames, dark on the left and bright on the right, whose pixels are `aspect` times as wide as high."""
    picture = np.zeros((*size, 3), np.uint8)
    picture[:, size[1] // 2 :] = 240
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        for _ in range(4):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode(None))
    return open_clip(path)


def pixels_of(path: Path) -> tuple[int, int, Fraction]:
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        return stream.height, stream.width, Fraction(stream.sample_aspect_ratio or 1)


def test_pixels_that_are_not_square_stay_so_if_all_clips_have_them_and_else_become_square(tmp_path):
    wide, other = write_wide(tmp_path / "a.mp4", Fraction(2)), write_wide(tmp_path / "b.mp4", Fraction(2), rate=12)
    square, tall = write_wide(tmp_path / "c.mp4", Fraction(1)), write_wide(tmp_path / "d.mp4", Fraction(1, 2))
    film = tmp_path / "film.mp4"
    for clips, wanted in (
        ([wide], (32, 32, 2)),  # copied
        ([wide, other], (32, 32, 2)),  # encoded, for the rates differ
        ([wide, square], (32, 64, 1)),
        ([tall, square], (64, 32, 1)),
        ([square, wide], (32, 32, 1)),
    ):
        write_video(film, clips)
        assert pixels_of(film) == wanted
    dark = np.array([picture[:, :, 0].numpy() < 0.2 for picture in read_video(film)[0]])
    assert dark[0][:, :15].all() and not dark[0][:, 17:].any(), "the square one fills the film"
    assert dark[4][:7].all() and dark[4][25:].all() and not dark[4][9:23, 17:].any(), "the wide one is half as high"


def test_an_odd_size_gets_one_more_row_and_column(tmp_path):
    write_video(tmp_path / "odd.mp4", [Clip.of(torch.full((3, 17, 21, 3), 0.5), 8.0)])
    frames, _ = read_video(tmp_path / "odd.mp4")
    assert frames.shape == (3, 18, 22, 3)
    assert (frames - 0.5).abs().max() < 0.02, "the last row repeated, not black"


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (480, 832), (1280, 720)])
@pytest.mark.parametrize("text", ["cut", "pour the hot water from the kettle into the mug " * 3, "Donaudampf" * 30])
def test_a_title_is_readable_for_two_seconds_at_any_size(size, text):
    clip = Clip.of(torch.full((5, *size, 3), 0.5), 2.0)
    film = shown([clip], titles=[text])
    for picture in film[:4]:
        differs = (picture != 127).any(-1)
        assert not differs[: size[0] // 3].any(), "most of the picture stays to be seen"
        assert picture[size[0] // 2 :].max() > 200 and picture[size[0] // 2 :].min() < 80, "bright on dark"
    assert (film[4] == 127).all()


def test_titles_are_drawn_on_each_clip_and_only_if_asked(tmp_path):
    clips = [Clip.of(torch.full((4, 64, 64, 3), 0.5), 8.0)] * 2
    for titles in (False, True):
        write_video(tmp_path / "film.mp4", clips, ["one", "two"], FilmSettings(titles=titles))
        frames, _ = read_video(tmp_path / "film.mp4")
        assert [bool((frame - 0.5).abs().max() > 0.2) for frame in frames] == [titles] * 8


# --------------------------------------------------------------------------------------------------- sound


def test_sound_is_kept_at_its_time_and_silence_is_where_there_is_none(tmp_path):
    tones = write_with_sound(tmp_path / "tone.mp4", seconds=1.0, frequency=440.0, rate=44100, layout="mono")
    other = write_with_sound(tmp_path / "other.webm", seconds=1.0, frequency=1000.0, rate=48000, layout="stereo")
    clips = [grey_film([9] * 8), open_clip(tones), grey_film([9] * 8), open_clip(other)]
    write_video(tmp_path / "film.mp4", clips)
    sound, stream = sound_of(tmp_path / "film.mp4")
    assert (stream["rate"], stream["channels"], stream["codec"]) == (48000, 2, "aac")
    assert stream["seconds"] == 4, "exactly"
    loud = [float(np.abs(sound[:, k * 48000 + 4800 : (k + 1) * 48000 - 4800]).max()) for k in range(4)]
    assert loud[0] < 0.01 and loud[2] < 0.01
    assert loud[1] == pytest.approx(0.5, abs=0.05), "mono is as loud as it was"
    assert loud[3] == pytest.approx(0.5, abs=0.05)
    for k, frequency in ((1, 440.0), (3, 1000.0)):
        spectrum = np.abs(np.fft.rfft(sound[0, k * 48000 : (k + 1) * 48000]))
        assert abs(int(spectrum.argmax()) - frequency) <= 1
    begins = int(np.argmax(np.abs(sound[0]) > 0.05))
    assert abs(begins - 48000) < 480, "in step with the picture"


def test_without_any_sound_there_is_no_sound_track(tmp_path):
    write_video(tmp_path / "film.mp4", [grey_film([1, 2]), grey_film([3])])
    with av.open(str(tmp_path / "film.mp4")) as file:
        assert not file.streams.audio


def test_sound_that_is_too_short_or_too_long_does_not_move_the_next_clip(tmp_path):
    short = write_with_sound(tmp_path / "short.mp4", seconds=1.0, sounds=0.25)
    long = write_with_sound(tmp_path / "long.mp4", seconds=1.0, sounds=1.5)
    write_video(tmp_path / "film.mp4", [open_clip(short), open_clip(long), grey_film([9] * 8)])
    sound, stream = sound_of(tmp_path / "film.mp4")
    assert stream["seconds"] == 3
    level = [float(np.abs(sound[:, k * 4800 + 960 : (k + 1) * 4800 - 960]).max()) for k in range(30)]
    assert all(value > 0.3 for value in (*level[:2], *level[10:20]))
    assert all(value < 0.02 for value in (*level[3:10], *level[20:]))


@pytest.mark.parametrize("name", ["gap.mkv", "gap.mp4", "gap.webm"])
def test_a_pause_in_the_sound_of_a_file_is_silence_and_what_follows_comes_at_its_time(tmp_path, name):
    path = write_with_sound(tmp_path / name, seconds=2.0, silent=(0.5, 1.2))
    heard = np.concatenate(list(sound(lay_out([open_clip(path)], FilmSettings()))), axis=1)
    level = [float(np.abs(heard[:, k * 4800 + 1200 : (k + 1) * 4800 - 1200]).max()) for k in range(20)]
    assert all(value > 0.3 for value in (*level[:4], *level[13:19])), level
    assert all(value < 0.02 for value in level[6:11]), level
    assert heard.shape[1] == 2 * 48000


def test_sound_without_a_pause_is_not_changed(tmp_path):
    """Matroska rounds the times of its packets to thousandths, which are no pauses."""
    path = write_with_sound(tmp_path / "tone.mkv", seconds=2.0, rate=44100)
    heard = np.concatenate(list(sound(lay_out([open_clip(path)], FilmSettings()))), axis=1)
    wanted = 0.5 * np.sin(2 * np.pi * 440 * np.arange(96000) / 48000)
    assert np.abs(heard - wanted)[:, 500:-500].max() < 0.01


@pytest.mark.parametrize("layout", ["mono", "stereo", "5.1", "quad"])
def test_more_channels_do_not_get_louder_than_they_were(tmp_path, layout):
    path = write_with_sound(tmp_path / "tone.mkv", seconds=1.0, layout=layout)
    heard = np.concatenate(list(sound(lay_out([open_clip(path)], FilmSettings()))), axis=1)
    assert np.abs(heard).max() == pytest.approx(0.5, abs=0.02)


def test_the_sound_fades_with_the_picture(tmp_path):
    paths = [write_with_sound(tmp_path / f"{k}.mp4", seconds=2.0, frequency=400.0 + 600 * k) for k in (0, 1)]
    write_video(tmp_path / "film.mp4", [open_clip(path) for path in paths], settings=FilmSettings(1.0))
    sound, stream = sound_of(tmp_path / "film.mp4")
    assert stream["seconds"] == 3

    def level(frequency: float, begin: float) -> float:
        """How strong a tone is in a tenth of a second: its amplitude is 0.5 in the files."""
        piece = sound[0, int(begin * 48000) : int(begin * 48000) + 4800]
        return float(np.abs(np.fft.rfft(piece))[round(frequency / 10)] / 2400)

    for begin, wanted in ((0.5, 0.5), (1.2, 0.375), (1.45, 0.25), (1.7, 0.125), (2.5, 0.0)):
        assert level(400, begin) == pytest.approx(wanted, abs=0.04)
        assert level(1000, begin) == pytest.approx(0.5 - wanted, abs=0.04)


# --------------------------------------------------------------------------------------- files and memory


@pytest.mark.parametrize("colour", [(200, 30, 120), (255, 0, 0), (0, 255, 0), (10, 40, 220)])
def test_colours_survive(tmp_path, colour):
    """Reader and writer agree on the matrix, and it is the one that the file names."""
    write_video(tmp_path / "film.mp4", [Clip.of(torch.tensor(colour).div(255).expand(3, 32, 32, 3), 8.0)])
    frames, _ = read_video(tmp_path / "film.mp4")
    assert (frames * 255 - torch.tensor(colour)).abs().max() < 4
    with av.open(str(tmp_path / "film.mp4")) as file:
        frame = next(file.decode(video=0))
        red, green, blue = (value / 255 for value in colour)
        luma = 16 + 219 * (0.2126 * red + 0.7152 * green + 0.0722 * blue)  # ITU-R BT.709
        assert frame.colorspace == 1 and abs(bytes(frame.planes[0])[0] - luma) < 2


def test_clips_in_files_of_any_kind_are_joined(tmp_path):
    write_lossless(tmp_path / "a.mkv", np.full((4, 32, 32, 3), 40, np.uint8), 8.0)
    write_video(tmp_path / "b.mp4", [grey_film([120] * 4, size=32)])
    write_with_sound(tmp_path / "c.webm", seconds=0.5, grey=200)
    clips = [open_clip(tmp_path / name) for name in ("a.mkv", "b.mp4", "c.webm")]
    assert [measure(clip) for clip in clips] == [(4, 32, 32)] * 3
    write_video(tmp_path / "film.mp4", clips)
    frames, fps = read_video(tmp_path / "film.mp4")
    assert fps == 8.0
    assert [round(float(frame.mean()) * 255 / 20) * 20 for frame in frames] == [40] * 4 + [120] * 4 + [200] * 4


@pytest.mark.skipif(not SUBTITLE_TRACKS, reason="PyAV before 17 writes no subtitle track")
def test_subtitles_are_a_track_in_the_users_language_that_players_can_hide(tmp_path):
    texts = ["put the <b>bag</b> & {\\an8} in", "切胡萝卜\npour", " "]
    write_video(tmp_path / "film.mp4", [grey_film([9] * 8)] * 3, texts)
    with av.open(str(tmp_path / "film.mp4")) as file:
        stream = file.streams.subtitles[0]
        assert (stream.codec_context.name, stream.language) == ("mov_text", "und")
        cues = {float(p.pts * p.time_base): bytes(p)[2:].decode() for p in file.demux(stream) if p.size > 2}
    assert cues == {0.0: texts[0], 1.0: texts[1]}
    write_video(tmp_path / "film.mp4", [grey_film([9] * 8)] * 3, texts, FilmSettings(subtitles=False))
    with av.open(str(tmp_path / "film.mp4")) as file:
        assert not file.streams.subtitles and len(file.chapters()) == 3


def test_a_chapters_name_fits_the_format(tmp_path):
    write_video(tmp_path / "film.mp4", [grey_film([9, 9])] * 2, ["切" * 200, "two\nlines"])
    with av.open(str(tmp_path / "film.mp4")) as file:
        assert [c["metadata"]["title"] for c in file.chapters()] == ["1. " + "切" * 84, "2. two lines"]


def test_more_chapters_than_neros_list_can_count_are_all_there(tmp_path):
    write_video(tmp_path / "film.mp4", [grey_film([9])] * 300)
    with av.open(str(tmp_path / "film.mp4")) as file:
        assert [c["metadata"]["title"] for c in file.chapters()] == [f"Step {k + 1}" for k in range(300)]


def test_a_join_that_is_given_up_leaves_nothing(tmp_path):
    for steps in (1, 5):
        running = join(tmp_path / "film.mp4", [grey_film(range(9))] * 3, ["a", "b", "c"])
        assert list(islice(running, steps))[-1] == Joined(steps, 27)
        running.close()
        assert not list(tmp_path.iterdir())
    (tmp_path / "film.mp4").write_bytes(b"what was there")
    running = join(tmp_path / "film.mp4", [grey_film(range(9))])
    next(running)
    running.close()
    assert (tmp_path / "film.mp4").read_bytes() == b"what was there"


def test_a_missing_or_cut_clip_is_named_and_nothing_is_left(tmp_path):
    good = grey_film(range(9), size=64)
    write_lossless(tmp_path / "cut.mkv", torch.rand(9, 64, 64, 3), 8.0)
    clip = open_clip(tmp_path / "cut.mkv")
    (tmp_path / "cut.mkv").unlink()
    with pytest.raises(KSGenError, match=r"cut\.mkv is missing"):
        write_video(tmp_path / "film.mp4", [good, clip])
    (tmp_path / "cut.mkv").write_bytes(b"no film")
    with pytest.raises(KSGenError, match=r"cut\.mkv cannot be read"):
        write_video(tmp_path / "film.mp4", [good, clip])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.mkv"]


def peak_memory(tmp_path: Path, count: int) -> int:
    """Bytes that a process needed at most to join `count` clips of files, each of 25 frames of 256 x 256."""
    code = (
        "import resource, sys\n"
        "from ksgen_core.film.join import FilmSettings, write_video\n"
        "from ksgen_core.video import open_clip\n"
        f"clip = open_clip({str(tmp_path / 'clip.mkv')!r})\n"
        f"write_video({str(tmp_path / 'film.mp4')!r}, [clip] * {count}, settings=FilmSettings(1.0))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform == "win32", reason="the peak of a process is asked of POSIX")
def test_memory_does_not_grow_with_the_number_of_clips(tmp_path):
    write_lossless(tmp_path / "clip.mkv", (np.full((256, 256, 3), 10 * k, np.uint8) for k in range(25)), 8.0)
    one_clip = 25 * 256 * 256 * 3
    assert peak_memory(tmp_path, 40) - peak_memory(tmp_path, 4) < one_clip
