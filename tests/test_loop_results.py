"""A step's result on disk: pictures, frames and sound come back as they were, and video files as they are."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ksgen_core.cache import Result, ResultCache
from ksgen_core.errors import KSGenError
from ksgen_core.film.join import join, spans
from ksgen_core.loop.keys import clip_digest
from ksgen_core.loop.results import clip_of, frames_of, take_file, write_frames, write_picture
from ksgen_core.pixels import to_uint8
from ksgen_core.types import Clip
from ksgen_core.video import frames, measure, open_clip


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Values 0..1 on the 8-bit grid."""
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return torch.from_numpy(array).float() / 255


def hosts_cut(picture: torch.Tensor) -> np.ndarray:
    """What SaveImage of ComfyUI's nodes.py makes of a picture."""
    return np.clip(255.0 * picture.numpy(), 0, 255).astype(np.uint8)


def kept(folder: Path, write: Any) -> Result:
    """The result that `write` fills a folder with, found again."""
    cache = ResultCache(folder / "results")
    cache.keep("ab" * 32, write, {"step": 1})
    found = cache.find("ab" * 32)
    assert found is not None
    return found


def waves(channels: int, samples: int, seed: int = 0) -> torch.Tensor:
    """A sound `[C, N]` -1..1 whose channels are all different, first and last value at the limits."""
    sound = torch.rand(channels, samples, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    sound[:, 0], sound[:, -1] = 1.0, -1.0
    return sound


def sound_of(path: Path) -> tuple[torch.Tensor, int, str]:
    """The sound `[C, N]` of a file, samples a second, layout of its channels."""
    with av.open(str(path)) as file:
        stream = file.streams.audio[0]
        parts = [frame.to_ndarray().reshape(-1, stream.channels) for frame in file.decode(stream)]
    return torch.from_numpy(np.concatenate(parts).T.astype(np.float64) / 2**31), stream.rate, stream.layout.name


# --- pictures and frames --------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(16, 60), st.integers(16, 60), st.integers(0, 9))
def test_a_picture_of_any_size_comes_back_bit_for_bit(tmp_path_factory, height, width, seed):
    one = noise(height, width, 3, seed=seed)
    result = kept(tmp_path_factory.mktemp("picture"), lambda folder: write_picture(folder, one))
    assert result.facts == {"kind": "picture", "file": "picture.png", "height": height, "width": width}
    assert frames_of(result).equal(one[None]) and frames_of(result).dtype == torch.float32


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(2, 40), st.integers(2, 40), st.integers(0, 9))
def test_frames_of_any_size_come_back_bit_for_bit(tmp_path_factory, count, height, width, seed):
    film = noise(count, height, width, 3, seed=seed)
    result = kept(tmp_path_factory.mktemp("frames"), lambda folder: write_frames(folder, film, 16.0))
    assert frames_of(result).equal(film) and clip_of(result).fps == 16.0 and result.files == ("clip.mkv",)
    facts = {"kind": "frames", "file": "clip.mkv", "fps": 16.0, "frames": count, "height": height, "width": width}
    assert result.facts == facts and measure(clip_of(result)) == (count, height, width)


def test_values_are_cut_as_the_host_cuts_them_for_pictures_and_frames_alike(tmp_path):
    film = torch.linspace(-0.1, 1.1, 2 * 17 * 19 * 3).reshape(2, 17, 19, 3)
    clip = kept(tmp_path / "a", lambda folder: write_frames(folder, film, 8.0))
    one = kept(tmp_path / "b", lambda folder: write_picture(folder, film[1]))
    assert (to_uint8(frames_of(clip)) == hosts_cut(film)).all()
    assert (to_uint8(frames_of(one)[0]) == hosts_cut(film[1])).all()
    again = kept(tmp_path / "c", lambda folder: write_frames(folder, frames_of(clip), 8.0))
    assert frames_of(again).equal(frames_of(clip)), "what is carried on and kept again stays"


def test_writing_leaves_the_pictures_as_they_were(tmp_path):
    film = torch.linspace(-0.1, 1.1, 2 * 16 * 16 * 3).reshape(2, 16, 16, 3)
    same, sound = film.clone(), waves(1, 99) * 3
    loud = sound.clone()
    write_frames(tmp_path, film, 8.0, (sound, 8000))
    write_picture(tmp_path, film[0])
    assert film.equal(same) and sound.equal(loud)


def test_part_of_a_larger_tensor_and_half_precision_are_written_like_others(tmp_path):
    film = noise(2, 16, 20, 4)
    result = kept(tmp_path, lambda folder: write_frames(folder, film[..., :3], 8.0))
    assert frames_of(result).equal(film[..., :3])
    facts = write_picture(tmp_path, noise(20, 16, 4)[..., :3].half())
    assert (facts["height"], facts["width"]) == (20, 16)


def test_a_picture_is_no_clip(tmp_path):
    result = kept(tmp_path, lambda folder: write_picture(folder, noise(16, 16, 3)))
    with pytest.raises(KSGenError, match="A picture is no clip"):
        clip_of(result)


# --- sound ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels, layout", [(1, "mono"), (2, "stereo"), (6, "5.1")])
@pytest.mark.parametrize("rate, samples", [(44100, 4096), (48000, 10001), (8000, 30)])
def test_sound_comes_back(tmp_path, channels, layout, rate, samples):
    film, sound = noise(5, 16, 18, 3), waves(channels, samples)
    result = kept(tmp_path, lambda folder: write_frames(folder, film, 8.0, (sound, rate)))
    found, found_rate, found_layout = sound_of(result.file("clip.mkv"))
    assert (found_rate, found_layout, found.shape) == (rate, layout, sound.shape)
    assert (found - sound).abs().max() < 1e-6
    assert frames_of(result).equal(film) and clip_of(result).fps == 8.0 and result.files == ("clip.mkv",)


@pytest.mark.parametrize("channels", [3, 4, 8])
def test_sound_of_other_channels_is_mixed_to_one(tmp_path, channels):
    sound = waves(channels, 5000)
    write_frames(tmp_path, noise(2, 16, 16, 3), 8.0, (sound, 22050))
    found, _, layout = sound_of(tmp_path / "clip.mkv")
    assert layout == "mono" and (found - sound.mean(0)).abs().max() < 1e-6


def test_sound_that_is_too_loud_is_cut_not_wrapped(tmp_path):
    write_frames(tmp_path, noise(2, 16, 16, 3), 8.0, (torch.tensor([[0.0, 6.4, -6.4, 0.5]]), 8000))
    assert (sound_of(tmp_path / "clip.mkv")[0] - torch.tensor([[0.0, 1.0, -1.0, 0.5]])).abs().max() < 1e-6


def test_sound_may_be_longer_than_the_pictures(tmp_path):
    film, sound = noise(2, 16, 16, 3), waves(2, 24000)
    write_frames(tmp_path, film, 8.0, (sound, 8000))
    assert sound_of(tmp_path / "clip.mkv")[0].shape == sound.shape
    assert open_clip(tmp_path / "clip.mkv").frames.equal(film)


# --- rates ----------------------------------------------------------------------------------------------------------


RATES = [8.0, 12.5, 120.0, 23.976, 29.97, 1 / 3, 24000 / 1001, 60000 / 1001]


@pytest.mark.parametrize(
    "fps, sound",
    [
        *[(fps, None) for fps in RATES],
        *[(fps, (waves(2, 1000), 48000)) for fps in RATES],
    ],
)
def test_fractions_of_a_frame_a_second_come_back_exactly(tmp_path, fps, sound):
    film = noise(4, 16, 16, 3)
    result = kept(tmp_path, lambda folder: write_frames(folder, film, fps, sound))
    assert clip_of(result).fps == result.facts["fps"] == fps
    assert frames_of(result).equal(film)


# --- files that are damaged or gone ---------------------------------------------------------------------------------


def changed(path: Path) -> None:
    """It still plays: only its checksum tells."""
    path.write_bytes(path.read_bytes() + b"!")


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


READING: dict[str, Callable[[Clip, Path], Any]] = {
    "all frames": lambda clip, _: clip.frames,
    "frame by frame": lambda clip, _: list(frames(clip)),
    "first frame": lambda clip, _: next(frames(clip)),
    "measures": lambda clip, _: measure(clip),
    "film": lambda clip, folder: list(join(folder / "film.mp4", [clip, clip])),
    "chapters of a film": lambda clip, _: spans([clip]),
    "content": lambda clip, _: clip_digest(clip),
    "check": lambda clip, _: clip.check(),
}


@pytest.mark.parametrize("harm", [changed, cut_short, Path.unlink, lambda path: shutil.rmtree(path.parent)])
@pytest.mark.parametrize("road", READING)
@pytest.mark.parametrize("kind", ["frames", "video"])
def test_no_road_of_reading_gives_what_was_not_made(tmp_path, road, harm, kind):
    """A host may hold on to a clip long after it was found. When it is made again, the same clip is whole again."""
    cache, source = ResultCache(tmp_path / "results"), write_film(tmp_path / "a.mp4", "libx264")

    def make() -> Result:
        def write(folder: Path) -> dict[str, Any]:
            return take_file(folder, source) if kind == "video" else write_frames(folder, noise(3, 16, 32, 3), 8.0)

        return cache.keep("ab" * 32, write, {"step": 4})

    clip = clip_of(make())
    whole = clip.frames
    assert clip.path is not None
    harm(clip.path)
    with pytest.raises(KSGenError, match="The result of step 4 is damaged or gone from .* Queue again"):
        READING[road](clip, tmp_path)
    assert cache.find("ab" * 32) is None and not clip.path.exists(), "it is out of the way"
    assert not (tmp_path / "film.mp4").exists()
    make()
    assert clip.frames.equal(whole)
    READING[road](clip, tmp_path)


@pytest.mark.parametrize("harm", [changed, cut_short, Path.unlink])
def test_a_picture_that_is_not_what_was_made_is_not_given(tmp_path, harm):
    result = kept(tmp_path, lambda folder: write_picture(folder, noise(16, 16, 3)))
    harm(result.file("picture.png"))
    with pytest.raises(KSGenError, match="The result of step 1 is damaged or gone from .* Queue again"):
        frames_of(result)


# --- files taken over -----------------------------------------------------------------------------------------------


def write_film(path: Path, codec: str, pix_fmt: str = "yuv420p", rate: int = 12, frames: int = 3) -> Path:
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 32, 16, pix_fmt
        for number in range(frames):
            array = (noise(16, 32, 3, seed=number) * 255).byte().numpy()
            file.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        file.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    "name, codec, called",
    [
        ("a.mp4", "libx264", "clip.mp4"),
        ("film of step 1.WEBM", "libvpx-vp9", "clip.webm"),
        ("a.b.mkv", "ffv1", "clip.mkv"),
        ("a.mov", "mpeg4", "clip.mov"),
    ],
)
def test_a_video_file_is_taken_over_as_it_is(tmp_path, name, codec, called):
    path = write_film(tmp_path / name, codec)
    result = kept(tmp_path, lambda folder: take_file(folder, path))
    assert result.facts == {"kind": "video", "file": called, "fps": 12.0} and result.files == (called,)
    assert (result.folder / called).read_bytes() == path.read_bytes(), "and the user's file stays where it is"
    assert frames_of(result).shape == (3, 16, 32, 3) and clip_of(result).path == result.folder / called


def test_a_file_without_an_ending_is_taken_over_too(tmp_path):
    shutil.move(write_film(tmp_path / "a.mp4", "libx264"), tmp_path / "film")
    result = kept(tmp_path, lambda folder: take_file(folder, tmp_path / "film"))
    assert frames_of(result).shape == (3, 16, 32, 3)


@pytest.mark.parametrize("content", [b"", b"no video", b"\x89PNG\r\n\x1a\n", None])
def test_what_is_no_video_is_refused_and_nothing_stays(tmp_path, content):
    path = tmp_path / "a.mp4"
    if content is not None:
        path.write_bytes(content)
    cache = ResultCache(tmp_path / "results")
    with pytest.raises(KSGenError, match=r"a\.mp4"):
        cache.keep("ab" * 32, lambda folder: take_file(folder, path), {})
    assert not [one for one in cache.root.rglob("*") if one.is_file()]


def test_sound_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as file:
        stream = file.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    with pytest.raises(KSGenError, match="cannot be read as a video"):
        take_file(tmp_path, tmp_path / "a.mp4")


def test_the_rate_of_a_file_is_that_of_its_stream(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as file:
        stream: Any = file.add_stream("libx264", rate=Fraction(30000, 1001))
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for _ in range(30):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 32, 3), np.uint8), format="rgb24")))
        file.mux(stream.encode(None))
    assert take_file(tmp_path, tmp_path / "a.mp4")["fps"] == pytest.approx(30000 / 1001, abs=1e-9)
