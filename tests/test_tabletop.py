"""The procedural world: what it promises to trainers, tests and the benchmark."""

from __future__ import annotations

from itertools import combinations
from random import Random

import numpy as np
import pytest

pytest.importorskip("skia", reason="Tabletop is drawn with skia-python: pip install -e .[tabletop]")

from ksgen_core.tabletop import skills
from ksgen_core.tabletop.instances import SPLITS, make, skills_of
from ksgen_core.tabletop.raw_video import raw_video
from ksgen_core.tabletop.world import HEADS, KINDS
from ksgen_core.types import Plan


def test_the_world_is_as_large_as_promised():
    assert len(KINDS) >= 25
    assert {s.action for skill in skills.SKILLS for s in skill.steps} == set(skills.ACTIONS)
    assert len(skills.ACTIONS) >= 12 and len(skills.SKILLS) >= 24
    assert all(2 <= len(skill.steps) <= 7 for skill in skills.SKILLS)


def test_every_step_changes_something_that_can_be_seen():
    for skill in skills.SKILLS:
        for seed in range(5):
            run = skills.unfold(skill, Random(seed))
            assert 1 <= len(run.steps) <= 7
            for k in range(len(run.steps)):
                assert run.states[k] != run.states[k + 1], (skill.name, k)


def test_steps_already_done_are_skipped_in_plan_and_picture():
    tea = skills.BY_NAME["tea"]
    whole, later = (skills.unfold(tea, Random(4), skip=n) for n in (0, 1))
    assert later.steps == whole.steps[1:]
    assert later.states[0] == whole.states[1]


def test_unseen_skills_are_compositions_never_trained():
    # by effect as well: butter and jam are both spread with a knife on bread
    known = [{(s.action, s.obj, s.target, s.effects) for s in skill.steps} for skill in skills_of("train")]
    for skill in skills_of("unseen"):
        own = {(s.action, s.obj, s.target, s.effects) for s in skill.steps}
        assert not any(own <= other for other in known), skill.name
    assert not set(skills_of("train")) & set(skills_of("unseen"))


def test_mixtures_are_whole_plans_of_trained_steps_and_leave_the_unseen_alone():
    def keys(skill):
        return [(s.action, s.obj, s.target, s.effects) for s in skill.steps]

    unseen = {frozenset(pair) for skill in skills_of("unseen") for pair in combinations(keys(skill), 2)}
    trained = {frozenset(pair) for skill in skills_of("train") for pair in combinations(keys(skill), 2)}
    names = set()
    for seed in range(200):
        run = make("mixed", seed).run
        names.add(run.skill.name)
        assert 1 <= len(run.steps) <= 7
        assert all(run.states[k] != run.states[k + 1] for k in range(len(run.steps)))
        pairs = {frozenset(pair) for pair in combinations(keys(run.skill), 2)}
        assert not pairs & (unseen - trained)
    assert len(names) > 100 and names.isdisjoint(skills.BY_NAME)


def test_words_of_unseen_skills_are_known_objects_and_values():
    trained = {n for skill in skills_of("train") for n in skill.cast}
    assert {n for skill in skills_of("unseen") for n in skill.cast} <= trained


@pytest.mark.parametrize("split", SPLITS)
def test_an_instance_is_the_same_for_ever(split):
    one, two = make(split, 7), make(split, 7)
    assert one == two
    assert np.array_equal(one.film(0), two.film(0))
    assert one.plan == two.plan and Plan.from_json(one.plan.to_json()) == one.plan


def test_splits_do_not_share_scenes():
    rooms = [make(split, seed).room for split in ("train", "seen") for seed in range(20)]
    assert len({repr(room) for room in rooms}) == len(rooms)


def test_first_frame_is_that_of_the_clip_and_the_clip_moves():
    instance = make("seen", 1)
    for k in range(len(instance.run.steps)):
        film = instance.film(k)
        assert film.shape == (17, 128, 128, 3) and film.dtype == np.uint8
        assert np.array_equal(film[0], instance.first_frame(k))
        assert np.abs(film[8].astype(int) - film[0]).mean() > 0.5


def test_pictures_are_vectors_at_any_size():
    instance = make("seen", 2)
    large = instance.first_frame(0, 256).astype(float)
    small = instance.first_frame(0, 128).astype(float)
    assert np.abs(large.reshape(128, 2, 128, 2, 3).mean((1, 3)) - small).mean() < 4


def test_camera_or_layout_jumps_between_steps():
    instance = make("seen", 3)
    assert len(instance.shots) > 1
    assert (
        len(
            {
                shot.places[instance.run.steps[0].target][:2]
                for shot in instance.shots
                if instance.run.steps[0].target in shot.places
            }
        )
        > 1
    )


def test_every_skill_can_be_filmed_and_described():
    for skill in skills.SKILLS:
        instance = make("seen", 5, [skill])
        for k, step in enumerate(instance.plan.steps):
            assert instance.film(k, frames=3).std() > 5
            assert step.before and step.after and step.before != step.after


def test_every_fact_can_be_said_and_all_differ():
    from ksgen_core.tabletop.world import say

    for name, attribute, values in HEADS:
        assert len({say(name, attribute, value) for value in values}) == len(values)


def test_raw_video_says_what_is_in_it():
    instance = make("seen", 4)
    video = raw_video(instance, 9)
    assert [s.step for s in video.segments if s.kind == "step"] == list(range(len(instance.run.steps)))
    assert video.segments[0].start == 0 and video.segments[-1].end == len(video.frames)
    assert all(a.end == b.start for a, b in zip(video.segments, video.segments[1:], strict=False))
    assert np.array_equal(raw_video(instance, 9).frames, video.frames)
    shown = next(s for s in video.segments if s.kind == "step" and not s.text)
    assert np.array_equal(video.frames[shown.start], instance.first_frame(shown.step))


def test_raw_videos_have_filler_and_text():
    segments = [s for seed in range(12) for s in raw_video(make("seen", seed), seed).segments]
    assert {s.kind for s in segments} == {"step", "idle", "title", "elsewhere"}
    assert any(s.text and s.kind == "step" for s in segments)
