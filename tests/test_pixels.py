"""One module changes layout and range, without loss where none is due."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ksgen_core import pixels
from ksgen_core.errors import KSGenError


def test_every_8_bit_value_survives():
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    picture = pixels.from_uint8(values)
    assert picture.dtype == torch.float32 and float(picture.max()) == 1
    assert np.array_equal(pixels.to_uint8(picture), values)
    assert pixels.from_pil(pixels.to_pil(picture)).equal(picture)
    assert pixels.on_8_bit_grid(picture).equal(picture)


def test_pictures_of_any_mode_become_rgb(tmp_path):
    rgba = Image.new("RGBA", (20, 16), (255, 0, 0, 0))
    rgba.paste((0, 0, 255, 255), (0, 0, 10, 16))
    assert pixels.from_pil(rgba)[0, 0].tolist() == [0, 0, 1] and pixels.from_pil(rgba)[0, 19].tolist() == [1, 1, 1]
    assert pixels.from_pil(Image.new("L", (16, 16), 51))[3, 3].tolist() == pytest.approx([0.2, 0.2, 0.2])
    assert pixels.from_pil(Image.new("LA", (16, 16), (0, 0)))[3, 3].tolist() == [1, 1, 1]
    assert pixels.from_pil(Image.new("1", (16, 16), 1))[3, 3].tolist() == [1, 1, 1]
    assert pixels.from_pil(Image.new("CMYK", (16, 16)))[3, 3].tolist() == [1, 1, 1]
    deep = Image.fromarray(np.full((16, 16), 32768, dtype=np.uint16))
    assert pixels.from_pil(deep)[3, 3].tolist() == pytest.approx([0.5, 0.5, 0.5], abs=0.01)
    rgba.convert("P").save(tmp_path / "p.png", transparency=0)
    assert pixels.read_picture(tmp_path / "p.png").shape == (16, 20, 3)


def test_the_camera_way_up_is_obeyed(tmp_path):
    picture = Image.new("RGB", (32, 16), "white")
    exif = picture.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert pixels.read_picture(tmp_path / "turned.jpg").shape == (32, 16, 3)


@pytest.mark.parametrize("shape", [(20, 24), (20, 24, 1), (20, 24, 3), (20, 24, 4), (1, 20, 24, 3)])
def test_one_picture_takes_the_usual_shapes_and_leaves_the_input_alone(shape):
    given = torch.rand(shape)
    before = given.clone()
    picture = pixels.one_picture(given)
    assert picture.shape == (20, 24, 3) and 0 <= picture.min() and picture.max() <= 1
    picture.zero_()
    assert given.equal(before)


def test_transparency_lies_over_white():
    assert pixels.one_picture(torch.zeros(16, 16, 4))[0, 0].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("picture", "says"),
    [
        (torch.rand(2, 32, 32, 3), "batch of 2"),
        (torch.rand(0, 32, 32, 3), "batch of 0"),
        (torch.rand(1, 1, 3), "too small"),
        (torch.rand(1, 1, 1, 3), "too small"),
        (torch.zeros(1).expand(20000, 20000, 3), "too large"),
        (torch.rand(32, 32, 5), "channels"),
        (torch.rand(32), "channels"),
        (torch.full((32, 32, 3), torch.nan), "0 to 1"),
        (torch.full((32, 32, 3), 255.0), "0 to 1"),
        (torch.zeros(32, 32, 3, dtype=torch.uint8), "floats"),
    ],
)
def test_what_is_no_usable_picture_is_refused(picture, says):
    with pytest.raises(KSGenError, match=says):
        pixels.one_picture(picture)


def test_bad_picture_files_are_named(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    Image.new("1", (16000, 16000)).save(tmp_path / "huge.png")
    for name, says in [
        ("missing.png", "not there"),
        ("text.png", "cannot be read"),
        ("cut.png", "cannot be read"),
        ("dot.png", "1x1"),
        ("huge.png", "too large"),
    ]:
        with pytest.raises(KSGenError, match=says) as error:
            pixels.read_picture(tmp_path / name)
        assert name in str(error.value)


def test_fit_cuts_the_middle_and_keeps_what_fits():
    picture = pixels.on_8_bit_grid(torch.rand(32, 48, 3))
    assert pixels.fit(picture, 32, 48).equal(picture)
    wide = torch.zeros(32, 96, 3)
    wide[:, 32:64] = 1
    # Lanczos looks a little past the cut, so the outermost columns are not quite white.
    assert pixels.fit(wide, 16, 16)[:, 2:-2].min() > 0.97
    assert pixels.fit(picture, 24, 40).shape == (24, 40, 3)
