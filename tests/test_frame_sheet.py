"""Frames of a film in one picture: which, where, and in what shape."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ksgen_core.sheet import frame_sheet


def numbered(count: int, height: int = 2, width: int = 3) -> torch.Tensor:
    """A film whose frame k is k + 1 everywhere."""
    return torch.arange(1.0, count + 1).view(-1, 1, 1, 1).expand(count, height, width, 3)


def cells(sheet: torch.Tensor, height: int = 2, width: int = 3) -> list[list[float]]:
    """The one value of every cell, row by row."""
    rows = sheet.unfold(0, height, height).unfold(1, width, width).flatten(2)
    assert (rows == rows[..., :1]).all(), "every cell is one frame"
    return rows[..., 0].tolist()


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 20))
def test_frames_are_spread_evenly_from_the_first_to_the_last(length, count, columns):
    rows = cells(frame_sheet(numbered(length), count, columns))
    shown = [int(value) - 1 for row in rows for value in row if value]
    assert len(shown) == min(count, length)
    assert shown[-1] == length - 1 and (len(shown) == 1 or shown[0] == 0)
    steps = {after - before for before, after in zip(shown, shown[1:], strict=False)}
    assert all(step > 0 for step in steps) and max(steps, default=0) - min(steps, default=0) <= 1
    flat = [value for row in rows for value in row]
    assert not any(flat[len(shown) :]), "only the end stays empty"
    assert len(flat) - len(shown) < len(rows[0]), "and not a whole row"
    if columns:
        assert len(rows[0]) == min(columns, len(shown))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 20), st.integers(1, 40), st.integers(1, 40))
def test_the_sheet_of_no_columns_fits_into_the_smallest_square(count, height, width):
    def size(columns: int) -> tuple[int, int]:
        shape = frame_sheet(numbered(count, height, width), count, columns).shape
        return max(shape[:2]), shape[0] * shape[1]

    assert size(0) == min(map(size, range(1, count + 1)))


@pytest.mark.parametrize(("size", "shape"), [((9, 16), (18, 32, 3)), ((16, 9), (32, 18, 3)), ((8, 8), (16, 16, 3))])
def test_four_frames_keep_the_shape_of_one(size, shape):
    assert frame_sheet(torch.rand(33, *size, 3), 4).shape == shape


def test_frames_are_shown_bit_for_bit_and_stay_as_they_were():
    film = torch.rand(7, 8, 10, 3)
    before = film.clone()
    sheet = frame_sheet(film, 3, 2)
    assert sheet.shape == (16, 20, 3)
    assert sheet[:8, :10].equal(film[0]) and sheet[:8, 10:].equal(film[3]) and sheet[8:, :10].equal(film[6])
    one = frame_sheet(film[:1], 4)
    assert one.equal(film[0])
    one.zero_()
    sheet.zero_()
    assert film.equal(before), "nothing is a view of it"
