"""The clip model's parts, its sampler's loop against diffusers' own, and what a renderer promises."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler
from tiny_clips import FAST, PLAN, TEXTS, clip_model, clips_folder, film, picture, render, weights

from ksgen_core.clips.clip_diffusers import ClipModel
from ksgen_core.clips.framewise import FramewiseConv, make_framewise
from ksgen_core.clips.render import clip_size, encode_text_native, render_clip, render_clips
from ksgen_core.clips.settings import RenderSettings
from ksgen_core.clips.wan_diffusers import fold_latent_statistics
from ksgen_core.errors import KSGenError
from ksgen_core.pipeline import StepClip, Update
from ksgen_core.training.wan_folder import TINY
from ksgen_core.types import KeyStep, Plan


@pytest.fixture(scope="module")
def model():
    return clip_model()


@pytest.mark.parametrize(
    ("guidance", "scheduler"),
    [
        (1.0, None),
        (3.0, None),
        # What the full-size Wan 2.2 comes with.
        (1.0, UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)),
    ],
    ids=["plain", "guided", "unipc"],
)
def test_the_loop_is_that_of_the_stock_pipeline(guidance, scheduler):
    model = clip_model()
    settings = replace(FAST, guidance=guidance)
    if scheduler is not None:
        model.pipe.register_modules(scheduler=scheduler)
    ours = render(model, [1], [picture(4)], settings=settings)[1]
    noise = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(PLAN.steps[1].seed))
    model.pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        theirs = model.pipe(
            image=picture(4).movedim(-1, 0)[None],
            prompt_embeds=model.encode_texts([TEXTS[1]]),
            negative_prompt_embeds=model.encode_texts([""]),
            height=32,
            width=32,
            num_frames=settings.frames,
            num_inference_steps=settings.updates,
            guidance_scale=guidance,
            latents=noise,
            output_type="pt",
        ).frames
    torch.testing.assert_close(ours.movedim(-1, 1)[None], theirs, atol=1e-5, rtol=0)


def test_texts_are_those_of_the_stock_pipeline(model):
    pytest.importorskip("ftfy", reason="diffusers cleans texts with it")
    texts = [*TEXTS, "", "  Pour &amp; stir\nthe  TEA  "]
    stock = model.pipe._get_t5_prompt_embeds(texts, max_sequence_length=TINY.text_length)
    assert model.encode_texts(texts).equal(stock)


def test_any_text_has_tokens_and_is_encoded_on_its_own(model):
    texts = [*TEXTS, "", "Zwölf 猫 & 🫖!", "the " * 20]
    tokens = model.encode_texts(texts)
    assert tokens.shape == (6, TINY.text_length, TINY.text_width)
    known = model.pipe.tokenizer
    for row, text in zip(tokens, texts, strict=True):
        length = min(len(known(text).input_ids), TINY.text_length)
        assert row[:length].any(-1).all() and not row[length:].any()
        # Padding is not seen: the text without any gives the same.
        alone = model.pipe.text_encoder(torch.tensor([known(text).input_ids[:length]])).last_hidden_state[0]
        if length < TINY.text_length:
            torch.testing.assert_close(row[:length], alone, atol=1e-5, rtol=1e-5)
    for text in (TEXTS[0], "zwölf 猫 & 🫖 !"):
        assert known.decode(known(text).input_ids, skip_special_tokens=True).strip() == text
    assert known(TEXTS[0].upper()).input_ids == known(TEXTS[0]).input_ids
    torch.testing.assert_close(encode_text_native(model, TEXTS[1]), tokens[1:2].detach(), atol=1e-5, rtol=1e-5)


def test_films_and_latents_have_their_shapes_and_range(model):
    frames = torch.stack([film(0, 9), film(1, 9)])
    latents = model.encode_frames(frames)
    assert latents.shape == (2, 16, 3, 4, 4)
    back = model.decode_latents(latents)
    assert back.shape == frames.shape and back.dtype == torch.float32 and 0 <= back.min() and back.max() <= 1


def test_the_condition_is_the_first_frame_and_grey_and_says_which_is_given(model):
    frames = film()
    condition = model.condition(frames[None, 0], 5)
    assert condition.shape == (1, 20, 2, 4, 4)
    assert condition[:, :4, 0].eq(1).all() and condition[:, :4, 1:].eq(0).all()
    torch.testing.assert_close(condition[:, 4:, 0], model.encode_frames(frames[None, :1])[:, :, 0])


def test_the_layers_of_other_devices_give_the_same_numbers():
    vae = AutoencoderKLWan.from_pretrained(str(clips_folder() / "vae"))
    make_framewise(vae)
    layers = [layer for layer in vae.modules() if isinstance(layer, FramewiseConv)]
    assert len(layers) > 10
    for layer in layers:
        x = torch.randn(1, layer.weight.shape[1], 4, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            torch.testing.assert_close(layer._whole(x, layer.before), layer(x), atol=1e-5, rtol=1e-4)
            if layer.before:
                # With frames before it, as a film is coded piece by piece.
                other = layer._whole(torch.cat([x[:, :, :2], x[:, :, 2:]], 2), layer.before - 2)
                torch.testing.assert_close(other, layer(x[:, :, 2:], x[:, :, :2]), atol=1e-5, rtol=1e-4)


def test_frame_by_frame_layers_give_the_same_numbers_and_gradients(model):
    stock = AutoencoderKLWan.from_pretrained(str(clips_folder() / "vae"))
    quick = AutoencoderKLWan.from_pretrained(str(clips_folder() / "vae"))
    make_framewise(quick)
    assert list(quick.state_dict()) == list(stock.state_dict())
    assert not any(isinstance(layer, torch.nn.Conv3d) for layer in quick.modules())
    for frames in (1, 5, 9, 17):
        results = []
        films = torch.stack([film(0, frames), film(1, frames)]).movedim(-1, 1) * 2 - 1
        for vae in (stock, quick):
            vae.zero_grad()
            latents = vae.encode(films).latent_dist.mode()
            decoded = vae.decode(latents).sample
            (decoded - 0.3).square().mean().backward()
            # Where there is but one frame, nothing goes through the layers between frames.
            gradients = {name: p.grad for name, p in vae.named_parameters() if p.grad is not None}
            results.append((latents, decoded, gradients))
        one, other = results
        torch.testing.assert_close(other[:2], one[:2], atol=1e-4, rtol=1e-4)
        assert one[2].keys() == other[2].keys()
        for name, gradient in one[2].items():
            torch.testing.assert_close(
                other[2][name], gradient, atol=5e-6, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_folded_statistics_are_those_of_wan_and_change_no_picture():
    model = clip_model()
    vae = model.pipe.vae
    frames = torch.stack([film(k, 9) for k in range(3)])
    with torch.no_grad():
        raw = vae.encode(frames.movedim(-1, 1) * 2 - 1).latent_dist
        before = model.decode_latents(model.encode_frames(frames))
        fold_latent_statistics(vae, raw.mode().mean((0, 2, 3, 4)), raw.mode().std((0, 2, 3, 4)))
        latents = model.encode_frames(frames)
        folded = vae.encode(frames.movedim(-1, 1) * 2 - 1).latent_dist
        torch.testing.assert_close(latents.mean((0, 2, 3, 4)), torch.zeros(16), atol=1e-4, rtol=0)
        torch.testing.assert_close(latents.std((0, 2, 3, 4)), torch.ones(16), atol=1e-4, rtol=0)
        torch.testing.assert_close(model.decode_latents(latents), before, atol=1e-4, rtol=0)
        # What the VAE says of its own doubt grows with its latents.
        growth = (
            (folded.std / raw.std).amax((0, 2, 3, 4)),
            folded.mode().std((0, 2, 3, 4)) / raw.mode().std((0, 2, 3, 4)),
        )
        torch.testing.assert_close(*growth, atol=0, rtol=1e-3)


def test_every_part_learns_through_the_forward_that_renders():
    model = clip_model()
    latents = model.encode_frames(film()[None])
    prediction = model.predict(latents, torch.tensor([500.0]), model.encode_texts(TEXTS[:1]), model.with_mask(latents))
    (prediction.square().mean() + model.decode_latents(latents).square().mean()).backward()
    for name, part in model.parts().items():
        for key, weight in part.named_parameters():
            assert weight.grad is not None and weight.grad.any(), f"{name}.{key}"


def test_a_batch_can_be_overfitted():
    model = clip_model()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        clean = torch.stack([torch.randn(16, 2, 4, 4, generator=generator) for _ in range(2)])
        condition, text = model.with_mask(clean), model.encode_texts(TEXTS[:2])
    noise, sigma = torch.randn(clean.shape, generator=generator), torch.tensor([0.9, 0.5]).view(2, 1, 1, 1, 1)
    optimiser = torch.optim.AdamW(model.pipe.transformer.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        velocity = model.predict(sigma * noise + (1 - sigma) * clean, 1000 * sigma.flatten(), text, condition)
        loss = (velocity - (noise - clean)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0], (losses[0], losses[-1])


def test_events_come_in_order_with_previews(model):
    events = list(render_clip(model, picture(), PLAN, 2, FAST))
    assert [type(event) for event in events] == [Update] * 3 + [StepClip]
    assert [(e.stage, e.steps, e.number, e.total) for e in events[:3]] == [("render", (2,), k, 3) for k in (1, 2, 3)]
    for event in events[:3]:
        assert event.preview.shape == (32, 32, 3) and 0 <= event.preview.min() and event.preview.max() <= 1
    frames = events[3].clip.frames
    assert frames.shape == (5, 32, 32, 3) and frames.dtype == torch.float32 and events[3].clip.fps == 8.0


def test_a_step_is_the_same_alone_and_in_any_order(model):
    images = [picture(k) for k in range(3)]
    alone = render(model, [2], [images[2]])[2]
    in_order = render(model, [0, 1, 2], images)
    turned = render(model, [2, 0, 1], [images[2], *images[:2]])
    assert in_order[2].equal(alone)
    assert list(turned) == [2, 0, 1]
    for k, frames in turned.items():
        assert frames.equal(in_order[k])


def test_text_seed_and_picture_of_a_step_all_matter(model):
    plain = render(model, [0])[0]
    other_text = Plan(PLAN.goal, (KeyStep("crack the egg", seed=10),))
    other_seed = Plan(PLAN.goal, (replace(PLAN.steps[0], seed=99),))
    assert render(model, [0])[0].equal(plain)
    assert not render(model, [0], plan=other_text)[0].equal(plain)
    assert not render(model, [0], plan=other_seed)[0].equal(plain)
    assert not render(model, [0], images=[picture(5)])[0].equal(plain)


def test_nothing_given_is_written_into(model):
    image, before = picture(), {key: tensor.clone() for key, tensor in weights(model).items()}
    given = image.clone()
    clip = render(model, [0], [image])[0]
    clip.zero_()
    assert image.equal(given)
    assert all(tensor.equal(before[key]) for key, tensor in weights(model).items())
    assert all(weight.requires_grad for part in model.parts().values() for weight in part.parameters())


def test_stopping_leaves_the_model_as_it_was_and_gradients_on(model):
    whole = render(model, [0])[0]
    events = render_clips(model, [picture(0)], PLAN, [0], FAST)
    assert torch.is_grad_enabled()
    next(events)
    assert torch.is_grad_enabled()
    next(events)
    events.close()
    assert torch.is_grad_enabled()
    assert render(model, [0])[0].equal(whole)


def test_it_renders_under_inference_mode(model):
    with torch.inference_mode():
        inside = render(clip_model(), [1])[1]
    assert inside.equal(render(model, [1])[1])


def test_it_renders_in_half_precision(model):
    """bfloat16 throughout, as on a small GPU: rougher, but the same film."""
    rough = render(ClipModel.load(clips_folder(), dtype=torch.bfloat16), [1])[1]
    assert rough.dtype == torch.float32
    assert (rough - render(model, [1])[1]).abs().mean() < 0.02


def test_two_transformers_share_the_work_as_in_the_stock_pipeline(tmp_path):
    model = clip_model()
    model.pipe.register_modules(transformer_2=clip_model().pipe.transformer)
    with torch.no_grad():
        for weight in model.pipe.transformer_2.parameters():
            weight.mul_(1.1)
    model.pipe.register_to_config(boundary_ratio=0.9)
    model.save(tmp_path / "clips", torch.float32)
    loaded = ClipModel.load(tmp_path / "clips")
    assert set(loaded.parts()) == {"transformer", "transformer_2", "vae", "text_encoder"}
    settings = replace(FAST, updates=8)
    ours = render(loaded, [0], settings=settings)[0]
    assert not ours.equal(render(clip_model(), [0], settings=settings)[0])
    loaded.pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        theirs = loaded.pipe(
            image=picture(0).movedim(-1, 0)[None],
            prompt_embeds=loaded.encode_texts([TEXTS[0]]),
            height=32,
            width=32,
            num_frames=5,
            num_inference_steps=8,
            guidance_scale=1.0,
            latents=torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(10)),
            output_type="pt",
        ).frames
    torch.testing.assert_close(ours.movedim(-1, 1)[None], theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("frames", "nearest"), [(16, "13 and 17"), (18, "17 and 21"), (4, "5"), (82, "81")])
def test_frames_are_a_multiple_of_four_plus_one(model, frames, nearest):
    with pytest.raises(KSGenError, match=rf"got {frames}\b.*{nearest}"):
        render_clip(model, picture(), PLAN, 0, RenderSettings(frames=frames))


@pytest.mark.parametrize(
    "wrong",
    [
        {"updates": 0},
        {"updates": 2.5},
        {"guidance": 0.5},
        {"guidance": float("nan")},
        {"frames": 17.0},
        {"fps": 0},
        {"fps": float("inf")},
        {"frames": 0},
        {"frames": -3},
        {"size": (32,)},
        {"size": (32, 0)},
    ],
)
def test_nonsense_is_refused(wrong):
    with pytest.raises(KSGenError, match="got"):
        RenderSettings(**wrong)


def test_a_clip_has_its_pictures_size_or_what_fits_next_to_it(model):
    assert render(model, [0], [picture(0, 32, 48)])[0].shape == (5, 32, 48, 3)
    assert render(model, [0], [picture(0, 40, 50)])[0].shape == (5, 32, 48, 3)
    asked = render(model, [0], [picture(0, 40, 50)], settings=replace(FAST, size=(48, 32)))[0]
    assert asked.shape == (5, 48, 32, 3)
    with pytest.raises(KSGenError, match="multiples of 16 pixels, got 50x40.*48x32"):
        render_clip(model, picture(), PLAN, 0, replace(FAST, size=(40, 50)))


def test_a_large_picture_is_shrunk_and_a_small_one_never_enlarged(model):
    height, width = model.family.area
    for shape, wanted in [
        ((height, width), (height, width)),
        ((2 * height, 2 * width), (height, width)),
        ((720, 1280), (464, 832)),  # the same pixels in these proportions, rounded down to multiples of 16
        ((1024, 1024), (624, 624)),
        ((17, 31), (16, 16)),
    ]:
        assert clip_size(model, torch.zeros(*shape, 3)) == wanted
    with pytest.raises(KSGenError, match="15x100 pixels is too small"):
        clip_size(model, torch.zeros(100, 15, 3))


def test_sizes_are_as_large_as_they_may_be(model):
    height, width = model.family.area
    for given in ((h, w) for h in range(16, 2000, 97) for w in range(16, 2000, 89)):
        got = clip_size(model, torch.empty(*given, 3, device="meta"))
        shrink = min(1.0, (height * width / (given[0] * given[1])) ** 0.5)
        if min(given) * shrink >= 16:
            assert not any(side % 16 for side in got) and got[0] * got[1] <= height * width
            assert all(0 <= side * shrink + 1e-3 - one < 16 + 2e-3 for side, one in zip(given, got, strict=True))


def test_what_cannot_be_rendered_is_refused_before_anything_is(model):
    with pytest.raises(ValueError, match="steps 0..2"):
        render_clip(model, picture(), PLAN, 3, FAST)
    with pytest.raises(ValueError, match="key image"):
        render_clips(model, [picture()], PLAN, [0, 1], FAST)


def test_golden_slice():
    """The same numbers on every machine and with every version of the libraries: only our code can change them."""
    model = clip_model()
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, weight in sorted(
            (f"{part}.{k}", w) for part, m in model.parts().items() for k, w in m.named_parameters()
        ):
            # Small enough that hardly a pixel is cut off at black or white.
            weight.copy_(0.4 * torch.randn(weight.shape, generator=chance) / max(1, weight[0].numel()) ** 0.5)
    frames = render(model, [0])[0]
    got = torch.stack([frames[0, 0, 0], frames[2, 16, 5], frames[4, 31, 31]])
    wanted = torch.tensor([[0.4593, 0.1549, 0.4422], [0.5267, 0.1313, 0.4412], [0.5360, 0.1434, 0.4894]])
    torch.testing.assert_close(got, wanted, atol=1e-3, rtol=0)
