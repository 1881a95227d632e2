"""The key-step model's parts, and that an addition starts as nothing."""

from __future__ import annotations

import shutil
from dataclasses import replace

import torch
from tiny_keysteps import FAST, PLAN, TEXTS, draw, picture

from ksgen_core.keysteps.draw import conditions
from ksgen_core.keysteps.sdxl_diffusers import Condition, KeyStepModel
from ksgen_core.training.sdxl_folder import TINY

pytest_plugins = ["keysteps_fixtures"]


def noise_and_time(batch=2):
    noise = torch.randn(batch, TINY.latent_channels, 4, 4, generator=torch.Generator().manual_seed(5))
    return noise, torch.tensor([700, 30])[:batch]


def test_any_text_has_tokens_and_the_mask_ends_with_the_text(model):
    texts = [*TEXTS, "", "Zwölf 猫 & 🫖!", "word " * 100]
    tokens, mask, pooled = model.encode_texts(texts)
    assert tokens.shape == (7, TINY.text_length, 2 * TINY.text_width) and pooled.shape == (7, TINY.text_width)
    lengths = mask.sum(1).tolist()
    assert lengths[4] == 2  # start and end
    assert all(2 < n <= TINY.text_length for n in lengths[:4] + lengths[5:])
    assert all(row[:n].all() and not row[n:].any() for row, n in zip(mask, lengths, strict=True))
    known = model.pipe.tokenizer
    assert known.decode(known(TEXTS[0]).input_ids, skip_special_tokens=True).strip() == TEXTS[0]


def test_texts_are_encoded_each_on_its_own(model):
    together, alone = model.encode_texts(TEXTS), model.encode_texts(TEXTS[1:2])
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a[1:2], b, atol=1e-5, rtol=1e-5)


def test_pictures_of_any_size_become_tokens(model):
    images = torch.stack([picture(0, 40, 56), picture(1, 40, 56)])
    tokens = model.encode_images(images)
    assert tokens.shape == (2, TINY.image_tokens, 2 * TINY.text_width)
    assert not tokens[0].allclose(tokens[1], atol=1e-4)
    assert model.zero_image_tokens().shape == tokens.shape[1:]
    # The zero image is zero after normalisation: CLIP's mean colour.
    grey = torch.tensor(model.image_mean).expand(1, 32, 32, 3)
    torch.testing.assert_close(model.encode_images(grey)[0], model.zero_image_tokens(), atol=1e-4, rtol=1e-4)


def test_latents_and_pictures_have_their_shapes_and_range(model):
    latents = model.encode_latents(torch.stack([picture(0), picture(1)]))
    assert latents.shape == (2, TINY.latent_channels, 4, 4)
    image = model.decode_latents(latents)
    assert image.shape == (2, 32, 32, 3) and image.dtype == torch.float32 and 0 <= image.min() and image.max() <= 1


def test_every_part_learns_through_the_forward_that_draws(trained):
    model = KeyStepModel.load(trained)
    text, mask, pooled = model.encode_texts(TEXTS)
    images = torch.stack([picture(k) for k in range(4)])
    tokens = model.skill_transformer(model.encode_images(images)[None], text[None], mask[None])[0]
    condition = Condition(text, pooled, tokens, model.encode_latents(images))
    noise, _ = noise_and_time(1)
    prediction = model.predict(noise.expand(4, -1, -1, -1), torch.tensor([900, 500, 20, 0]), condition)
    (prediction.square().mean() + model.decode_latents(condition.reference).square().mean()).backward()
    for name, part in model.parts().items():
        assert any(weight.grad is not None and weight.grad.any() for weight in part.parameters()), name
    for name, weight in model.pipe.unet.named_parameters():
        assert weight.grad is not None and weight.grad.any() or "to_k_ip" in name, name


def test_untrained_adapter_and_skill_transformer_leave_the_backbone_bit_equal(untrained, tmp_path):
    model = KeyStepModel.load(untrained)
    bare = tmp_path / "bare"
    shutil.copytree(untrained, bare)
    shutil.rmtree(bare / "ip_adapter")
    shutil.rmtree(bare / "image_encoder")
    (bare / "skill_transformer.safetensors").unlink()
    backbone = KeyStepModel.load(bare)
    text, mask, pooled = model.encode_texts(TEXTS)
    images = torch.stack([picture(0), picture(1)])
    noise, time = noise_and_time()
    reference = model.encode_latents(images)
    foreseen = model.skill_transformer.roll_out(
        model.encode_images(images), *(x[None].expand(2, *x.shape) for x in (text, mask))
    )
    with torch.no_grad():
        ours = model.predict(noise, time, Condition(text[:2], pooled[:2], foreseen[:, 1], reference))
        theirs = backbone.predict(noise, time, Condition(text[:2], pooled[:2], None, reference))
    assert ours.equal(theirs)


def test_an_untrained_skill_transformer_on_a_trained_adapter_draws_as_the_reference_does(trained, untrained):
    """It foresees the zero image's tokens, bit for bit; those steer the backbone as policy `reference` does."""
    model = KeyStepModel.load(trained)
    model.skill_transformer = KeyStepModel.load(untrained).skill_transformer
    model.skill_transformer.empty_tokens.copy_(model.zero_image_tokens().detach())
    given, _ = conditions(model, picture(), PLAN, 3, "skill_transformer")
    plain, _ = conditions(model, picture(), PLAN, 3, "reference")
    assert given.image_tokens[1:].equal(plain.image_tokens[1:])
    drawn = draw(model, [1, 2, 3])
    for k, image in draw(model, [1, 2, 3], settings=replace(FAST, policy="reference")).items():
        assert image.equal(drawn[k])
