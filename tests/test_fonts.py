"""The letters of titles and sheets: those of every script that a font here has, never a crossed box in silence."""

from __future__ import annotations

import shutil

import pytest
import torch
from film_files import grey_film
from PIL import ImageFont, features

from ksgen_core import sheet as sheets
from ksgen_core.errors import KSGenError
from ksgen_core.film.join import FilmSettings, write_video
from ksgen_core.film.titles import check_titles, with_title
from ksgen_core.sheet import OWN_FONT, font_files, font_of, lacking, sheet
from ksgen_core.types import KeyStep, Plan


@pytest.fixture
def only_own_font(monkeypatch):
    """A system without fonts."""
    monkeypatch.setattr(sheets, "SYSTEM_FONTS", ())
    monkeypatch.delenv("KSGEN_FONT", raising=False)
    sheets._system_fonts.cache_clear()
    yield
    sheets._system_fonts.cache_clear()


@pytest.mark.parametrize(
    "text",
    [
        "äöüß ÄÖÜẞ",
        "é à ç œ ñ å ø ł ğ ő ž",
        "„so“ – ‚ja‘ … • €",
        "Нарежьте морковь",
        "Ξύσε το καρότο",
        "Cắt cà rốt",
        "180 °C, 2 × ½ ✓ →",
    ],
)
def test_the_packs_own_font_has_what_instructions_are_written_in(text, only_own_font):
    assert not lacking(text, str(OWN_FONT))
    drawn = {sheets._drawn(char, str(OWN_FONT)) for char in set(text) | {"\uffff"}}
    assert len(drawn) == len(set(text)) + 1, "every letter looks different, and none is the crossed box"
    assert font_of(text, 20).path == str(OWN_FONT)


def test_a_letter_that_a_font_lacks_is_known(only_own_font):
    assert lacking("cut 切 the 胡 ü 切", str(OWN_FONT)) == "切胡"
    picture = torch.full((64, 64, 3), 200, dtype=torch.uint8).numpy()
    box = with_title(picture, 1, "\uffff" * 3)
    assert (with_title(picture, 1, "üöä") != box).any() and (with_title(picture, 1, "切切切") == box).all()


def test_titles_that_no_font_can_draw_are_refused_before_anything_is_written(tmp_path, only_own_font):
    clips, texts = [grey_film([9] * 4, size=64)] * 2, ["cut", "切胡萝卜"]
    with pytest.raises(KSGenError, match=r"step 2 .*切胡萝卜.*KSGEN_FONT.*turn titles off"):
        write_video(tmp_path / "film.mp4", clips, texts, FilmSettings(titles=True))
    assert not list(tmp_path.iterdir())
    write_video(tmp_path / "film.mp4", clips, texts)
    plan = Plan("切", tuple(KeyStep(text) for text in texts))
    assert sheet(plan, [torch.rand(20, 30, 3)] * 2).ndim == 3, "a sheet draws what it can"


def test_a_font_of_the_environment_comes_first_and_one_that_is_none_is_named(tmp_path, only_own_font, monkeypatch):
    mine = shutil.copy(OWN_FONT, tmp_path / "mine.ttf")
    monkeypatch.setenv("KSGEN_FONT", str(mine))
    assert font_files() == [str(mine), str(OWN_FONT)] and font_of("ü", 20).path == str(mine)
    for wrong in (tmp_path / "none.ttf", tmp_path / "no font.ttf"):
        (tmp_path / "no font.ttf").write_bytes(b"no font")
        monkeypatch.setenv("KSGEN_FONT", str(wrong))
        with pytest.raises(KSGenError, match=f"KSGEN_FONT.*{wrong.name}"):
            font_of("ü", 20)


def test_a_font_of_the_system_is_taken_for_letters_that_the_own_one_lacks(tmp_path, only_own_font, monkeypatch):
    """The own one is here that of Pillow, which has ASCII only."""
    system = shutil.copy(OWN_FONT, tmp_path / "system.ttf")
    (tmp_path / "own.ttf").write_bytes(ImageFont.load_default(20).font_bytes)
    monkeypatch.setattr(sheets, "OWN_FONT", tmp_path / "own.ttf")
    monkeypatch.setattr(sheets, "SYSTEM_FONTS", ((str(tmp_path), "absent.ttf, system.ttf"),))
    assert font_files() == [str(tmp_path / "own.ttf"), str(system)]
    assert font_of("cut", 20).path == str(tmp_path / "own.ttf") == font_of("cut 切", 20).path
    assert font_of("ü", 20).path == str(system)
    check_titles(["cut", "für Нож"])


def test_letters_that_change_with_their_neighbours_need_raqm(only_own_font, monkeypatch):
    monkeypatch.setattr(features, "check", lambda _name: False)
    lacking.cache_clear()
    assert lacking("cut שלום", str(OWN_FONT)) == "שלום"
    lacking.cache_clear()
