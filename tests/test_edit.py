"""Editing models: tiny random ones of every family, against their bare pipelines, saved, cancelled, drawn in parts."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from functools import cache
from types import SimpleNamespace

import pytest
import tiny_edit
import torch
from tiny_edit import FIRST, KINDS, PLAN, SIDE, picture

from ksgen_core import pixels
from ksgen_core.errors import KSGenError
from ksgen_core.keysteps.check_diffusers import check_key_folder
from ksgen_core.keysteps.draw import draw_key_steps
from ksgen_core.keysteps.edit_chain import instruction
from ksgen_core.keysteps.edit_diffusers import EditModel
from ksgen_core.keysteps.edit_files_diffusers import read_folder
from ksgen_core.keysteps.families import family_of
from ksgen_core.keysteps.policies import DrawSettings
from ksgen_core.pipeline import KeyImage, Update
from ksgen_core.sampling_diffusers import State

FAST = DrawSettings(policy="edit_chain", updates=2)
KLEIN = "flux2-klein"


@cache
def model(kind):
    """Read once; it is only ever read from."""
    return EditModel.load(tiny_edit.folder(kind))


def draw(edit_model, steps, image=None, plan=PLAN, settings=FAST, made=None):
    events = draw_key_steps(edit_model, picture() if image is None else image, plan, steps, settings, made)
    return {event.step: event.image for event in events if isinstance(event, KeyImage)}


@cache
def whole(kind):
    """Key images 0..3, for tests that compare with them."""
    return draw(model(kind), range(4))


def weights(edit_model):
    return {f"{name}.{key}": t for name, part in edit_model.parts().items() for key, t in part.state_dict().items()}


def bare(edit_model, images, text, seed):
    """One edit by diffusers' own call, without any of our code."""
    pipe, name = edit_model.pipe, edit_model.family.name
    call = {
        "image": [pixels.to_pil(image) for image in images],
        "prompt": text,
        "height": SIDE,
        "width": SIDE,
        "num_inference_steps": 2,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "pt",
    }
    if name == "qwen-edit":
        call |= {"true_cfg_scale": 4.0, "negative_prompt": " "}
    elif name == "flux-kontext":
        call |= {"image": call["image"][0], "guidance_scale": 2.5, "max_area": SIDE * SIDE, "_auto_resize": False}
    else:
        guidance = 1.0 if name == KLEIN else 4.0
        call |= {"guidance_scale": guidance, "text_encoder_out_layers": (1, 2)}
    pipe.set_progress_bar_config(disable=True)
    return pixels.on_8_bit_grid(pipe(**call).images[0].movedim(0, -1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_image_is_what_the_bare_pipeline_gives(kind):
    edit_model, images = model(kind), whole(kind)
    at_once = edit_model.family.references
    hero = pixels.on_8_bit_grid(picture())
    assert images[0].equal(hero)
    assert images[1].equal(bare(edit_model, [hero], instruction(PLAN, 1, at_once), PLAN.steps[1].seed))
    two = [hero, images[1]] if at_once > 1 else [images[1]]
    assert images[2].equal(bare(edit_model, two, instruction(PLAN, 2, at_once), PLAN.steps[2].seed))
    for image in images.values():
        assert image.shape == (SIDE, SIDE, 3) and image.dtype == torch.float32 and image.device.type == "cpu"
        assert image.equal(pixels.on_8_bit_grid(image)) and 0 <= image.min() and image.max() <= 1


def test_the_first_qwen_edits_one_picture():
    edit_model = model(FIRST)
    assert edit_model.family.references == 1
    image = draw(edit_model, [2], settings=DrawSettings(updates=1, guidance=1.0), made={1: picture(5)})[2]
    assert image.shape == (SIDE, SIDE, 3) and image.std() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_drawn_again_alone_is_the_same(kind):
    again = draw(model(kind), [3], made={2: whole(kind)[2]})
    assert set(again) == {3} and again[3].equal(whole(kind)[3])


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_made_before_is_edited(kind):
    """Another picture in place of key image 2, another key image 3."""
    other = draw(model(kind), [3], made={2: 1 - whole(kind)[2]})
    assert not other[3].equal(whole(kind)[3])


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_read_again_it_draws_the_same(kind, tmp_path):
    model(kind).save(tmp_path / "saved")
    read = EditModel.load(tmp_path / "saved")
    before, after = weights(model(kind)), weights(read)
    assert before.keys() == after.keys() and all(before[name].equal(after[name]) for name in before)
    assert read.defaults == model(kind).defaults and read.family == model(kind).family
    assert draw(read, [1])[1].equal(whole(kind)[1])


@pytest.mark.parametrize("kind", KINDS)
def test_events_count_through_all_steps_and_show_what_comes(kind):
    events = list(model(kind).draw(picture(), PLAN, [0, 1, 2], FAST))
    updates = [event for event in events if isinstance(event, Update)]
    assert [(u.stage, u.steps, u.number, u.total) for u in updates] == [
        ("draw", (1,), 1, 4), ("draw", (1,), 2, 4), ("draw", (2,), 3, 4), ("draw", (2,), 4, 4),
    ]  # fmt: skip
    assert [event.step for event in events if isinstance(event, KeyImage)] == [0, 1, 2]
    for update in updates:
        assert update.preview.shape == (SIDE, SIDE, 3) and 0 <= update.preview.min() and update.preview.max() <= 1
        assert update.preview.std() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_latents_are_unfolded_as_the_pipeline_does_it(kind):
    """The picture's own latents, packed as the backbone has them, come back in place: so previews are not scrambled."""
    edit_model = model(kind)
    latents = edit_model._latents_of(picture())[None]
    pack = edit_model.pipe._pack_latents
    packed = pack(latents) if "klein" in kind else pack(latents, *latents.shape)
    wanted = edit_model._wanted(FAST, picture())
    state = State(1, 2, torch.zeros_like(packed), packed)
    assert edit_model._unfold(state, wanted).equal(latents)


@pytest.mark.parametrize("kind", KINDS)
def test_it_stops_within_one_update(kind):
    passes, edit_model, threads = [], model(kind), threading.active_count()
    hook = edit_model.pipe.transformer.register_forward_hook(lambda *_: passes.append(1))
    try:
        events = edit_model.draw(picture(), PLAN, range(6), DrawSettings(policy="edit_chain", updates=50, guidance=1.0))
        while not isinstance(event := next(events), Update):
            pass
        assert event.number == 1 and event.total == 250
        events.close()
    finally:
        hook.remove()
    assert len(passes) == 1 and threading.active_count() == threads


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_was_given_changes(kind):
    edit_model, image = model(kind), picture()
    made, given = {2: picture(5)}, image.clone()
    before = {name: t.clone() for name, t in weights(edit_model).items()}
    scheduler, config = edit_model.pipe.scheduler, dict(edit_model.pipe.scheduler.config)
    list(edit_model.draw(image, PLAN, [3], FAST, made))
    assert image.equal(given) and made[2].equal(picture(5)) and set(made) == {2}
    assert all(t.equal(before[name]) for name, t in weights(edit_model).items())
    assert edit_model.pipe.scheduler is scheduler and dict(scheduler.config) == config


@pytest.mark.parametrize("kind, passes", [("flux-kontext", 3), (KLEIN, 3), ("flux2-klein-base", 4)])
def test_texts_are_encoded_once_and_before_the_first_update(kind, passes):
    """One pass for each of three instructions, and one for the empty text of guidance."""
    order, edit_model = [], model(kind)
    parts = {name: part for name, part in edit_model.parts().items() if name != "vae"}
    hooks = [part.register_forward_hook(lambda *_, name=name: order.append(name)) for name, part in parts.items()]
    try:
        draw(edit_model, range(4), settings=DrawSettings(policy="edit_chain", updates=1))
    finally:
        for hook in hooks:
            hook.remove()
    first = order.index("transformer")
    assert set(order[first:]) == {"transformer"}
    assert order.count("text_encoder") == passes


def test_guidance_and_updates_come_from_the_folder_where_nothing_is_said():
    edit_model = model("flux2-klein-base")
    events = list(edit_model.draw(picture(), PLAN, [1], DrawSettings(policy="edit_chain")))
    assert events[0].total == 3  # ksgen.json
    by_default = [event.image for event in events if isinstance(event, KeyImage)][0]
    assert by_default.equal(draw(edit_model, [1], settings=DrawSettings(updates=3, guidance=4.0))[1])
    assert not by_default.equal(draw(edit_model, [1], settings=DrawSettings(updates=3, guidance=2.0))[1])


def test_what_guidance_leads_away_from_can_be_said():
    for kind in ("qwen-edit", "flux2-klein-base"):
        other = DrawSettings(updates=2, negative="a table without a mug")
        assert not draw(model(kind), [1], settings=other)[1].equal(whole(kind)[1])


def test_key_images_have_the_shape_of_the_initial_picture():
    edit_model = model(KLEIN)
    images = draw(edit_model, [0, 1], image=picture(height=90, width=200))
    assert edit_model.size == (SIDE, SIDE) and edit_model.size_for(picture(height=90, width=200)) == (64, 144)
    assert images[0].shape == images[1].shape == (64, 144, 3)


def test_a_wanted_size_is_kept():
    edit_model = model("flux-kontext")
    assert draw(edit_model, [1], settings=DrawSettings(updates=1, size=(96, 64)))[1].shape == (96, 64, 3)
    with pytest.raises(KSGenError, match="multiples of 16, got 100 x 64"):
        draw(edit_model, [1], settings=DrawSettings(size=(100, 64)))


def test_the_initial_policy_draws_nothing():
    events = list(model(KLEIN).draw(picture(), PLAN, [0, 4], DrawSettings(policy="initial")))
    assert [event.step for event in events] == [0, 4] and all(event.image.equal(events[0].image) for event in events)


def test_a_given_picture_of_step_0_takes_the_place_of_the_initial_one():
    edit_model = model(KLEIN)
    assert draw(edit_model, [1], image=picture(3), made={0: picture()})[1].equal(whole(KLEIN)[1])


@pytest.mark.parametrize("policy", ["skill_transformer", "text_only", "last_frame"])
def test_other_policies_are_refused(policy):
    with pytest.raises(KSGenError, match=f"{policy}.*edit_chain, auto, initial"):
        model(KLEIN).draw(picture(), PLAN, [1], DrawSettings(policy=policy))


def test_what_cannot_be_drawn_is_refused_before_any_work():
    with pytest.raises(KSGenError, match="step 3 is an edit of that of step 2"):
        model(KLEIN).draw(picture(), PLAN, [2], FAST)
    with pytest.raises(KSGenError, match="knows no guidance, got 3.5"):
        model(KLEIN).draw(picture(), PLAN, [1], DrawSettings(guidance=3.5))
    for kind in (KLEIN, "flux-kontext"):
        with pytest.raises(KSGenError, match="takes no negative prompt"):
            model(kind).draw(picture(), PLAN, [1], DrawSettings(negative="a mess"))
    with pytest.raises(ValueError, match="steps 0..5"):
        model(KLEIN).draw(picture(), PLAN, [6], FAST)


def broken(tmp_path, kind):
    return shutil.copytree(tiny_edit.folder(kind), tmp_path / kind)


def edit_json(path, **more):
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_checked_without_loading_it(kind, tmp_path):
    family = check_key_folder(tiny_edit.folder(kind))
    assert family == family_of(tiny_edit.folder(kind)) and family.edits
    edit_json(broken(tmp_path, kind) / "ksgen.json", area=5)
    with pytest.raises(KSGenError, match="area"):
        check_key_folder(tmp_path / kind)


@pytest.mark.parametrize("kind, lost", [
    (KLEIN, "model_index.json"), (KLEIN, "transformer/config.json"), (KLEIN, "scheduler/scheduler_config.json"),
    ("flux-kontext", "tokenizer_2"), ("flux-kontext", "text_encoder_2/model.safetensors"), ("qwen-edit", "processor"),
    ("qwen-edit", "vae/diffusion_pytorch_model.safetensors"),
])  # fmt: skip
def test_a_missing_file_is_named(tmp_path, kind, lost):
    path = broken(tmp_path, kind) / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(KSGenError, match=lost.split("/")[0]):
        EditModel.load(tmp_path / kind)


def test_cut_weights_are_refused(tmp_path):
    path = broken(tmp_path, KLEIN) / "transformer/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(KSGenError, match="transformer.*cut off"):
        EditModel.load(tmp_path / KLEIN)


def test_a_part_of_another_class_is_refused(tmp_path):
    edit_json(broken(tmp_path, KLEIN) / "model_index.json", text_encoder=["my_code", "Encoder"])
    with pytest.raises(KSGenError, match="names Encoder as its text_encoder; known there is Qwen3ForCausalLM"):
        EditModel.load(tmp_path / KLEIN)


def test_a_part_that_nobody_knows_is_refused(tmp_path):
    edit_json(broken(tmp_path, KLEIN) / "model_index.json", upscaler=["diffusers", "AutoencoderKL"])
    with pytest.raises(KSGenError, match="upscaler; known there is nothing"):
        EditModel.load(tmp_path / KLEIN)


def test_a_folder_that_does_not_edit_is_refused(tmp_path):
    edit_json(broken(tmp_path, KLEIN) / "model_index.json", _class_name="KolorsPipeline")
    with pytest.raises(KSGenError, match="KolorsPipeline, which draws and does not edit.*FluxKontextPipeline"):
        EditModel.load(tmp_path / KLEIN)


def test_weights_in_several_files_must_be_there(tmp_path):
    index = broken(tmp_path, KLEIN) / "transformer/diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "diffusion_pytorch_model-00002-of-00002.safetensors"}}))
    with pytest.raises(KSGenError, match="00002-of-00002.safetensors is missing"):
        EditModel.load(tmp_path / KLEIN)


def test_text_layers_must_fit(tmp_path):
    edit_json(broken(tmp_path, KLEIN) / "ksgen.json", text_layers=[1, 2, 3])
    with pytest.raises(KSGenError, match="layers 1, 2, 3 of its text encoder of 2 layers give 3 x 32"):
        EditModel.load(tmp_path / KLEIN)
    edit_json(broken(tmp_path, "qwen-edit") / "ksgen.json", text_layers=[1])
    with pytest.raises(KSGenError, match="text_layers, which this family has none of"):
        EditModel.load(tmp_path / "qwen-edit")


def test_a_diffusers_that_does_not_know_the_family_is_named(monkeypatch):
    import diffusers

    older = SimpleNamespace(__version__="0.35.0", FluxKontextPipeline=diffusers.FluxKontextPipeline)
    folder = tiny_edit.folder(KLEIN)
    monkeypatch.setitem(sys.modules, "diffusers", older)
    with pytest.raises(KSGenError, match="diffusers 0.35.0 does not know Flux2KleinPipeline"):
        read_folder(folder, family_of(folder), torch.float32)
