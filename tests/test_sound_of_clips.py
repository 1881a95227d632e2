"""Sound of clips in memory, into a film and back; that of LTX-2."""

from __future__ import annotations

import math

import pytest
import tiny_ltx2
import torch
from tiny_clips import PLAN, picture

from ksgen_core import video
from ksgen_core.clips.clip_diffusers import ClipModel
from ksgen_core.clips.render import render_clip
from ksgen_core.clips.settings import RenderSettings
from ksgen_core.film.audio import SAMPLES, sound
from ksgen_core.film.join import FilmSettings, lay_out, write_video
from ksgen_core.types import Clip, Sound


def clip(channels: int, rate: int, hertz: float = 440.0, seconds: float = 1.0) -> Clip:
    time = torch.arange(round(rate * seconds)) / rate
    wave = 0.5 * torch.sin(2 * math.pi * hertz * time)
    frames = torch.rand(8, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    return Clip.of(frames, 8.0, Sound(wave.expand(channels, -1), rate))


def heard(*clips: Clip) -> torch.Tensor:
    pieces = list(sound(lay_out(clips, FilmSettings())))
    return torch.cat([torch.from_numpy(piece) for piece in pieces], 1)


@pytest.mark.parametrize(("channels", "rate"), [(1, 16000), (2, 24000), (2, 48000), (3, 44100)])
def test_what_is_heard_is_the_clips_wave_at_the_films_rate(channels, rate):
    wave = heard(clip(channels, rate))
    wanted = heard(clip(2, SAMPLES))
    assert wave.shape == wanted.shape == (2, SAMPLES)
    middle = slice(SAMPLES // 4, 3 * SAMPLES // 4)  # resampling has edges
    torch.testing.assert_close(wave[:, middle], wanted[:, middle], atol=0.02, rtol=0)


def test_short_sound_is_followed_by_silence_and_long_is_cut():
    short, long = heard(clip(2, SAMPLES, seconds=0.5)), heard(clip(2, SAMPLES, seconds=2.0))
    assert short.shape == long.shape == (2, SAMPLES)
    assert not short[:, SAMPLES * 6 // 10 :].any() and long[:, -SAMPLES // 4 :].any()


def test_it_is_kept_in_the_clips_file(tmp_path):
    write_video(tmp_path / "clip.mp4", [clip(2, 24000)])
    assert video.facts_of(video.open_clip(tmp_path / "clip.mp4")).sound
    quiet = Clip.of(clip(2, 24000).frames, 8.0)
    write_video(tmp_path / "quiet.mp4", [quiet])
    assert not video.facts_of(video.open_clip(tmp_path / "quiet.mp4")).sound


@pytest.mark.parametrize("last", [False, True])
def test_ltx2_is_heard_as_long_as_it_is_seen(last):
    model = ClipModel.load(tiny_ltx2.folder())
    settings = RenderSettings(updates=2, guidance=1.0, frames=17, to_next=last)
    events = list(render_clip(model, picture(1, 64, 64), PLAN, 0, settings, picture(2, 64, 64) if last else None))
    made = events[-1].clip
    assert made.sound.rate == tiny_ltx2.RATE and made.sound.samples.dtype == torch.float32
    assert made.sound.samples.shape[0] == 2 and made.sound.samples.any()
    assert abs(made.sound.samples.shape[1] / made.sound.rate - 17 / 24) < 0.05
    torch.testing.assert_close(video.facts_of(made).sound, True)
