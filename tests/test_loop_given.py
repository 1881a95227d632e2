"""What comes into a loop and its bodies: pictures that a step lacks, values that no class declares, clips."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_graph import (
    ALL,
    PLAN,
    TEXTS,
    SmallGraph,
    edited,
    graph_of,
    look,
    loop_graph,
    loop_of,
    node,
    out,
    picture,
    planned,
    ran,
    run_loop,
)

from ksgen_core.cache import ResultCache
from ksgen_core.errors import KSGenError
from ksgen_core.loop import results
from ksgen_core.types import Clip
from ksgen_core.video import open_clip


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """No power fails during these tests."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def cache(tmp_path):
    return ResultCache(tmp_path / "results")


# --- pictures that a step lacks -------------------------------------------------------------------------------------


def test_a_step_that_lacks_a_picture_that_the_result_needs_is_refused_before_anything_runs(cache):
    graph = graph_of(image=out("next_key_image"))
    with pytest.raises(KSGenError, match="Step 6 has no next key image"):
        ran(cache, graph=graph, key_images=torch.zeros(6, 16, 16, 3))
    assert cache.entries() == []


@pytest.fixture
def leading():
    """A body that leads from each key image to the next, and needs that one."""
    return loop_graph({"blend": node("Blend", a=out("next_key_image"), b=out("key_image"))}, ["blend", 0])


IMAGES = torch.cat([picture(0.15 * k) for k in range(1, 7)])


def other_image(number: int) -> torch.Tensor:
    """The key images, with another one for one step (from 1)."""
    images = IMAGES.clone()
    images[number - 1] = 0
    return images


def test_a_step_that_lacks_a_picture_can_be_left_out(cache, leading):
    numbers, made = run_loop(leading, loop_of(key_images=IMAGES, steps="1-5"), cache)
    assert numbers == [1, 2, 3, 4, 5] and [one is None for one in made] == [False] * 5 + [True]
    assert ran(cache, graph=leading, key_images=other_image(6), steps="1-5") == [5], "it leads to the last one"
    with pytest.raises(KSGenError, match="Step 6 has no next key image, .* leave the step out with 'steps'"):
        ran(cache, graph=leading, key_images=IMAGES, steps="6")


def test_without_an_initial_picture_the_first_step_has_no_previous_one(cache):
    body = {
        "paint": node("Paint", image=["photo", 0], text=out("text")),
        "blend": node("Blend", a=["paint", 0], b=out("previous")),
    }
    graph = loop_graph(body, ["blend", 0], photo=node("Picture", shade=0.5))
    numbers, made = run_loop(graph, loop_of(image=None), cache)
    _, alone = run_loop(loop_graph(body, ["paint", 0], photo=node("Picture", shade=0.5)), loop_of(image=None), cache)
    assert numbers == ALL and [one.equal(other) for one, other in zip(made, alone, strict=True)] == [True] + [False] * 5
    assert ran(cache, edited(PLAN, 3, text="slice"), graph=graph, image=None) == [3, 4, 5, 6]
    with pytest.raises(KSGenError, match="Step 1 has no previous, which"):
        ran(cache, carry=True, image=None)


def test_a_locked_step_keeps_its_result_though_it_could_not_be_made_any_more(cache, leading):
    """It was not the last step when it was made; now it lacks the next key image."""
    five = replace(PLAN, steps=PLAN.steps[:5])
    _, before = run_loop(leading, loop_of(edited(PLAN, 5, lock=True), key_images=IMAGES, steps="1-5"), cache)
    locked = loop_of(edited(five, 5, lock=True), key_images=IMAGES[:5])
    numbers, after = run_loop(leading, locked, cache)
    assert numbers == [] and all(map(torch.equal, after, before[:5]))
    with pytest.raises(KSGenError, match="Step 5 has no next key image"):
        run_loop(leading, loop_of(five, key_images=IMAGES[:5]), cache)


def test_a_switch_by_is_last_chooses_between_key_images(cache):
    """The last step has no next key image; the switch does not ask for it then."""
    body = {
        "switch": node("Switch", switch=out("is_last"), on_true=out("key_image"), on_false=out("next_key_image")),
        "blend": node("Blend", a=out("key_image"), b=["switch", 0]),
    }
    graph = loop_graph(body, ["blend", 0])
    numbers, made = run_loop(graph, loop_of(key_images=IMAGES), cache)
    assert numbers == ALL
    for k, one in enumerate(made):
        ahead = IMAGES[min(k + 1, 5)]
        assert (one[0] - (IMAGES[k] + ahead) / 2).abs().max() <= 1 / 255
    assert ran(cache, graph=graph, key_images=other_image(3)) == [2, 3]
    assert ran(cache, graph=graph, key_images=other_image(6)) == [5, 6]
    assert ran(cache, planned(*TEXTS, "eat"), graph=graph, key_images=torch.cat([IMAGES, IMAGES[:1]])) == [6, 7]


# --- inputs that a class does not declare ---------------------------------------------------------------------------


def test_values_reach_inputs_that_a_class_does_not_declare(cache):
    """Such a node makes what one that declares them makes, and none of its steps are taken for each other."""
    graph = graph_of().changed("paint", "Any")
    numbers, made = run_loop(graph, loop_of(), cache)
    _, declared = run_loop(graph_of(), loop_of(), cache)
    assert numbers == ALL and all(map(torch.equal, made, declared))
    assert ran(cache, edited(PLAN, 4, text="steam"), graph=graph) == [4]


# --- clips that came in ---------------------------------------------------------------------------------------------


@pytest.fixture
def films(cache):
    """The clips of a loop, in files."""
    run_loop(graph_of(), loop_of(), cache)
    return tuple(results.clip_of(run.result) for run in look(graph_of(), loop_of(), cache) if run.result)


def second_pass() -> SmallGraph:
    body = {"tint": node("Tint", image=out("clip_frames"), text=out("text"))}
    return loop_graph(body, ["tint", 0])


def moved(clip: Clip, folder: Path) -> Clip:
    """The same file in another place."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{len(list(folder.iterdir()))}.mkv"
    path.write_bytes((clip.path or Path()).read_bytes())
    return open_clip(path)


def test_a_second_pass_over_clips_is_remembered_by_their_content(cache, films, tmp_path):
    numbers, made = run_loop(second_pass(), loop_of(clips=films), cache)
    assert numbers == ALL and all(len(one) == 4 for one in made) and not made[0].equal(made[1])
    assert ran(cache, graph=second_pass(), clips=films) == []
    elsewhere = tuple(moved(clip, tmp_path / "moved") for clip in films)
    assert ran(cache, graph=second_pass(), clips=elsewhere) == [], "the same content in another place"
    _, rolled = run_loop(graph_of(), loop_of(edited(PLAN, 4, seed=9)), cache)
    kept = look(graph_of(), loop_of(edited(PLAN, 4, seed=9)), cache)[3].result
    assert kept is not None and not rolled[3].equal(films[3].frames)
    assert ran(cache, graph=second_pass(), clips=(*films[:3], results.clip_of(kept), *films[4:])) == [4]


def test_clips_in_memory_count_by_their_frames_and_their_rate(cache):
    def clips(fps: float, shade: float = 0.5) -> tuple[Clip, ...]:
        return tuple(Clip.of(picture(shade if k == 2 else 0.1 * k), fps) for k in range(6))

    assert ran(cache, graph=second_pass(), clips=clips(8.0)) == ALL
    assert ran(cache, graph=second_pass(), clips=clips(8.0)) == []
    assert ran(cache, graph=second_pass(), clips=clips(8.0, 0.75)) == [3]
    assert ran(cache, graph=second_pass(), clips=clips(16.0)) == ALL


def test_clips_that_nothing_uses_do_not_count(cache, films):
    assert ran(cache, clips=films[::-1]) == []


def test_a_clip_that_is_damaged_or_gone_is_refused_before_anything_runs(cache, films, tmp_path):
    elsewhere = (moved(films[0], tmp_path / "moved"), *films[1:])
    (elsewhere[0].path or Path()).unlink()
    before = len(cache.entries())
    with pytest.raises(KSGenError, match=r"moved.*0\.mkv cannot be read"):
        ran(cache, graph=second_pass(), clips=elsewhere)
    path = films[1].path or Path()
    path.write_bytes(path.read_bytes() + b"!")
    with pytest.raises(KSGenError, match="result of step 2 is damaged or gone"):
        ran(cache, graph=second_pass(), clips=films)
    assert len(cache.entries()) == before - 1, "only what was damaged went"
    assert ran(cache) == [2], "the first loop makes it again"
    assert ran(cache, graph=second_pass(), clips=films) == ALL, "and it can be read by the old clip"
