"""Drawing key steps: events, seeds, what each policy looks at, and the same pictures as diffusers' own pipelines."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from tiny_keysteps import FAST, PLAN, TEXTS, draw, picture, weights

from ksgen_core import build
from ksgen_core.errors import KSGenError
from ksgen_core.keysteps.draw import conditions
from ksgen_core.keysteps.policies import POLICIES, DrawSettings
from ksgen_core.keysteps.sdxl_diffusers import KeyStepModel, draw_key_steps
from ksgen_core.pipeline import KeyImage, Update
from ksgen_core.pixels import on_8_bit_grid
from ksgen_core.training.sdxl_folder import TINY, new_sdxl_folder
from ksgen_core.types import KeyStep, Plan

pytest_plugins = ["keysteps_fixtures"]


def test_one_update_after_another_then_the_key_images(model):
    image = picture(0, 48, 80)
    events = list(draw_key_steps(model, image, PLAN, [0, 1, 3], FAST))
    assert [type(e) for e in events] == [KeyImage] + ([Update] * 4 + [KeyImage]) * 2
    updates = [event for event in events if isinstance(event, Update)]
    assert [(u.steps, u.number, u.total) for u in updates] == [((1,), n, 8) for n in range(1, 5)] + [
        ((3,), n, 8) for n in range(5, 9)
    ]
    assert all(u.preview.shape == (32, 32, 3) and 0 <= u.preview.min() and u.preview.max() <= 1 for u in updates)
    for event in events:
        if isinstance(event, KeyImage):
            assert event.image.shape == (32, 32, 3) and event.image.dtype == torch.float32
            assert 0 <= event.image.min() and event.image.max() <= 1


def test_key_image_0_is_the_given_picture(model):
    assert draw(model, [0])[0].equal(on_8_bit_grid(picture()))


@pytest.mark.parametrize("policy", ["skill_transformer", "reference", "text_only"])
def test_redrawing_step_3_alone_gives_the_same_step_3(model, policy):
    settings = replace(FAST, policy=policy)
    assert draw(model, [3], settings=settings)[3].equal(draw(model, [1, 2, 3], settings=settings)[3])


def test_drawn_in_a_batch_a_step_is_the_same_within_one_8_bit_value(model):
    one, many = draw(model, [1, 2, 3]), draw(model, [1, 2, 3], settings=replace(FAST, batch=3))
    assert all((one[k] - many[k]).abs().max() < 1.01 / 255 for k in one)


def test_each_step_draws_from_its_own_seed(model):
    other = replace(PLAN, steps=(*PLAN.steps[:2], replace(PLAN.steps[2], seed=99), PLAN.steps[3]))
    before, after = draw(model, [1, 2, 3]), draw(model, [1, 2, 3], plan=other)
    assert before[1].equal(after[1]) and before[3].equal(after[3]) and not before[2].equal(after[2])
    unseeded = replace(PLAN, steps=tuple(replace(step, seed=None) for step in PLAN.steps))
    assert draw(model, [2], plan=unseeded)[2].equal(draw(model, [1, 2], plan=unseeded)[2])


def test_a_stochastic_scheduler_keeps_to_the_seeds(trained):
    from diffusers import EulerAncestralDiscreteScheduler

    model = KeyStepModel.load(trained)
    model.pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(model.pipe.scheduler.config)
    torch.manual_seed(1)
    first = draw(model, [2])[2]
    assert first.equal(draw(model, [1, 2])[2])


def test_what_each_policy_looks_at(model):
    def differs(policy, image=None, plan=PLAN, step=2):
        settings = replace(FAST, policy=policy)
        return not draw(model, [step], image, plan, settings)[step].equal(draw(model, [step], settings=settings)[step])

    other_text = replace(PLAN, steps=(PLAN.steps[0], replace(PLAN.steps[1], text="light the candle"), *PLAN.steps[2:]))
    later_text = replace(PLAN, steps=(*PLAN.steps[:3], replace(PLAN.steps[3], text="light the candle")))
    for policy, sees_picture, sees_other_steps in (
        ("skill_transformer", True, True),
        ("reference", True, False),
        ("text_only", False, False),
    ):
        assert differs(policy, image=picture(9)) == sees_picture, policy
        assert differs(policy, plan=other_text) == sees_other_steps, policy
        assert differs(policy, plan=later_text) == sees_other_steps, policy
        assert differs(policy, plan=other_text, step=1), policy


def test_initial_repeats_the_picture_and_last_frame_draws_nothing(model):
    drawn = draw(model, [0, 2, 3], settings=DrawSettings("initial"))
    assert set(drawn) == {0, 2, 3} and all(image.equal(drawn[0]) for image in drawn.values())
    with pytest.raises(KSGenError, match="Render the clips as a chain"):
        draw_key_steps(model, picture(), PLAN, [1], DrawSettings("last_frame"))


def test_without_guidance_the_empty_condition_is_not_computed(model, monkeypatch):
    sizes = []
    predict = KeyStepModel.predict
    monkeypatch.setattr(KeyStepModel, "predict", lambda self, x, *rest: sizes.append(len(x)) or predict(self, x, *rest))
    draw(model, [1], settings=replace(FAST, guidance=1.0))
    draw(model, [1], settings=replace(FAST, guidance=1.5))
    assert sizes == [1] * 4 + [2] * 4


def test_inputs_and_the_model_are_not_written_into(model):
    image, before = picture(0, 48, 80), weights(model)
    before = {key: tensor.clone() for key, tensor in before.items()}
    kept = image.clone()
    first = draw(model, [0, 1], image)
    first[0].zero_()
    assert image.equal(kept)
    assert all(tensor.equal(before[key]) for key, tensor in weights(model).items())
    assert model.pipe.scheduler.num_inference_steps is None


def test_drawing_leaves_gradients_as_the_caller_has_them(model):
    for _ in draw_key_steps(model, picture(), PLAN, [1], FAST):
        assert torch.is_grad_enabled()


def test_it_works_in_inference_mode_loading_too(trained, model):
    with torch.inference_mode():
        assert draw(KeyStepModel.load(trained), [2])[2].equal(draw(model, [2])[2])
    assert draw(model, [2])[2].equal(draw(model, [2])[2])


def test_golden_slice(trained):
    model = KeyStepModel.load(trained)
    # Weights of our own making: what the libraries begin with changes from version to version.
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in model.parts().values():
            for name, weight in sorted(part.named_parameters()):
                if weight.ndim > 1:
                    weight.copy_(torch.randn(weight.shape, generator=chance) / weight[0].numel() ** 0.5)
                elif "norm" not in name or name.endswith("bias"):
                    weight.zero_()
        model.skill_transformer.empty_tokens.copy_(model.zero_image_tokens())
    drawn = draw(model, [2], settings=DrawSettings(updates=4, guidance=1.5))[2]
    torch.testing.assert_close(drawn[10, 10:13].flatten(), torch.tensor(GOLDEN) / 255, atol=2.5 / 255, rtol=0)


GOLDEN = [189, 125, 140, 154, 216, 105, 109, 255, 51]


def test_a_plain_model_says_what_it_lacks(plain):
    model = KeyStepModel.load(plain)
    with pytest.raises(KSGenError, match="skill_transformer.safetensors"):
        draw_key_steps(model, picture(), PLAN, [1], DrawSettings("skill_transformer"))
    with pytest.raises(KSGenError, match="8 input channels.* has 4"):
        draw_key_steps(model, picture(), PLAN, [1], DrawSettings("reference"))
    with pytest.raises(KSGenError, match="image tokens"):
        model.encode_images(picture()[None])


def test_steps_that_the_plan_has_not_are_a_bug(model):
    with pytest.raises(ValueError, match=r"0\.\.3"):
        draw_key_steps(model, picture(), PLAN, [1, 4], FAST)


@pytest.mark.parametrize(
    "image", [torch.rand(1, 1, 3), torch.rand(2, 32, 32, 3), torch.full((32, 32, 3), float("nan"))]
)
def test_a_picture_that_is_none_is_refused(model, image):
    with pytest.raises(KSGenError):
        draw_key_steps(model, image, PLAN, [1], FAST)


@pytest.mark.parametrize(
    "nonsense",
    [
        {"policy": "magic"},
        {"updates": 0},
        {"updates": 2.5},
        {"guidance": 0.5},
        {"guidance": float("nan")},
        {"batch": -1},
        {"size": (64,)},
    ],
)
def test_settings_refuse_nonsense(nonsense):
    with pytest.raises(KSGenError, match=re.escape(str(next(iter(nonsense.values()))))):
        DrawSettings(**nonsense)
    assert all(DrawSettings(policy) for policy in POLICIES)


def test_a_plan_with_too_many_steps_says_so(model):
    plan = Plan("a long skill", tuple(KeyStep(f"step {k}") for k in range(TINY.max_images + 1)))
    with pytest.raises(KSGenError, match="at most 8 key steps, got 9"):
        draw(model, [1], plan=plan)
    assert set(draw(model, [8], plan=plan, settings=replace(FAST, policy="reference"))) == {8}


# The same pictures as diffusers' own pipelines.


def stock(pipe, **arguments):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(12)
    noise = torch.randn(1, TINY.latent_channels, 4, 4, generator=generator)
    image = pipe(
        prompt=TEXTS[2], height=32, width=32, num_inference_steps=4, latents=noise, output_type="pt", **arguments
    ).images[0]
    return image.movedim(0, -1)


def test_plain_sdxl_draws_what_the_stock_pipeline_draws(plain):
    from diffusers import StableDiffusionXLPipeline

    model = KeyStepModel.load(plain)
    ours = draw(model, [2], settings=DrawSettings("text_only", updates=4, guidance=3.0))[2]
    pipe = StableDiffusionXLPipeline.from_pretrained(str(plain), add_watermarker=False)
    theirs = stock(pipe, negative_prompt="", guidance_scale=3.0)
    assert ours.std() > 0.05
    torch.testing.assert_close(ours, theirs, atol=0.51 / 255, rtol=0)  # ours lies on the 8-bit grid


def test_with_image_tokens_it_draws_what_the_stock_pipeline_draws(tmp_path):
    """The stock pipeline is given the predicted tokens; our UNet takes them as they are."""
    new_sdxl_folder(tmp_path, TEXTS, replace(TINY, reference=False), seed=0)
    model = KeyStepModel.load(tmp_path / "keysteps")
    with torch.no_grad():
        torch.manual_seed(3)
        for name, weight in model.pipe.unet.named_parameters():
            if "to_v_ip" in name:
                weight.normal_(std=0.5)
        model.skill_transformer.to_tokens.weight.normal_(std=0.5)
    ours = draw(model, [2], settings=DrawSettings(updates=4, guidance=3.0))[2]
    given, empty = conditions(model, on_8_bit_grid(picture()), PLAN, 2, "skill_transformer")
    tokens = torch.stack([empty.image_tokens[2:], given.image_tokens[2:]])
    theirs = stock(model.pipe, negative_prompt="", guidance_scale=3.0, ip_adapter_image_embeds=[tokens])
    torch.testing.assert_close(ours, theirs, atol=0.51 / 255, rtol=0)
    assert not ours.equal(draw(model, [2], settings=DrawSettings("text_only", updates=4, guidance=3.0))[2])


@pytest.mark.parametrize("said", ["ours", "pix2pix", "cosxl"])
def test_the_reference_stands_where_instruct_pix2pix_puts_it(said, trained, tmp_path):
    """Scaled as every other latent in what is trained here and in CosXL Edit, as it is in SDXL-InstructPix2Pix."""
    from diffusers import StableDiffusionXLInstructPix2PixPipeline

    folder = tmp_path / "bare"
    shutil.copytree(trained, folder)
    shutil.rmtree(folder / "ip_adapter")
    (folder / "skill_transformer.safetensors").unlink()
    pipe = StableDiffusionXLInstructPix2PixPipeline.from_pretrained(str(folder), add_watermarker=False)
    pipe.is_cosxl_edit = said != "pix2pix"
    if said != "ours":
        index = json.loads((folder / "model_index.json").read_text()) | {"_class_name": type(pipe).__name__}
        index |= {"is_cosxl_edit": True} if said == "cosxl" else {}
        (folder / "model_index.json").write_text(json.dumps(index))
    model, settings = KeyStepModel.load(folder), DrawSettings("reference", updates=4, guidance=1.0)
    ours = draw(model, [2], settings=settings)[2]
    image = on_8_bit_grid(picture()).movedim(-1, 0)[None]
    theirs = stock(pipe, image=image, guidance_scale=1.0, image_guidance_scale=1.0)
    torch.testing.assert_close(ours, theirs, atol=0.51 / 255, rtol=0)
    model.save(tmp_path / "again")
    assert ours.equal(draw(KeyStepModel.load(tmp_path / "again"), [2], settings=settings)[2])


def test_a_plain_sdxl_folder_is_wired_and_draws_by_text_alone(plain):
    models = build.open_folder(plain.parent)
    image, plan = torch.rand(32, 32, 3), Plan("make tea", tuple(KeyStep(text) for text in TEXTS[:2]))
    events = build.drawer(models, DrawSettings("text_only", updates=2))(image, plan, [1], {})
    assert [event.step for event in events if isinstance(event, KeyImage)] == [1]
    with pytest.raises(KSGenError, match="text_only"):
        build.drawer(models, DrawSettings("skill_transformer", updates=2))(image, plan, [1], {})
