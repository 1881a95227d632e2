"""Animated WebP: every frame, at its time, at the right size, in little memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ksgen_core.errors import KSGenError
from ksgen_core.export.animation import SHORTEST, write_webp
from ksgen_core.film.join import write_video
from ksgen_core.types import Clip
from ksgen_core.video import open_clip


def film(count: int = 5, height: int = 24, width: int = 40, start: float = 0.0) -> torch.Tensor:
    """Grey frames, each lighter than the one before."""
    return torch.linspace(start, 1, count)[:, None, None, None].expand(count, height, width, 3).clone()


def frames_of(path: Path) -> tuple[list[np.ndarray], list[int], dict]:
    """Frames, durations in milliseconds, and what Pillow says of the whole file."""
    with Image.open(path) as image:
        assert image.format == "WEBP"
        info, pictures, durations = dict(image.info), [], []
        for k in range(image.n_frames):
            image.seek(k)
            pictures.append(np.asarray(image.convert("RGB")))
            durations.append(image.info["duration"])
    return pictures, durations, info


def starts_of(counts_and_rates: list[tuple[int, float]]) -> tuple[list[int], int]:
    """When each frame begins and the film ends, in milliseconds, by the rule of `write_webp`."""
    time, starts = Fraction(0), []
    for count, fps in counts_and_rates:
        for _ in range(count):
            if not starts or round(time) - starts[-1] >= SHORTEST:
                starts.append(round(time))
            time += 1000 / Fraction(fps)
    return starts, round(time)


def test_all_frames_of_all_clips_are_there_in_order_for_ever(tmp_path: Path):
    write_webp(tmp_path / "a.webp", [Clip.of(film(5), 8.0), Clip.of(film(6, start=0.1), 10.0)])
    pictures, durations, info = frames_of(tmp_path / "a.webp")
    assert [picture.shape for picture in pictures] == [(24, 40, 3)] * 11
    wanted = [255 * k / 4 for k in range(5)] + [255 * (0.1 + 0.9 * k / 5) for k in range(6)]
    assert [float(picture.mean()) for picture in pictures] == pytest.approx(wanted, abs=4)
    assert durations == [125] * 5 + [100] * 6 and info["loop"] == 0


def test_colours_are_kept(tmp_path: Path):
    colours = [(0.8, 0.36, 0.2), (0.1, 0.6, 0.3), (0.2, 0.3, 0.9)]
    frames = torch.stack([torch.tensor(colour).expand(24, 40, 3) for colour in colours])
    write_webp(tmp_path / "a.webp", [Clip.of(frames, 8.0)], quality=95)
    for picture, colour in zip(frames_of(tmp_path / "a.webp")[0], colours, strict=True):
        assert picture.mean((0, 1)) == pytest.approx([255 * one for one in colour], abs=3)


RATES = [0.5, 7.0, 12.5, 16.0, 24000 / 1001, 30.0, 59.94, 90.0, 120.0]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(3, 12), st.sampled_from(RATES)), min_size=1, max_size=4))
def test_times_never_drift(tmp_path_factory: pytest.TempPathFactory, counts_and_rates: list[tuple[int, float]]):
    # Levels of which any four in a row differ by more than the encoder takes for the same.
    levels = (torch.arange(sum(count for count, _ in counts_and_rates)) * 97 % 251 / 255)[:, None, None, None]
    frames = levels.expand(-1, 16, 16, 3).split([count for count, _ in counts_and_rates])
    path = tmp_path_factory.mktemp("times") / "a.webp"
    write_webp(path, [Clip.of(film, fps) for film, (_, fps) in zip(frames, counts_and_rates, strict=True)])
    starts, end = starts_of(counts_and_rates)
    _, durations, _ = frames_of(path)
    assert durations == [after - before for before, after in zip(starts, [*starts[1:], end], strict=True)]
    assert sum(durations) == end


def test_a_long_film_is_as_long_as_it_should_be(tmp_path: Path):
    stripes = torch.zeros(500, 16, 16, 3)
    stripes[::2, :8] = 1
    write_webp(tmp_path / "a.webp", [Clip.of(stripes, 24000 / 1001)])
    _, durations, _ = frames_of(tmp_path / "a.webp")
    assert len(durations) == 500 and set(durations) == {41, 42}
    assert sum(durations) == round(500 * 1001 / 24)


def test_equal_frames_are_one_that_is_shown_longer(tmp_path: Path):
    frames = torch.cat([film(3), film(3)[-1:], film(3)[-1:]])
    write_webp(tmp_path / "a.webp", [Clip.of(frames, 16.0)])
    assert frames_of(tmp_path / "a.webp")[1] == [62, 63, 187]


@pytest.mark.parametrize("count", [1, 4])
def test_a_film_that_stands_still_is_a_picture(tmp_path: Path, count: int):
    for loop in (True, False):
        write_webp(tmp_path / "a.webp", [Clip.of(film(1, start=0.5).repeat(count, 1, 1, 1), 8.0)], loop=loop)
        with Image.open(tmp_path / "a.webp") as image:
            assert getattr(image, "n_frames", 1) == 1 and image.size == (40, 24)
            assert abs(float(np.asarray(image.convert("RGB")).mean()) - 127) < 3


def test_once_or_for_ever(tmp_path: Path):
    for loop, number in ((True, 0), (False, 1)):
        write_webp(tmp_path / "a.webp", [Clip.of(film(), 8.0)], loop=loop)
        assert frames_of(tmp_path / "a.webp")[2]["loop"] == number


def test_other_shapes_are_fitted_and_centred_on_black(tmp_path: Path):
    white = torch.ones(1, 30, 30, 3), torch.ones(1, 12, 100, 3), torch.ones(1, 48, 80, 3)
    write_webp(tmp_path / "a.webp", [Clip.of(film(2), 8.0), *(Clip.of(frames, 8.0) for frames in white)], quality=100)
    pictures, _, _ = frames_of(tmp_path / "a.webp")
    light = [picture.mean(2) > 128 for picture in pictures]
    assert light[1].all()  # the first clip's last frame
    assert light[2][:, 8:32].all() and not light[2][:, :7].any() and not light[2][:, 33:].any()
    assert light[3][10:14].all() and not light[3][:9].any() and not light[3][15:].any()
    assert len(light) == 4 or light[4].all()


@pytest.mark.parametrize(("width", "size"), [(None, (40, 24)), (20, (20, 12)), (65, (65, 39)), (1, (1, 1))])
def test_the_width_sets_the_size_and_keeps_the_shape(tmp_path: Path, width: int | None, size: tuple[int, int]):
    write_webp(tmp_path / "a.webp", [Clip.of(film(), 8.0)], width=width)
    pictures, _, _ = frames_of(tmp_path / "a.webp")
    assert len(pictures) == 5 and {picture.shape for picture in pictures} == {(size[1], size[0], 3)}


def test_quality_costs_bytes(tmp_path: Path):
    noise = torch.rand(3, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    sizes = []
    for quality in (0, 40, 80, 100):
        write_webp(tmp_path / "a.webp", [Clip.of(noise, 8.0)], quality=quality)
        sizes.append((tmp_path / "a.webp").stat().st_size)
    assert sizes == sorted(set(sizes))


def test_clips_in_files_are_read_and_what_was_given_stays(tmp_path: Path):
    frames = film(5)
    write_video(tmp_path / "clip.mp4", [Clip.of(frames, 8.0)])
    write_webp(tmp_path / "a.webp", [open_clip(tmp_path / "clip.mp4")], width=20)
    assert len(frames_of(tmp_path / "a.webp")[0]) == 5 and frames.equal(film(5))


def peak_of(write: Callable[[], object]) -> int:
    """The bytes that Python, NumPy's arrays among them, held at most while `write` ran."""
    tracemalloc.start()
    try:
        write()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_only_one_clip_is_in_memory(tmp_path: Path):
    """With two of them at a time the peak would be twice one."""
    seen = []

    def read() -> torch.Tensor:
        levels = np.linspace(0, 1, 48, dtype=np.float32)
        return torch.from_numpy(np.repeat(levels, 128 * 128 * 3).reshape(48, 128, 128, 3))

    def show(number: int, total: int) -> None:
        seen.append((number, total))

    one = 48 * 128 * 128 * 3 * 4
    assert one < peak_of(lambda: write_webp(tmp_path / "a.webp", [Clip(8.0, read)] * 6, progress=show)) < 1.5 * one
    assert seen == [(done, 6) for k in range(6) for done in (*[k] * 48, k + 1)], "after every frame and every clip"


def test_of_a_clip_in_a_file_only_frames_are_in_memory(tmp_path: Path):
    write_video(tmp_path / "clip.mp4", [Clip.of(film(40, 256, 256), 8.0)])
    clips = [open_clip(tmp_path / "clip.mp4")] * 2
    frame = 256 * 256 * 3
    assert peak_of(lambda: write_webp(tmp_path / "a.webp", clips)) < 10 * frame
    assert len(frames_of(tmp_path / "a.webp")[0]) == 80


def test_nonsense_is_refused_and_nothing_is_left(tmp_path: Path):
    with pytest.raises(KSGenError, match="20000x12000 pixels, but WebP allows 16383 a side. Choose a smaller width"):
        write_webp(tmp_path / "a.webp", [Clip.of(film(), 8.0)], width=20000)
    with pytest.raises(ValueError, match="at least one clip"):
        write_webp(tmp_path / "a.webp", [])
    with pytest.raises(ValueError, match="0 to 100, got 101"):
        write_webp(tmp_path / "a.webp", [Clip.of(film(), 8.0)], quality=101)


def test_writing_can_be_ended_after_any_frame_and_nothing_is_left(tmp_path: Path):
    shown = []

    def stop(number: int, _total: int) -> None:
        shown.append(number)
        if len(shown) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_webp(tmp_path / "a.webp", [Clip.of(film(), 8.0)], progress=stop)
    assert shown == [0, 0, 0] and not list(tmp_path.iterdir())
