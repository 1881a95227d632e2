"""Image tokens for a host's own SDXL: the adapter's layers in their order, what does not fit, the resampler alone."""

from __future__ import annotations

import pytest
import torch
from tiny_keysteps import TEXTS, picture

from ksgen_core.errors import KSGenError
from ksgen_core.keysteps.image_tokens import (
    ImageTokens,
    Place,
    attention_layers,
    check_places,
    foresee,
    rows,
    until_end,
)
from ksgen_core.keysteps.ip_adapter_plus import read
from ksgen_core.keysteps.resampler_diffusers import resampler_from_file
from ksgen_core.keysteps.sdxl_files_diffusers import ADAPTER_FILE

pytest_plugins = ["keysteps_fixtures"]


@pytest.fixture(scope="module")
def adapter(model):
    return read(model.folder / ADAPTER_FILE)


def places_of(unet):
    """The cross-attentions of diffusers' UNet, in the order that the file format goes by."""
    modules = dict(unet.named_modules())
    names = [name.removesuffix(".processor") for name in unet.attn_processors if name.endswith("attn2.processor")]
    return [Place((name, 0, 0), tuple(modules[name].to_k.weight.shape)) for name in names]


def test_layers_come_in_the_order_of_diffusers_processors(model, adapter):
    layers = attention_layers(adapter)
    processors = [p for p in model.pipe.unet.attn_processors.values() if hasattr(p, "to_k_ip")]
    assert len(layers) == len(processors) > 3
    for (key, value), processor in zip(layers, processors, strict=True):
        assert torch.equal(key, processor.to_k_ip[0].weight) and torch.equal(value, processor.to_v_ip[0].weight)


def test_more_than_ten_layers_are_ordered_by_number_not_by_name():
    numbers = [1, 3, 5, 7, 9, 11, 13]
    adapter = {
        f"ip_adapter.{n}.{name}.weight": torch.full((1, 1), n)
        for n in reversed(numbers)
        for name in ("to_k_ip", "to_v_ip")
    }
    assert [int(key) for key, _ in attention_layers(adapter)] == numbers


def test_half_a_layer_is_refused(adapter):
    less = {key: tensor for key, tensor in adapter.items() if key != "ip_adapter.3.to_v_ip.weight"}
    with pytest.raises(KSGenError, match=r"lacks ip_adapter\.3\.to_v_ip\.weight"):
        attention_layers(less)


def test_a_model_is_taken_or_refused_by_its_layers(model, adapter):
    shapes = [tuple(key.shape) for key, _ in attention_layers(adapter)]
    places = places_of(model.pipe.unet)
    check_places(shapes, places, "SDXL", "a.safetensors")
    with pytest.raises(KSGenError, match=f"a Flux: it has 0 cross-attention layers, the adapter is for {len(shapes)}"):
        check_places(shapes, [], "Flux", "a.safetensors")
    wide = [*places[:1], Place(("input", 8, 0), (places[1].shape[0], 768)), *places[2:]]
    with pytest.raises(KSGenError, match=r"\('input', 8, 0\) have the shape \(\d+, 768\)"):
        check_places(shapes, wide, "BaseModel", "a.safetensors")


def test_the_resampler_alone_gives_the_models_tokens(model, adapter):
    resampler = resampler_from_file(adapter)
    with torch.no_grad():
        states = model.image_states(picture()[None])
        assert torch.equal(resampler(states), model.resampler(states))
    assert not any(parameter.is_meta or parameter.requires_grad for parameter in resampler.parameters())


def test_another_kind_of_image_projection_is_refused(adapter):
    with pytest.raises(KSGenError, match="face.safetensors holds no IP-Adapter-Plus resampler"):
        resampler_from_file({"image_proj.latents": torch.zeros(1, 4, 64)}, "face.safetensors")
    more = {**adapter, "image_proj.perceiver_resampler.proj_in.weight": torch.zeros(2, 2)}
    with pytest.raises(KSGenError, match="perceiver_resampler"):
        resampler_from_file(more)


def test_foreseen_tokens_are_those_that_the_core_draws_with(model):
    with torch.no_grad():
        texts, mask, _ = model.encode_texts(TEXTS)
        first = model.encode_images(picture()[None])
        expected = model.skill_transformer.roll_out(first, texts[None], mask[None])[0]
    got = foresee(model.skill_transformer, first[0], texts, mask)
    assert torch.equal(got, expected) and torch.equal(got[0], first[0])
    assert not torch.equal(got[1], got[2])


def test_what_does_not_fit_the_skill_transformer_is_refused(model):
    skill = model.skill_transformer
    n, c, k = skill.config.tokens_per_image, skill.config.token_width, skill.config.text_width
    mask = torch.ones(9, 5, dtype=torch.bool)
    for first, texts in (((n, c + 1), (2, 5, k)), ((n + 1, c), (2, 5, k)), ((n, c), (2, 5, k - 1))):
        with pytest.raises(KSGenError, match=r"it was trained on \(\d+, \d+, \d+\)"):
            foresee(skill, torch.zeros(first), torch.zeros(texts), mask[:2])
    with pytest.raises(KSGenError, match="The plan has 9 steps, the Skill Transformer was made for at most 8"):
        foresee(skill, torch.zeros(n, c), torch.zeros(9, 5, k), mask)


def test_a_text_is_there_up_to_its_first_end_token(model):
    text = "stir the tea"
    tokenizer = model.pipe.tokenizer
    one = tokenizer(text, padding="max_length", max_length=tokenizer.model_max_length)
    assert until_end(one.input_ids, tokenizer.eos_token_id) == [bool(there) for there in one.attention_mask]
    assert until_end([1, torch.zeros(3), 2, 2], 2) == [True, True, True, False]
    assert until_end([1, 5, 6], 2) == [True] * 3


def test_rows_follow_the_chunks():
    pair = torch.tensor([[1.0], [2.0]])
    assert rows(pair, [1, 0], 4).flatten().tolist() == [2, 2, 1, 1]
    assert rows(pair, [0, 0, 1], 3).flatten().tolist() == [1, 1, 2]
    assert rows(pair, [], 3).flatten().tolist() == [1, 1, 1]


@pytest.mark.parametrize(("chunks", "batch"), [([1, 0], 3), ([0, 0, 1], 2), ([0, 1], 1)])
def test_a_batch_that_is_no_multiple_of_its_chunks_is_refused(chunks, batch):
    with pytest.raises(KSGenError, match=f"{batch} rows came for {len(chunks)} conditionings"):
        rows(torch.zeros(2, 1, 1), chunks, batch)


def test_a_step_is_counted_from_one_and_zero_means_all():
    tokens = ImageTokens(torch.zeros(3, 2, 4), torch.zeros(2, 4), None)
    assert tokens.steps(1) == [0] and tokens.steps(3) == [2] and tokens.steps(0) == [0, 1, 2]
    for number in (-1, 4):
        with pytest.raises(KSGenError, match=f"Step {number} was asked for, but there are image tokens of 3 steps"):
            tokens.steps(number)
