"""What a run of drawing is asked for, and what it takes where nothing is asked: the folder's own, else the family's."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from tiny_keysteps import FAST, PLAN, TEXTS, draw, picture

from ksgen_core.build import MINI
from ksgen_core.errors import KSGenError
from ksgen_core.keysteps.draw import check_policy, complete, conditions, draw_batch, draw_key_steps, prompt
from ksgen_core.keysteps.policies import POLICIES, DrawSettings, read_defaults, resolve_policy
from ksgen_core.keysteps.sdxl_diffusers import KeyStepModel
from ksgen_core.pipeline import KeyImage, Update
from ksgen_core.types import KeyStep, with_seeds

pytest_plugins = ["keysteps_fixtures"]


def drawn_at_once(model, steps, settings):
    """The steps of each batch, in order."""
    events = draw_key_steps(model, picture(), PLAN, steps, settings)
    return list(dict.fromkeys(event.steps for event in events if isinstance(event, Update)))


def test_what_is_left_open_is_the_folders_own_or_else_the_familys(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "own")
    assert complete(KeyStepModel.load(trained), DrawSettings()) == DrawSettings(
        "skill_transformer", 20, 3.5, 0, "", (32, 32)
    )
    (tmp_path / "own/ksgen.json").write_text('{"guidance": 2, "negative": "blurred", "size": [64, 32]}')
    model = KeyStepModel.load(tmp_path / "own")
    assert complete(model, DrawSettings("reference")) == DrawSettings("reference", 30, 2.0, 0, "blurred", (64, 32))
    asked = DrawSettings("initial", 7, 1.5, 3, "dark", (32, 64))
    assert complete(model, asked) == asked
    model.save(tmp_path / "again")
    assert KeyStepModel.load(tmp_path / "again").defaults == model.defaults
    (tmp_path / "own/ksgen.json").unlink()
    model = KeyStepModel.load(tmp_path / "own")
    assert complete(model, DrawSettings()) == DrawSettings("skill_transformer", 30, 5.0, 0, "", (32, 32))
    model.save(tmp_path / "bare")
    assert not (tmp_path / "bare/ksgen.json").exists()


def test_the_embedded_model_says_how_it_draws():
    assert read_defaults(MINI / "keysteps") == {"updates": 20, "guidance": 3.5}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "ksgen.json cannot be read"),
        ('{"frames": 17}', "ksgen.json has unknown field.* frames"),
        ('{"updates": 2.5}', "ksgen.json: updates must be of type int"),
        ('{"updates": 0}', "ksgen.json: The number of sampler updates"),
        ('{"guidance": 0.5}', "ksgen.json: Guidance is a number from 1"),
        ('{"size": [64]}', "ksgen.json: The size of key images"),
    ],
)
def test_a_folders_settings_that_are_none_are_named(tmp_path, text, match):
    (tmp_path / "ksgen.json").write_text(text)
    with pytest.raises(KSGenError, match=match):
        read_defaults(tmp_path)


def test_all_steps_are_drawn_in_one_batch_unless_fewer_are_asked_for(model):
    for batch, wanted in (
        (0, [(1, 2, 3)]),
        (1, [(1,), (2,), (3,)]),
        (2, [(1, 2), (3,)]),
        (9, [(1, 2, 3)]),
    ):
        assert drawn_at_once(model, [0, 1, 2, 3], replace(FAST, batch=batch)) == wanted


def test_a_batch_that_failed_can_be_drawn_in_halves(model):
    settings = complete(model, replace(FAST, policy="skill_transformer"))
    plan, pair = with_seeds(PLAN, 0), conditions(model, picture(), PLAN, 3, "skill_transformer")
    broken = draw_batch(model, [1, 2, 3], plan, *pair, settings)
    next(broken)  # runs out of memory here, say
    broken.close()
    images = {
        event.step: event.image
        for half in ([1], [2, 3])
        for event in draw_batch(model, half, plan, *pair, settings)
        if isinstance(event, KeyImage)
    }
    whole = draw(model, [1, 2, 3], settings=replace(FAST, batch=0), image=picture())
    again = conditions(model, picture(), PLAN, 3, "skill_transformer")
    assert all(
        one.equal(other)
        for a, b in zip(pair, again, strict=True)
        for one, other in zip(a._parts(), b._parts(), strict=True)
    )
    assert all((images[k] - whole[k]).abs().max() < 2.01 / 255 for k in (1, 2, 3))


def test_another_size_is_drawn_and_one_that_does_not_fit_is_refused(model):
    image = draw(model, [0, 2], settings=replace(FAST, size=(32, 64)))
    assert image[0].shape == image[2].shape == (32, 64, 3)
    with pytest.raises(KSGenError, match=r"multiples of 8, got \(32, 60\)"):
        draw(model, [2], settings=replace(FAST, size=(32, 60)))


def test_the_negative_prompt_stands_in_the_empty_condition(model):
    _, plain = conditions(model, picture(), PLAN, 2, "text_only")
    given, empty = conditions(model, picture(), PLAN, 2, "text_only", "blurred")
    text, _, pooled = model.encode_texts(["blurred"])
    torch.testing.assert_close(empty.text[:1], text, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(empty.pooled[2:], pooled, atol=1e-5, rtol=1e-5)
    assert not empty.text.equal(plain.text)
    assert not draw(model, [2], settings=replace(FAST, negative="blurred"))[2].equal(draw(model, [2])[2])


def test_no_text_is_zeros_where_the_folder_says_so(plain, tmp_path):
    shutil.copytree(plain, tmp_path / "sdxl")
    index = json.loads((plain / "model_index.json").read_text())
    (tmp_path / "sdxl/model_index.json").write_text(json.dumps(index | {"force_zeros_for_empty_prompt": True}))
    model = KeyStepModel.load(tmp_path / "sdxl")
    _, empty = conditions(model, picture(), PLAN, 1, "text_only")
    assert not empty.text.any() and not empty.pooled.any()
    ours = draw(model, [2], settings=replace(FAST, guidance=3.0))[2]
    model.pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(12))
    theirs = model.pipe(  # no negative prompt at all: then it takes zeros too
        TEXTS[2], height=32, width=32, num_inference_steps=4, guidance_scale=3.0, latents=noise, output_type="pt"
    ).images[0]
    torch.testing.assert_close(ours, theirs.movedim(0, -1), atol=0.51 / 255, rtol=0)
    _, negative = conditions(model, picture(), PLAN, 1, "text_only", "blurred")
    assert negative.text.any() and negative.pooled.any()


# Policies.


def test_auto_is_the_best_that_the_model_has_the_parts_for(trained, plain):
    model = KeyStepModel.load(trained)
    assert POLICIES[0] == DrawSettings().policy == "auto"
    assert resolve_policy(model, "auto") == "skill_transformer"
    model.skill_transformer = None
    assert resolve_policy(model, "auto") == "image_prompt"
    assert resolve_policy(KeyStepModel.load(plain), "auto") == "text_only"
    assert all(resolve_policy(model, policy) == policy for policy in POLICIES[1:])


def test_an_image_prompt_is_the_initial_pictures_own_tokens_for_every_step(trained):
    model = KeyStepModel.load(trained)
    model.skill_transformer = None  # it needs none
    given, empty = conditions(model, picture(), PLAN, 3, "image_prompt")
    tokens = model.encode_images(picture()[None])[0]
    assert all(row.equal(tokens) for row in given.image_tokens)
    assert all(row.equal(model.zero_image_tokens()) for row in empty.image_tokens)
    image = draw(model, [2], settings=replace(FAST, policy="image_prompt"))[2]
    assert not image.equal(draw(model, [2], settings=replace(FAST, policy="reference"))[2])


def test_what_a_model_cannot_draw_is_said_before_any_work(plain):
    model = KeyStepModel.load(plain)
    for policy, match in (
        ("image_prompt", "no IP-Adapter-Plus"),
        ("edit_chain", "Qwen-Image-Edit-Plus, Flux Kontext or Flux.2 Klein.* holds SDXL"),
        ("skill_transformer", "no Skill Transformer"),
        ("last_frame", "Render the clips as a chain"),
    ):
        with pytest.raises(KSGenError, match=match):
            check_policy(model, policy)
        with pytest.raises(KSGenError, match=match):
            draw_key_steps(model, picture(), PLAN, [1], DrawSettings(policy))


def test_a_model_that_draws_by_itself_is_asked_to():
    class Own:
        def draw(self, image, plan, steps, settings, made):
            yield KeyImage(steps[0], made[0])

    image = picture()
    events = list(draw_key_steps(Own(), image, PLAN, [2], DrawSettings(), {0: image}))
    assert [(event.step, event.image is image) for event in events] == [(2, True)]
    assert resolve_policy(Own(), "auto") == "edit_chain"


def test_pictures_that_are_there_change_nothing_for_a_model_that_needs_none(model):
    events = list(draw_key_steps(model, picture(), PLAN, [2], FAST, {1: picture(5)}))
    assert events[-1].image.equal(draw(model, [2])[2])


# Words.


def test_the_state_before_is_told_to_the_backbone_but_not_to_the_skill_transformer(model):
    assert prompt(KeyStep("pour hot water into the mug")) == "pour hot water into the mug"
    step = KeyStep("pour hot water into the mug.", before="The mug holds a tea bag.")
    assert prompt(step) == "pour hot water into the mug. The mug holds a tea bag."
    told = replace(PLAN, steps=tuple(replace(step, before="The mug is empty.") for step in PLAN.steps))
    for policy, changes in (("skill_transformer", False), ("reference", True), ("image_prompt", True)):
        plain, with_state = (conditions(model, picture(), plan, 3, policy)[0] for plan in (PLAN, told))
        assert with_state.text.equal(plain.text) != changes, policy
        assert with_state.pooled.equal(plain.pooled) != changes, policy
    text, _, _ = model.encode_texts([*(prompt(step) for step in told.steps), ""])
    assert conditions(model, picture(), told, 3, "text_only")[0].text.equal(text[:-1])
