"""LoRAs, as peft makes them and diffusers writes them, on models of several families: their strength, several at once,
text encoders, pipelines without a loader of their own."""

from __future__ import annotations

from functools import cache

import peft
import pytest
import tiny_hunyuan
import tiny_ltx
import tiny_ltx2
import torch
from packaging.version import Version
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from tiny_clips import PLAN, clips_folder, picture
from transformers.integrations.peft import MIN_PEFT_VERSION as peft_of_transformers

from ksgen_core.clips.clip_diffusers import ClipModel
from ksgen_core.clips.render import render_clip
from ksgen_core.clips.settings import RenderSettings
from ksgen_core.errors import KSGenError
from ksgen_core.keysteps.sdxl_diffusers import KeyStepModel
from ksgen_core.lora_diffusers import Lora, load_loras
from ksgen_core.training.sdxl_folder import TINY, new_sdxl_folder

FOLDERS = {
    "wan": clips_folder,
    "ltx": tiny_ltx.folder,
    "ltx condition": lambda: tiny_ltx.folder(tiny_ltx.KINDS[1]),
    "ltx2": tiny_ltx2.folder,
    "hunyuan": tiny_hunyuan.folder,
}


def load(name: str, *loras: Lora) -> ClipModel:
    model = ClipModel.load(FOLDERS[name]())
    load_loras(model, loras)
    return model


def frames(model: ClipModel) -> torch.Tensor:
    settings = RenderSettings(updates=2, guidance=1.0, frames=model.family.least)
    return list(render_clip(model, picture(1, 64, 64), PLAN, 0, settings))[-1].clip.frames


def adapter(part, seed: int = 1, layers=("to_q", "to_k", "to_v", "to_out.0")):
    """Random weights of rank 2, four times as strong as the least."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        part.add_adapter(LoraConfig(r=2, lora_alpha=8, init_lora_weights=False, target_modules=list(layers)))
    return get_peft_model_state_dict(part)


@cache
def lora(name: str, tmp):
    """The file, and what the model does that it was taken from."""
    model = load(name)
    part, file = model.pipe.transformer, tmp / f"{name}.safetensors"
    state = adapter(part)
    if name == "hunyuan":
        part.save_lora_adapter(tmp, adapter_name="default", weight_name=file.name)
    else:
        config = part.peft_config["default"].to_dict()
        model.pipe.save_lora_weights(tmp, state, weight_name=file.name, transformer_lora_adapter_metadata=config)
    return file, frames(model)


@pytest.fixture(scope="module")
def tmp(tmp_path_factory):
    return tmp_path_factory.mktemp("loras")


@pytest.mark.parametrize("name", FOLDERS)
def test_a_lora_does_what_it_did_where_it_was_made_and_by_its_strength(name, tmp):
    (file, made), bare = lora(name, tmp), frames(load(name))
    assert not made.equal(bare)
    torch.testing.assert_close(frames(load(name, Lora(file))), made, atol=1e-5, rtol=0)
    assert frames(load(name, Lora(file, 0.0))).equal(bare)
    half = frames(load(name, Lora(file, 0.5)))
    assert not half.equal(bare) and not half.equal(made)
    # One takes back what the other does.
    torch.testing.assert_close(frames(load(name, Lora(file, 0.7), Lora(file, -0.7))), bare, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_lora_of_another_model_is_refused(name, tmp):
    other = tmp / "other.safetensors"
    weights = {"transformer.elsewhere.to_q.lora_A.weight": torch.zeros(2, 3)}
    save_file({**weights, "transformer.elsewhere.to_q.lora_B.weight": torch.zeros(3, 2)}, other)
    with pytest.raises(KSGenError, match=r"other\.safetensors (fits no layer|does not fit)"):
        load(name, Lora(other))


def test_hunyuans_are_read_also_as_a_pipeline_would_write_them(tmp):
    file, _ = lora("hunyuan", tmp)
    plain, with_word = tmp / "plain.safetensors", tmp / "with_word.safetensors"
    save_file(load_file(file), plain)
    save_file({f"transformer.{key}": tensor for key, tensor in load_file(file).items()}, with_word)
    assert frames(load("hunyuan", Lora(with_word))).equal(frames(load("hunyuan", Lora(plain))))


@pytest.mark.skipif(Version(peft.__version__) < Version(peft_of_transformers), reason="transformers wants a newer peft")
def test_a_lora_may_also_be_on_text_encoders(tmp):
    """Kohya's often are; a text encoder is one of transformers, and takes its strength in another way."""
    new_sdxl_folder(tmp, [step.text for step in PLAN.steps], TINY)
    model = KeyStepModel.load(tmp / "keysteps")
    layers = ("q_proj", "v_proj")
    before = model.pipe.text_encoder(torch.tensor([[1, 2, 3]])).last_hidden_state
    weights = {"text_encoder_lora_layers": adapter(model.pipe.text_encoder, layers=layers)}
    weights["unet_lora_layers"] = adapter(model.pipe.unet)
    model.pipe.save_lora_weights(tmp, weight_name="both.safetensors", **weights)

    def encoded(strength: float):
        other = KeyStepModel.load(tmp / "keysteps")
        load_loras(other, (Lora(tmp / "both.safetensors", strength),))
        return other.pipe.text_encoder(torch.tensor([[1, 2, 3]])).last_hidden_state

    assert encoded(0.0).equal(before)
    assert not encoded(1.0).equal(before) and not encoded(0.5).equal(encoded(1.0))
