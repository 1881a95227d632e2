"""Clips as files without loss: what is read is what was written, bit for bit, and what the host would have saved."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ksgen_core.errors import KSGenError
from ksgen_core.pixels import to_uint8
from ksgen_core.types import Clip
from ksgen_core.video import frames, open_clip, read_video, write_lossless


def noise(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 `[F, H, W, 3]`, of which no two rows are alike."""
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(4, 40), st.integers(4, 40), st.integers(0, 99))
def test_frames_of_any_size_come_back_bit_for_bit(tmp_path_factory, count, height, width, seed):
    path = tmp_path_factory.mktemp("lossless") / "a.mkv"
    array = noise(count, height, width, seed)
    write_lossless(path, array, 8.0)
    frames, fps = read_video(path)
    assert frames.dtype == torch.float32 and fps == 8.0
    assert (to_uint8(frames) == array).all()
    write_lossless(path, frames, 8.0)
    assert read_video(path)[0].equal(frames), "what was read and is written again stays"


def test_large_frames_come_back_bit_for_bit(tmp_path):
    """More than 512 x 512 pixels: other slices and several threads."""
    array = noise(2, 601, 523)
    write_lossless(tmp_path / "a.mkv", iter(array), 8.0)
    assert (to_uint8(read_video(tmp_path / "a.mkv")[0]) == array).all()


def test_floats_are_cut_as_the_host_cuts_them(tmp_path):
    frames = torch.linspace(-0.1, 1.1, 3 * 16 * 16 * 3).reshape(3, 16, 16, 3)
    write_lossless(tmp_path / "a.mkv", frames, 8.0)
    hosts = np.clip(255.0 * frames.numpy(), 0, 255).astype(np.uint8)  # SaveImage of ComfyUI's nodes.py
    assert (to_uint8(read_video(tmp_path / "a.mkv")[0]) == hosts).all()
    assert (hosts != to_uint8(frames)).any(), "cutting and rounding differ here"


def test_a_clip_in_memory_shows_what_its_file_would_hold(tmp_path):
    film = torch.linspace(-0.1, 1.1, 3 * 16 * 16 * 3).reshape(3, 16, 16, 3)
    write_lossless(tmp_path / "a.mkv", film, 8.0)
    of_file, of_memory = open_clip(tmp_path / "a.mkv"), Clip.of(film, 8.0)
    assert all((one == other).all() for one, other in zip(frames(of_file), frames(of_memory), strict=True))
    grid = torch.arange(256).div(255).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    assert (next(frames(Clip.of(grid, 8.0)))[..., 0].ravel() == np.arange(256)).all(), "8-bit pictures stay exact"


@pytest.mark.parametrize("fps", [8, 12.5, 23.976, 1 / 3, 0.5, 120, Fraction(30000, 1001), Fraction(60000, 1001)])
def test_the_rate_comes_back_exactly(tmp_path, fps):
    write_lossless(tmp_path / "a.mkv", noise(2, 16, 16), fps)
    assert open_clip(tmp_path / "a.mkv").fps == read_video(tmp_path / "a.mkv")[1] == float(fps)


@pytest.mark.parametrize("fps", [0, -8, 1 / 5000, float("nan"), float("inf"), Fraction(1, 4000)])
def test_a_rate_that_is_none_is_refused(tmp_path, fps):
    with pytest.raises(KSGenError, match="frames per second"):
        write_lossless(tmp_path / "a.mkv", noise(2, 16, 16), fps)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [None, b"no film", b""])
def test_a_file_that_is_no_film_is_named_with_advice_that_fits_any_file(tmp_path, content):
    if content is not None:
        (tmp_path / "holiday.mp4").write_bytes(content)
    with pytest.raises(KSGenError, match=r"holiday\.mp4 (is missing|cannot be read)") as caught:
        open_clip(tmp_path / "holiday.mp4")
    assert "--resume" not in str(caught.value)


def test_the_same_frames_give_the_same_file(tmp_path):
    for name in ("a.mkv", "b.mkv"):
        write_lossless(tmp_path / name, noise(3, 20, 30), 8.0)
    assert (tmp_path / "a.mkv").read_bytes() == (tmp_path / "b.mkv").read_bytes()


def test_what_is_no_film_is_refused_and_nothing_is_left(tmp_path):
    sizes = [np.zeros((16, 16, 3), np.uint8), np.zeros((16, 18, 3), np.uint8)]
    for film, words in ((sizes, "18x16"), ([], "at least one"), (np.zeros((2, 16, 16, 4)), r"\[H, W, 3\]")):
        with pytest.raises(ValueError, match=words):
            write_lossless(tmp_path / "a.mkv", film, 8.0)
    assert not list(tmp_path.iterdir())
