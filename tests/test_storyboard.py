"""The storyboard folder: what is read equals what was saved, and a stopped run goes on where it stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref
from dataclasses import replace
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from small_stages import PLAN, blobs, draw, make_plan, render, retrieve

from ksgen_core import storyboard
from ksgen_core.errors import KSGenError
from ksgen_core.film.join import write_video
from ksgen_core.pipeline import collect, run
from ksgen_core.sheet import sheet
from ksgen_core.types import Clip, KeyStep, Plan, Query
from ksgen_core.video import open_clip, write_lossless

ROOT = Path(__file__).resolve().parent.parent
QUERY = Query(blobs(9, (32, 32)), "make tea")
SETTINGS = {"goal": "make tea", "seed": 1, "policy": "skill_transformer"}


def events(made=None):
    return run(QUERY, retrieve, make_plan, draw, render, seed=1, made=made)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def board():
    return collect(events())


def test_reading_back_gives_an_equal_object(board, tmp_path):
    saved = storyboard.save(board, tmp_path / "s")
    loaded = storyboard.load(tmp_path / "s")
    assert loaded == saved
    assert loaded.plan == board.plan
    assert all(a.equal(b) for a, b in zip(loaded.key_images, board.key_images, strict=True))
    for ours, theirs in zip(loaded.clips, board.clips, strict=True):
        assert ours.fps == theirs.fps and ours.frames.shape == theirs.frames.shape
        assert (ours.frames - theirs.frames).abs().mean() < 0.02, "H.264 loses little"
    assert sorted(files(tmp_path / "s")) == [
        *(f"clips/{n:02}.mp4" for n in (1, 2, 3)),
        *(f"key_images/{n:02}.png" for n in (1, 2, 3)),
        "plan.json",
        "skill.mp4",
        "skill.srt",
        "skill.vtt",
        "storyboard.png",
    ]
    # Saved again from the files, it is the same but for what H.264 loses once more.
    assert storyboard.save(loaded, tmp_path / "again").plan == board.plan


def test_the_film_is_h264_that_players_show_and_holds_every_frame(board, tmp_path):
    storyboard.save(board, tmp_path / "s")
    with av.open(str(tmp_path / "s" / "skill.mp4")) as film:
        stream = film.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        frames = list(film.decode(stream))
        assert len(frames) == 15 and float(frames[-1].time or 0) == pytest.approx(14 / 8, abs=0.01)


def test_the_film_has_a_chapter_and_a_subtitle_per_step(board, tmp_path):
    storyboard.save(board, tmp_path / "s")
    texts = [step.text for step in PLAN.steps]
    with av.open(str(tmp_path / "s" / "skill.mp4")) as film:
        assert [chapter["metadata"]["title"] for chapter in film.chapters()] == [
            f"{number}. {text}" for number, text in enumerate(texts, 1)
        ]
    srt = (tmp_path / "s" / "skill.srt").read_text(encoding="utf-8")
    vtt = (tmp_path / "s" / "skill.vtt").read_text(encoding="utf-8")
    assert "00:00:00,625 --> 00:00:01,250\npour it into the mug\n" in srt, "5 frames at 8 a second each"
    assert vtt.startswith("WEBVTT\n") and all(text in vtt for text in texts)


def test_saving_tells_how_far_it_is(board, tmp_path):
    told = list(storyboard.saving(board, tmp_path / "s"))
    assert [event.number for event in told] == sorted(event.number for event in told)
    assert told[-1].number == told[-1].total and {event.total for event in told} == {6}
    assert len(told) == 3 + 15, "each clip, then each frame of the film"


@pytest.mark.parametrize("fps", [8.0, 24.0, 12.5, 30000 / 1001])
def test_a_clips_rate_survives(tmp_path, fps):
    write_video(tmp_path / "c.mp4", [Clip.of(torch.rand(9, 16, 16, 3), fps)])
    assert open_clip(tmp_path / "c.mp4").fps == pytest.approx(fps, rel=1e-6)


def test_a_clip_is_decoded_only_when_asked(board, tmp_path):
    storyboard.save(board, tmp_path / "s")
    loaded = storyboard.load(tmp_path / "s")
    (tmp_path / "s" / "clips" / "02.mp4").unlink()
    assert len(loaded.clips[0].frames) == 5
    with pytest.raises(KSGenError, match="02.mp4"):
        _ = loaded.clips[1].frames


def test_a_run_stopped_after_any_event_is_resumed_to_the_same_files(tmp_path):
    whole = list(storyboard.keep(events(), tmp_path / "whole", SETTINGS))
    wanted = files(tmp_path / "whole")
    for count in range(1, len(whole), 2):
        folder = tmp_path / str(count)
        list(islice(storyboard.keep(events(), folder, SETTINGS), count))
        place = storyboard.resume(folder, SETTINGS)
        made = place.made()
        going_on = list(storyboard.keep(events(made), folder, SETTINGS, place))
        assert files(folder) == wanted, f"stopped after {count} events"
        assert len(going_on) <= len(whole)


def test_a_folder_of_another_run_is_refused_and_left_alone(board, tmp_path):
    folder = tmp_path / "s"
    list(islice(storyboard.keep(events(), folder, SETTINGS), 4))
    before = files(folder)
    for attempt in (
        lambda: storyboard.save(board, folder),
        lambda: storyboard.start(folder, PLAN),
        lambda: list(storyboard.keep(events(), folder, SETTINGS)),
        lambda: storyboard.resume(folder, {**SETTINGS, "policy": "initial"}),
        lambda: storyboard.resume(folder, SETTINGS, Plan("make tea", (KeyStep("another step"),))),
    ):
        with pytest.raises(KSGenError, match="another run"):
            attempt()
    assert files(folder) == before
    with pytest.raises(KSGenError, match="policy was 'skill_transformer', now 'initial'"):
        storyboard.resume(folder, {**SETTINGS, "policy": "initial"})


def test_a_folder_in_which_nothing_was_made_is_taken_over(tmp_path):
    other, picture = {**SETTINGS, "policy": "initial"}, replace(QUERY, image=blobs(3, (32, 32)))
    list(storyboard.keep(run(picture, retrieve, make_plan, draw, render), tmp_path / "fresh", other))
    for count in (1, 2, 3):
        folder = tmp_path / str(count)
        list(islice(storyboard.keep(events(), folder, SETTINGS), count))
        storyboard.start(folder, PLAN, other)
        assert sorted(files(folder)) == ["plan.json", "run.json"], "the picture of another run would be resumed"
        list(storyboard.keep(run(picture, retrieve, make_plan, draw, render), folder, other))
        assert files(folder) == files(tmp_path / "fresh")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "plan.json").write_text("{}")
    with pytest.raises(KSGenError, match="another run"):
        storyboard.start(tmp_path / "own", PLAN, SETTINGS)


def test_an_unfinished_or_foreign_folder_is_named(tmp_path):
    with pytest.raises(KSGenError, match="plan.json cannot be read"):
        storyboard.load(tmp_path)
    list(islice(storyboard.keep(events(), tmp_path / "s", SETTINGS), 6))
    with pytest.raises(KSGenError, match="lacks the key image or the clip of step 1, 2, 3"):
        storyboard.load(tmp_path / "s")
    (tmp_path / "s" / "plan.json").write_text("{")
    with pytest.raises(KSGenError, match="plan.json is not valid JSON"):
        storyboard.load(tmp_path / "s")
    (tmp_path / "s" / "plan.json").write_text(json.dumps({"kind": "ksgen.plan/1", "goal": "g"}))
    with pytest.raises(KSGenError, match=r"plan.json: .*lacks steps"):
        storyboard.load(tmp_path / "s")
    (tmp_path / "file").write_text("")
    with pytest.raises(KSGenError, match="is a file"):
        storyboard.start(tmp_path / "file", PLAN)


def test_clear_removes_the_run_and_nothing_else(board, tmp_path):
    storyboard.save(board, tmp_path / "s")
    (tmp_path / "s" / "clips" / "mine.txt").write_text("keep me")
    for name in (".writing-a.json", "key_images/.writing-b.png", "clips/.writing-c.mp4"):
        (tmp_path / "s" / name).write_text("what a killed process leaves")
    storyboard.clear(tmp_path / "s")
    assert list(files(tmp_path / "s")) == ["clips/mine.txt"]
    assert not (tmp_path / "s" / "key_images").exists()
    assert not storyboard.is_storyboard(tmp_path / "s"), "a folder is no run"
    assert storyboard.save(board, tmp_path / "s").plan == board.plan


@pytest.mark.skipif(os.name != "posix", reason="limits on the size of files are POSIX's")
def test_a_full_disk_keeps_what_is_made(tmp_path):
    """A limit on the size of files stands in for the full disk; plan and key images are smaller, clips are not."""
    code = (
        "import resource, signal, sys\n"
        "sys.path.insert(0, 'tests')\n"
        "import av, torch\n"
        "from test_storyboard import SETTINGS, events, storyboard, KSGenError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "try:\n"
        f"    list(storyboard.keep(events(), {str(tmp_path / 's')!r}, SETTINGS))\n"
        "except KSGenError as error:\n"
        "    print('told:', error)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "told:" in done.stdout and "cannot be written" in done.stdout
    left = files(tmp_path / "s")
    assert "plan.json" in left and not any(".writing-" in name for name in left)
    place = storyboard.resume(tmp_path / "s", SETTINGS)
    list(storyboard.keep(events(place.made()), tmp_path / "s", SETTINGS, place))
    assert len(storyboard.load(tmp_path / "s").clips) == 3


def test_an_unwritable_folder_is_named(board, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(KSGenError, match="cannot be written|is a file"):
        storyboard.save(board, tmp_path / "file" / "s")


@pytest.mark.parametrize("count", [1, 4, 5, 8])
def test_the_sheet_shows_every_step_whatever_the_texts(count):
    texts = ("cut", "pour the hot water from the kettle into the mug " * 4, "Donaudampfschifffahrt" * 9, "切胡萝卜")
    plan = Plan("make tea " * 30, tuple(KeyStep(texts[k % 4]) for k in range(count)))
    images = [torch.full((20, 30, 3), 0.5) for _ in range(count)]
    clips = [Clip.of(torch.full((5, 20, 30, 3), 0.25), 8.0) for _ in range(count)]
    plain, full = sheet(plan, images), sheet(plan, images, clips)
    for picture, pixels_per_step in ((plain, 1), (full, 2)):
        assert picture.ndim == 3 and 0 <= picture.min() and picture.max() <= 1
        grey = ((picture - 0.5).abs().amax(-1) < 0.01).sum() / count
        dark = ((picture - 0.25).abs().amax(-1) < 0.01).sum() / count
        assert grey > 150 * 200
        assert pixels_per_step == 1 or dark > 150 * 200 * 2 * 0.9
    with pytest.raises(ValueError, match="each of"):
        sheet(plan, images[:-1] if count > 1 else images * 2)


def test_a_broken_clip_of_a_folder_is_named_and_made_again_with_resume(tmp_path):
    write_video(tmp_path / "whole.mp4", [Clip.of(torch.rand(3, 32, 32, 3), 8.0)])
    place = storyboard.start(tmp_path / "s", Plan("make tea", (KeyStep("cut"),)))
    place.keep_key_image(0, torch.rand(32, 32, 3))
    place.clip_path(0).parent.mkdir()
    place.clip_path(0).write_bytes((tmp_path / "whole.mp4").read_bytes()[:200])
    with pytest.raises(KSGenError, match=r"01\.mp4 cannot be read as a video.*delete it.*--resume"):
        storyboard.load(tmp_path / "s")


def test_the_sheet_keeps_no_film_in_memory():
    films = []

    def read() -> torch.Tensor:
        assert all(film() is None for film in films), "a film read before lives on"
        film = np.full((5, 20, 30, 3), 0.25, np.float32)
        films.append(weakref.ref(film))
        return torch.from_numpy(film)

    plan = Plan("make tea", tuple(KeyStep("cut") for _ in range(4)))
    sheet(plan, [torch.full((20, 30, 3), 0.5)] * 4, [Clip(8.0, read)] * 4)
    assert len(films) == 4


def peak(code: str) -> int:
    """Bytes that a process needs at most to run `code`."""
    code = "import resource, sys, torch\nfrom pathlib import Path\n" + code + "\n"
    code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform == "win32", reason="the peak of a process is asked of POSIX")
def test_the_sheet_keeps_small_pictures_only(tmp_path):
    write_lossless(tmp_path / "a.mkv", np.zeros((3, 1024, 1024, 3), np.uint8), 8.0)
    code = (
        "from ksgen_core.sheet import sheet\nfrom ksgen_core.types import KeyStep, Plan\n"
        "from ksgen_core.video import open_clip\n"
        f"clip = open_clip({str(tmp_path / 'a.mkv')!r})\n"
        "sheet(Plan('make tea', (KeyStep('cut'),) * COUNT), [torch.zeros(1024, 1024, 3)] * COUNT, [clip] * COUNT)"
    )
    few, many = (peak(code.replace("COUNT", str(count))) for count in (4, 16))
    assert many - few < 12 * 1024 * 1024 * 3 * 4, "less than one picture of full size per step"


@pytest.mark.skipif(sys.platform == "win32", reason="the peak of a process is asked of POSIX")
def test_finishing_a_folder_needs_no_more_memory_for_longer_clips(tmp_path):
    def finish(count: int) -> int:
        place = storyboard.start(tmp_path / str(count), Plan("make tea", (KeyStep("cut"),)))
        place.keep_key_image(0, torch.zeros(128, 128, 3))
        place.keep_clip(0, Clip.of(torch.zeros(1, 128, 128, 3).expand(count, -1, -1, -1), 8.0))
        return peak(
            "from ksgen_core import storyboard\n"
            f"folder = Path({str(place.path)!r})\n"
            "list(storyboard.StoryboardFolder(folder, storyboard.read_plan(folder / 'plan.json')).finish())"
        )

    few, many = finish(20), finish(500)
    assert many - few < 480 * 128 * 128 * 3, "as 32-bit floats the film takes four times as much"
