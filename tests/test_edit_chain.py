"""The chain of edits: what each key image is made from, in which words, and the table of families."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ksgen_core.errors import KSGenError
from ksgen_core.keysteps.edit_chain import HOPS, KEEP, check_order, instruction, references
from ksgen_core.keysteps.families import FAMILIES, LONGEST, defaults_of, family_of, size_like
from ksgen_core.types import KeyStep, Plan

TEXTS = ["peel the egg.", "slice it", "put the slices on bread", "add salt", "add pepper", "serve it", "wash up"]
PLAN = Plan("make an egg sandwich", tuple(map(KeyStep, TEXTS)))
BY_NAME = {family.name: family for family in FAMILIES}
EDITING = [family for family in FAMILIES if family.edits]


def hops(k):
    """How many edits lie between the hero and key image k, counted by going back the latest reference."""
    return 0 if k == 0 else 1 + hops(references(k)[-1])


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_no_key_image_is_more_than_four_edits_away_from_the_hero(at_once):
    assert [hops(k) for k in range(10)] == [0, 1, 2, 3, 4, 1, 2, 3, 4, 1]
    for k in range(1, 60):
        found = references(k, at_once)
        assert 1 <= len(found) <= at_once and list(found) == sorted(set(found))
        assert all(0 <= r < k for r in found)  # what is not made yet is never looked at
        assert found[-1] in (0, k - 1)
        if at_once > 1:
            assert found[0] == 0  # the hero is always there
        assert hops(k) <= HOPS


def test_after_four_edits_the_hero_is_the_only_reference_again():
    assert [references(k) for k in range(7)] == [(), (0,), (0, 1), (0, 2), (0, 3), (0,), (0, 5)]
    assert [references(k, 1) for k in range(7)] == [(), (0,), (1,), (2,), (3,), (0,), (5,)]


@pytest.mark.parametrize("k, at_once", [(-1, 2), (3, 0)])
def test_wrong_numbers_are_a_callers_bug(k, at_once):
    with pytest.raises(ValueError, match="counted from 0"):
        references(k, at_once)


@pytest.mark.parametrize(
    "steps, made", [([0, 1, 2, 3], ()), ([3], (2,)), ([1], ()), ([5], ()), ([2, 6], (1, 5)), ([], ())]
)
def test_what_can_be_drawn(steps, made):
    check_order(steps, made)


@pytest.mark.parametrize("steps, made, named", [([2], (), "step 3 .* step 2,"), ([1, 3], (0,), "step 4 .* step 3,")])
def test_a_step_without_the_one_before_is_refused_by_name(steps, made, named):
    with pytest.raises(KSGenError, match=named):
        check_order(steps, made)


def test_the_instruction_says_the_step_and_what_was_done_since_the_latest_reference():
    first, second, anew = (instruction(PLAN, k) for k in (1, 2, 5))
    assert first.startswith("Show the same scene at the moment when this begins: slice it.")
    assert "Done in the meantime: peel the egg." in first and "Picture 1" not in first
    assert "Done in the meantime: slice it." in second and "peel the egg" not in second
    assert "Picture 1 is the scene at the very beginning, picture 2 the latest one" in second
    assert "Done in the meantime: peel the egg; slice it; put the slices on bread; add salt; add pepper." in anew
    assert "Picture 1" not in anew
    for text in (first, second, anew):
        assert KEEP in text and text.endswith("The whole task: make an egg sandwich.") and ".." not in text


def test_a_model_of_one_picture_is_told_of_one():
    assert "Picture 1" not in instruction(PLAN, 2, at_once=1)
    assert instruction(PLAN, 1, at_once=1) == instruction(PLAN, 1)


def test_the_state_before_is_said_and_else_the_state_after_the_former_step():
    steps = [replace(PLAN.steps[0], after="The shell lies on the table"), PLAN.steps[1], *PLAN.steps[2:]]
    assert "The scene then: The shell lies on the table." in instruction(replace(PLAN, steps=tuple(steps)), 1)
    steps[1] = replace(steps[1], before="the egg is white!")
    text = instruction(replace(PLAN, steps=tuple(steps)), 1)
    assert "The scene then: the egg is white!" in text and "shell" not in text
    assert "The scene then" not in instruction(PLAN, 1)


def test_a_key_image_knows_nothing_of_later_steps():
    shorter = replace(PLAN, steps=PLAN.steps[:4])
    assert all(instruction(PLAN, k) == instruction(shorter, k) for k in (1, 2, 3))
    with pytest.raises(ValueError, match="initial picture"):
        instruction(PLAN, 0)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_families_are_found_by_their_pipelines(tmp_path, family):
    for pipeline in family.pipelines:
        index = {"_class_name": pipeline, "is_distilled": family.name == "flux2-klein"}
        (tmp_path / "model_index.json").write_text(json.dumps(index))
        assert family_of(tmp_path) is family


def test_an_unknown_family_is_refused_with_the_known_ones(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableCascadeDecoderPipeline"}')
    with pytest.raises(KSGenError, match="StableCascade.*QwenImageEditPlusPipeline.*FluxKontextPipeline"):
        family_of(tmp_path)


def test_the_table_is_sound():
    assert len(BY_NAME) == len(FAMILIES)
    for family in EDITING:
        assert set(family.parts) >= {"transformer", "vae", "text_encoder"}
        assert (family.guidance_word is None) <= (family.guidance == 1)
        assert all(path.split(".")[0] in ("diffusers", "transformers") for path in family.parts.values())


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_sizes_have_the_models_area_and_the_pictures_shape(family):
    assert size_like(700, 700, family, family.area) == (1024, 1024)
    for height, width in [(480, 720), (720, 480), (1080, 1920), (333, 1000), (1333, 1000), (100, 790), (2000, 1999)]:
        h, w = size = size_like(height, width, family, family.area)
        assert h % family.multiple == w % family.multiple == 0
        assert 0.9 < h * w / family.area <= (1.1 if family.nearest else 1)
        assert abs((w / h) / (width / height) - 1) < 0.1
        assert size_like(h, w, family, family.area) == size  # a key image keeps its size


def test_sizes_are_those_that_diffusers_gives_its_references():
    from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import calculate_dimensions

    for width in range(300, 2400, 77):
        height, wide = size_like(700, width, BY_NAME["qwen-edit"], 1024 * 1024)
        assert calculate_dimensions(1024 * 1024, wide / height) == (wide, height)


def test_a_picture_that_is_all_length_is_refused():
    with pytest.raises(KSGenError, match=f"9000x1000 pixels, more than {LONGEST} times"):
        size_like(1000, 9000, BY_NAME["flux2-klein"], 1024 * 1024)


def test_a_folders_own_defaults_come_before_the_familys(tmp_path):
    family = BY_NAME["flux2-klein"]
    assert defaults_of(tmp_path, family).updates == 4
    (tmp_path / "ksgen.json").write_text('{"updates": 8, "size": [512, 768], "text_layers": [1, 2]}')
    own = defaults_of(tmp_path, family)
    assert (own.updates, own.guidance, own.size, own.text_layers) == (8, 1.0, (512, 768), (1, 2))


@pytest.mark.parametrize("text, said", [
    ('{"update": 8}', "unknown field.* update"),
    ('{"updates": 0}', "at least 1 update"),
    ('{"text_layers": ["a"]}', "whole numbers"),
])  # fmt: skip
def test_wrong_defaults_are_refused(tmp_path, text, said):
    (tmp_path / "ksgen.json").write_text(text)
    with pytest.raises(KSGenError, match=said):
        defaults_of(tmp_path, BY_NAME["qwen-edit"])
