"""`ksgen export`: the files it makes of a storyboard folder, and those that it spares."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from shutil import copytree

import av
import pytest
from film_files import SUBTITLE_TRACKS, grey_film
from PIL import Image
from small_stages import blobs

from ksgen_core import storyboard
from ksgen_core.cli import main
from ksgen_core.film.join import FilmSettings, spans
from ksgen_core.types import KeyStep, Plan, Storyboard
from ksgen_core.video import read_video

TEXTS = ("Fill the kettle", "Boil <the> water", "Pour it on the leaves")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Three steps, whose clips of 5 frames begin with the last frame of the one before."""
    folder = tmp_path_factory.mktemp("boards") / "tea"
    clips = tuple(grey_film(range(60 * k, 60 * k + 61, 15), size=32) for k in range(3))
    plan = Plan("make tea", tuple(KeyStep(text) for text in TEXTS))
    storyboard.save(Storyboard(plan, tuple(blobs(k, (32, 32)) for k in range(3)), clips), folder)
    return folder


@pytest.fixture
def board(made, tmp_path) -> Path:
    return copytree(made, tmp_path / "tea")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def new(before: dict[str, bytes], folder: Path) -> set[str]:
    """The files that were added; those that were there are as they were."""
    after = files(folder)
    assert {name: after[name] for name in before} == before
    return set(after) - set(before)


def test_the_page_holds_goal_steps_and_clips(board, capsys):
    before = files(board)
    assert main(["export", "page", str(board)]) == 0
    assert new(before, board) == {"storyboard.html"}
    page = (board / "storyboard.html").read_text(encoding="utf-8")
    assert page.count("<video") == 3 and "Boil &lt;the&gt; water" in page and "make tea</h1>" in page.lower()
    told = capsys.readouterr()
    assert told.out == f"{board / 'storyboard.html'}\n" and "3/3" in told.err


def test_the_moving_picture_has_the_width_and_every_frame(board, tmp_path, capsys):
    before = files(board)
    assert main(["export", "webp", str(board), "--width", "48"]) == 0
    assert new(before, board) == {"skill.webp"}
    with Image.open(board / "skill.webp") as picture:
        assert picture.size == (48, 48) and picture.n_frames == 15 - 2, "frames in a row that are equal are one"
    sizes = []
    for quality in ("0", "100"):
        out = tmp_path / "elsewhere" / f"{quality}.webp"
        assert main(["export", "webp", str(board), "--quality", quality, "--out", str(out)]) == 0
        sizes.append(out.stat().st_size)
    assert sizes[0] < sizes[1]
    assert str(out) in capsys.readouterr().out


def test_a_new_film_has_what_is_asked_for(board, capsys):
    before = files(board)
    assert main(["export", "film", str(board), "--overlap", "1", "--cross-fade", "0.125", "--titles"]) == 0
    assert new(before, board) == {"film.mp4", "film.srt", "film.vtt"}
    assert capsys.readouterr().out.splitlines() == [str(board / f"film.{ending}") for ending in ("mp4", "srt", "vtt")]
    clips = storyboard.load(board).clips
    cuts = spans(clips, FilmSettings(0.125, overlap=1))
    with av.open(str(board / "film.mp4")) as film:
        assert film.streams.video[0].frames == 5 + 4 + 4 - 2
        for chapter, (start, end) in zip(film.chapters(), cuts, strict=True):
            assert abs(chapter["start"] * chapter["time_base"] - start) <= Fraction(1, 1000)
            assert abs(chapter["end"] * chapter["time_base"] - end) <= Fraction(1, 1000)
        assert len(film.streams.subtitles) == SUBTITLE_TRACKS
    assert "00:00:00,562 --> 00:00:00,938\nBoil <" in (board / "film.srt").read_text(encoding="utf-8")
    frames, _ = read_video(board / "film.mp4")
    assert frames[0].max() > 0.5, "the first frame is black but for its title"


def test_without_options_it_is_the_film_of_the_run_and_without_subtitles_it_is_alone(board, tmp_path):
    assert main(["export", "film", str(board), "--out", str(tmp_path / "same.mp4")]) == 0
    for ending in (".srt", ".vtt"):
        assert (tmp_path / f"same{ending}").read_text() == (board / f"skill{ending}").read_text()
    assert read_video(tmp_path / "same.mp4")[0].equal(read_video(board / "skill.mp4")[0])
    assert main(["export", "film", str(board), "--out", str(tmp_path / "alone.mp4"), "--no-subtitles"]) == 0
    assert not (tmp_path / "alone.srt").exists() and not (tmp_path / "alone.vtt").exists()
    with av.open(str(tmp_path / "alone.mp4")) as film:
        assert not film.streams.subtitles and len(film.chapters()) == 3


@pytest.mark.parametrize(
    ("kind", "name"), [("page", "storyboard.html"), ("webp", "skill.webp"), ("film", "film.mp4"), ("film", "film.vtt")]
)
def test_a_file_that_is_there_is_replaced_only_by_force(board, capsys, kind, name):
    (board / name).write_bytes(b"mine")
    before = files(board)
    assert main(["export", kind, str(board)]) == 1
    assert files(board) == before
    told = capsys.readouterr().err
    assert str(board / name) in told and "--force" in told
    assert main(["export", kind, str(board), "--force"]) == 0
    assert (board / name).read_bytes() != b"mine"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["page", "BOARD", "--out", "BOARD"], "must end in .html"),
        (["webp", "BOARD", "--out", "BOARD/a.gif"], "must end in .webp"),
        (["film", "BOARD", "--out", "BOARD/a.mkv"], "must end in .mp4"),
        (["film", "BOARD", "--out", "BOARD/clips/01.mp4", "--force"], "own clips"),
        (["film", "BOARD", "--out", "BOARD/x.mp4", "--force"], "x.mp4 is a folder"),
        (["page", "BOARD/clips"], "plan.json cannot be read"),
        (["webp", "BOARD", "--quality", "101"], "--quality is a whole number from 0 to 100, got 101"),
        (["webp", "BOARD", "--width", "0"], "--width is a number of pixels from 1 to"),
        (["film", "BOARD", "--overlap", "5"], "Clip 2 has 5 frames"),
        (["film", "BOARD", "--overlap", "-1"], "got -1"),
        (["film", "BOARD", "--cross-fade", "0.5"], "Clip 1 lasts 0.625 s"),
        (["film", "BOARD", "--cross-fade", "nan"], "got nan"),
    ],
)
def test_what_cannot_be_is_told_in_one_line_and_writes_nothing(board, capsys, words, says):
    (board / "x.mp4").mkdir()
    before = files(board)
    assert main(["export", *(word.replace("BOARD", str(board)) for word in words)]) == 1
    assert files(board) == before
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("ksgen: ") and says in last


def test_a_step_that_is_missing_is_named(board, capsys):
    (board / "clips" / "02.mp4").unlink()
    for kind in ("page", "webp", "film"):
        assert main(["export", kind, str(board)]) == 1
        assert "the clip of step 2" in capsys.readouterr().err


def test_help_names_every_kind_and_option(capsys):
    for words, parts in {
        (): ("page", "webp", "film"),
        ("page",): ("--out", "--force", "storyboard.html"),
        ("webp",): ("--width", "--quality"),
        ("film",): ("--cross-fade", "--titles", "--overlap", "--no-subtitles"),
    }.items():
        with pytest.raises(SystemExit):
            main(["export", *words, "--help"])
        told = capsys.readouterr().out
        assert all(part in told for part in parts)
