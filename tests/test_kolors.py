"""Kolors: read from a folder of diffusers' own making, with parts from elsewhere, and drawn as its pipeline draws."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from tiny_keysteps import FAST, PLAN, TEXTS, draw, picture, weights

pytest.importorskip("sentencepiece", reason="Kolors' tokenizer is a sentencepiece model")

from tiny_kolors import TEXT_WIDTH, new_adapter_files, new_kolors_folder

from ksgen_core.errors import KSGenError
from ksgen_core.keysteps.check_diffusers import check_key_folder
from ksgen_core.keysteps.draw import complete, conditions
from ksgen_core.keysteps.kolors_diffusers import KOLORS
from ksgen_core.keysteps.policies import DrawSettings
from ksgen_core.keysteps.sdxl_diffusers import KeyStepModel
from ksgen_core.keysteps.skill_transformer import SkillTransformer, SkillTransformerConfig
from ksgen_core.training.sdxl_folder import TINY


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return new_kolors_folder(tmp_path_factory.mktemp("kolors"))


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """The keyword arguments for an adapter, its image encoder and a Skill Transformer that lie elsewhere."""
    folder = tmp_path_factory.mktemp("parts")
    adapter, image_encoder = new_adapter_files(folder)
    config = SkillTransformerConfig(
        token_width=2 * TINY.text_width,
        text_width=TEXT_WIDTH,
        tokens_per_image=TINY.image_tokens,
        width=32,
        layers=2,
        heads=2,
        ff_width=64,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        skill = SkillTransformer(config)
        skill.to_tokens.weight.normal_(std=0.5)
    skill.save(folder / "skill.safetensors")
    return {"adapter": adapter, "image_encoder": image_encoder, "skill_transformer": folder / "skill.safetensors"}


@pytest.fixture(scope="module")
def model(bare, parts):
    return KeyStepModel.load(bare, **parts)


def test_texts_are_read_as_its_own_pipeline_reads_them(model):
    tokens, mask, pooled = model.encode_texts([*TEXTS, ""])
    theirs, _, their_pooled, _ = model.pipe.encode_prompt(
        [*TEXTS, ""], device=torch.device("cpu"), do_classifier_free_guidance=False
    )
    assert tokens.shape == (5, 256, TEXT_WIDTH) and tokens.equal(theirs) and pooled.equal(their_pooled)
    # [gMASK] and sop alone are the empty text; the padding stands on the left.
    lengths = mask.sum(1).tolist()
    assert lengths[4] == 2 and all(2 < n < 256 for n in lengths[:4])
    assert all(row[-n:].all() and not row[:-n].any() for row, n in zip(mask, lengths, strict=True))
    known = model.pipe.tokenizer
    assert known.tokenizer.decode(known(TEXTS[0]).input_ids[2:]).strip() == TEXTS[0]


def test_many_texts_are_the_same_texts(model):
    many = model.encode_texts(TEXTS * 5)
    for one, other in zip(model.encode_texts(TEXTS), many, strict=True):
        torch.testing.assert_close(other[-4:], one, atol=1e-5, rtol=1e-5)


def test_the_best_policy_is_the_one_that_its_parts_allow(bare, parts):
    some = {name: parts[name] for name in ("adapter", "image_encoder")}
    for given, policy in (({}, "text_only"), (some, "image_prompt"), (parts, "skill_transformer")):
        model = KeyStepModel.load(bare, **given)
        settings = complete(model, DrawSettings())
        assert settings == DrawSettings(policy, 50, 5.0, 0, "", (32, 32))
        auto = draw(model, [1, 2], settings=replace(FAST, policy="auto"))
        named = draw(model, [1, 2], settings=replace(FAST, policy=policy))
        assert all(auto[k].equal(named[k]) for k in (1, 2))


def test_each_policy_looks_at_what_it_should(model):
    def differs(policy, image=None, plan=PLAN):
        settings = replace(FAST, policy=policy)
        return not draw(model, [2], image, plan, settings)[2].equal(draw(model, [2], settings=settings)[2])

    other = replace(PLAN, steps=(*PLAN.steps[:3], replace(PLAN.steps[3], text="light the candle")))
    for policy, sees_picture, sees_other_steps in (
        ("skill_transformer", True, True),
        ("image_prompt", True, False),
        ("text_only", False, False),
    ):
        assert differs(policy, image=picture(9)) == sees_picture, policy
        assert differs(policy, plan=other) == sees_other_steps, policy


def test_drawn_alone_or_in_a_batch(model):
    one = draw(model, [1, 2, 3])
    assert draw(model, [3])[3].equal(one[3])
    many = draw(model, [1, 2, 3], settings=replace(FAST, batch=0))
    assert all((one[k] - many[k]).abs().max() < 1.01 / 255 for k in one)


def test_save_and_load_are_bit_equal_and_diffusers_reads_the_folder(model, tmp_path):
    from diffusers import KolorsPipeline

    model.save(tmp_path / "again")
    loaded = KeyStepModel.load(tmp_path / "again")
    before, after = weights(model), weights(loaded)
    assert before.keys() == after.keys()
    assert all(tensor.equal(after[key]) for key, tensor in before.items())
    assert draw(loaded, [2])[2].equal(draw(model, [2])[2])
    pipe = KolorsPipeline.from_pretrained(str(tmp_path / "again"))
    pipe.load_ip_adapter(
        str(tmp_path / "again"), "ip_adapter", "ip-adapter-plus.safetensors", image_encoder_folder=None
    )
    theirs, ours = pipe.unet.state_dict(), model.pipe.unet.state_dict()
    assert "text_encoder_hid_proj.weight" in ours and all(tensor.equal(theirs[key]) for key, tensor in ours.items())


def test_with_image_tokens_it_draws_what_the_stock_pipeline_draws(model):
    from ksgen_core.pixels import on_8_bit_grid

    settings = replace(FAST, policy="image_prompt", guidance=3.0)
    ours = draw(model, [2], settings=settings)[2]
    given, empty = conditions(model, on_8_bit_grid(picture()), PLAN, 2, "image_prompt")
    noise = torch.randn(1, TINY.latent_channels, 4, 4, generator=torch.Generator().manual_seed(12))
    model.pipe.set_progress_bar_config(disable=True)
    theirs = model.pipe(
        prompt_embeds=given.text[2:],
        pooled_prompt_embeds=given.pooled[2:],
        negative_prompt_embeds=empty.text[2:],
        negative_pooled_prompt_embeds=empty.pooled[2:],
        ip_adapter_image_embeds=[torch.stack([empty.image_tokens[2:], given.image_tokens[2:]])],
        latents=noise,
        height=32,
        width=32,
        num_inference_steps=4,
        guidance_scale=3.0,
        output_type="pt",
    ).images[0]
    assert ours.std() > 0.02
    torch.testing.assert_close(ours, theirs.movedim(0, -1), atol=0.51 / 255, rtol=0)
    assert not ours.equal(draw(model, [2], settings=replace(settings, policy="text_only"))[2])


def test_no_text_is_zeros_where_the_folder_says_so(tmp_path):
    model = KeyStepModel.load(new_kolors_folder(tmp_path, force_zeros=True))
    _, empty = conditions(model, picture(), PLAN, 1, "text_only")
    assert not empty.text.any() and not empty.pooled.any()
    _, negative = conditions(model, picture(), PLAN, 1, "text_only", "blurred")
    assert negative.text.any() and negative.pooled.any()


def test_a_skill_transformer_for_other_texts_is_refused(bare, parts, tmp_path):
    config = SkillTransformerConfig(32, 32, TINY.image_tokens, width=32, layers=1, heads=2, ff_width=32)
    SkillTransformer(config).save(tmp_path / "of_sdxl.safetensors")
    with pytest.raises(KSGenError, match=r"\(32, 32, 4\), here they are \(32, 24, 4\)"):
        KeyStepModel.load(bare, **{**parts, "skill_transformer": tmp_path / "of_sdxl.safetensors"})


def test_without_sentencepiece_it_says_what_to_install(bare, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(KSGenError, match="pip install sentencepiece"):
        KeyStepModel.load(bare)


def test_a_folder_is_checked_without_loading_it(bare, tmp_path):
    assert check_key_folder(bare).name == "kolors"
    for name, kind in KOLORS.classes().items():
        assert name == "pipeline" or KOLORS.named[name] == (kind.__name__,)
    folder = shutil.copytree(bare, tmp_path / "kolors")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "text_encoder": ["transformers", "CLIPTextModel"]}))
    with pytest.raises(KSGenError, match="names CLIPTextModel as its text_encoder; known there is ChatGLMModel"):
        check_key_folder(folder)


def test_a_missing_part_is_named(bare, tmp_path):
    shutil.copytree(bare, tmp_path / "kolors")
    shutil.rmtree(tmp_path / "kolors/tokenizer")
    with pytest.raises(KSGenError, match="tokenizer is missing. The folder must be a Kolors folder"):
        KeyStepModel.load(tmp_path / "kolors")
