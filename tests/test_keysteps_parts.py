"""Parts from elsewhere, and parts that somebody else keeps: what fits is taken, what does not is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_keysteps import FAST, draw, picture, weights

from ksgen_core.errors import KSGenError
from ksgen_core.keysteps.sdxl_diffusers import Condition, KeyStepModel

pytest_plugins = ["keysteps_fixtures"]


@pytest.fixture(scope="module")
def bare(trained, tmp_path_factory):
    """The trained folder without its own adapter, image encoder, Skill Transformer and settings."""
    folder = tmp_path_factory.mktemp("bare") / "keysteps"
    shutil.copytree(trained, folder)
    for name in ("ip_adapter", "image_encoder"):
        shutil.rmtree(folder / name)
    (folder / "skill_transformer.safetensors").unlink()
    (folder / "ksgen.json").unlink()
    return folder


@pytest.fixture(scope="module")
def parts(trained):
    return {
        "adapter": trained / "ip_adapter/ip-adapter-plus.safetensors",
        "image_encoder": trained / "image_encoder",
        "skill_transformer": trained / "skill_transformer.safetensors",
    }


def vision(folder, **sizes):
    """An image encoder of other sizes in `folder`."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        base = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        base |= {"projection_dim": 16, "image_size": 32, "patch_size": 8}
        CLIPVisionModelWithProjection(CLIPVisionConfig(**base | sizes)).save_pretrained(str(folder))
    return folder


def test_parts_from_elsewhere_draw_as_parts_in_the_folder_do(bare, parts, model):
    elsewhere = KeyStepModel.load(bare, **parts)
    assert all(tensor.equal(weights(elsewhere)[key]) for key, tensor in weights(model).items())
    assert draw(elsewhere, [2])[2].equal(draw(model, [2])[2])


def test_a_part_that_is_given_wins_over_the_folders_own(trained, untrained, model):
    given = KeyStepModel.load(
        trained,
        adapter=untrained / "ip_adapter/ip-adapter-plus.safetensors",
        skill_transformer=untrained / "skill_transformer.safetensors",
    )
    theirs = weights(KeyStepModel.load(untrained))
    assert all(tensor.equal(theirs[key]) for key, tensor in weights(given).items())
    assert not draw(given, [2])[2].equal(draw(model, [2])[2])


def test_an_image_encoder_of_another_size_sees_the_picture_at_its_own(bare, parts, model, tmp_path):
    large = vision(tmp_path / "large", image_size=56)
    (large / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]}')
    given = KeyStepModel.load(bare, **{**parts, "image_encoder": large})
    assert given.image_mean == (0.1, 0.2, 0.3)
    assert given.image_states(picture()[None]).shape == (1, 7 * 7 + 1, 16)
    assert given.encode_images(picture()[None]).shape == model.encode_images(picture()[None]).shape
    assert draw(given, [2])[2].shape == (32, 32, 3)


def test_an_image_encoder_of_another_width_is_refused(bare, parts, tmp_path):
    wide = vision(tmp_path / "wide", hidden_size=32)
    with pytest.raises(KSGenError, match="states of width 32, the IP-Adapter-Plus was made for 16"):
        KeyStepModel.load(bare, **{**parts, "image_encoder": wide})


def test_an_adapter_without_image_encoder_says_so(bare, parts):
    with pytest.raises(KSGenError, match="no image encoder"):
        KeyStepModel.load(bare, adapter=parts["adapter"])


def test_a_part_that_is_not_there_or_is_none_is_named(bare, parts, tmp_path):
    for name, match in (
        ("adapter", "nowhere is missing"),
        ("image_encoder", "nowhere is not an image encoder"),
        ("skill_transformer", "nowhere is missing"),
    ):
        with pytest.raises(KSGenError, match=match):
            KeyStepModel.load(bare, **{**parts, name: tmp_path / "nowhere"})
    (tmp_path / "plus_general.bin").write_bytes(b"PK")
    with pytest.raises(KSGenError, match="plus_general.bin is a pickle.*refs/pr/4"):
        KeyStepModel.load(bare, **{**parts, "adapter": tmp_path / "plus_general.bin"})


def adapter_with(change, parts, tmp_path):
    tensors = load_file(parts["adapter"])
    change(tensors)
    save_file(tensors, tmp_path / "changed.safetensors")
    return tmp_path / "changed.safetensors"


def test_an_adapter_of_another_depth_or_head_width_is_refused(bare, parts, tmp_path):
    def deeper(tensors):
        for key in [key for key in tensors if key.startswith("image_proj.layers.3.")]:
            tensors[key.replace("layers.3", "layers.4")] = tensors[key].clone()

    def narrower(tensors):
        for key in [key for key in tensors if key.endswith("to_q.weight")]:
            tensors[key] = tensors[key][:48].contiguous()

    for change, match in ((deeper, "has 5 layers"), (narrower, "inner width 48")):
        with pytest.raises(KSGenError, match=match):
            KeyStepModel.load(bare, **{**parts, "adapter": adapter_with(change, parts, tmp_path)})


def test_an_adapter_with_more_heads_than_its_width_is_taken(bare, parts, tmp_path):
    """SDXL's has 20 heads of 64, Kolors' another number: the file says how many."""

    def more_heads(tensors):
        for key in list(tensors):
            if key.endswith(("to_q.weight", "to_out.weight")):
                tensors[key] = torch.cat([tensors[key]] * 2, dim=int("to_out" in key))
            elif key.endswith("to_kv.weight"):
                k, v = tensors[key].chunk(2)
                tensors[key] = torch.cat([k, k, v, v])

    model = KeyStepModel.load(bare, **{**parts, "adapter": adapter_with(more_heads, parts, tmp_path)})
    assert model.resampler.layers[0].attn.heads == 2
    assert draw(model, [2])[2].shape == (32, 32, 3)
    model.save(tmp_path / "again")
    assert draw(KeyStepModel.load(tmp_path / "again"), [2])[2].equal(draw(model, [2])[2])


def test_an_adapter_for_another_number_of_layers_is_refused(bare, parts, tmp_path):
    def more(tensors):
        for name in ("to_k_ip", "to_v_ip"):
            tensors[f"ip_adapter.15.{name}.weight"] = tensors[f"ip_adapter.13.{name}.weight"].clone()

    with pytest.raises(KSGenError, match="does not fit the UNet .*8 cross-attention layers, the UNet has 7"):
        KeyStepModel.load(bare, **{**parts, "adapter": adapter_with(more, parts, tmp_path)})


def test_a_unet_for_other_work_is_refused(plain, tmp_path):
    from diffusers import UNet2DConditionModel

    config = json.loads((plain / "unet/config.json").read_text())
    for name, change, match in (
        ("inpaint", {"in_channels": 9}, "takes 9 channels where 4 or 8 are wanted"),
        ("lcm", {"time_cond_proj_dim": 8}, "guidance is built in"),
    ):
        shutil.copytree(plain, tmp_path / name)
        UNet2DConditionModel.from_config({**config, **change}).save_pretrained(str(tmp_path / name / "unet"))
        with pytest.raises(KSGenError, match=match):
            KeyStepModel.load(tmp_path / name)


def test_a_model_with_a_lora_is_not_saved_as_if_it_were_its_own(plain, tmp_path):
    pytest.importorskip("peft")
    from peft import LoraConfig

    model = KeyStepModel.load(plain)
    model.pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    with pytest.raises(KSGenError, match="LoRAs on the unet"):
        model.save(tmp_path / "again")
    assert not (tmp_path / "again").exists()


# Where the parts are kept, and in what they compute.


def test_where_parts_are_kept_can_be_left_to_somebody_else(trained, model):
    seen = []
    placed = KeyStepModel.load(trained, "meta", place=lambda it: seen.append(it.device))
    assert seen == [torch.device("meta")] == [placed.device]
    assert all(p.device == torch.device("cpu") for part in placed.parts().values() for p in part.parameters())
    placed.device = torch.device("cpu")  # as who places them would have it
    assert draw(placed, [2])[2].equal(draw(model, [2])[2])
    moved = KeyStepModel.load(trained, "meta")
    assert {p.device.type for part in moved.parts().values() for p in part.parameters()} == {"meta"}


def test_components_are_reached_by_calling_them_alone(trained, model):
    """As a memory plan needs it: what works is brought by a hook before forward, encode or decode."""
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    class Bring(ModelHook):
        def __init__(self, name):
            self.name = name

        def pre_forward(self, module, *args, **kwargs):
            called.append(self.name)
            for tensor in [*module.parameters(), *module.buffers()]:
                tensor.data = away[tensor]
            return args, kwargs

    called: list[str] = []
    placed = KeyStepModel.load(trained)
    away = {t: t.data for part in placed.parts().values() for t in [*part.parameters(), *part.buffers()]}
    for name, part in placed.parts().items():
        add_hook_to_module(part, Bring(name))
    for tensor in away:
        tensor.data = torch.zeros_like(tensor.data)  # any use before the call would be seen in the picture
    image = draw(placed, [2])[2]
    for part in placed.parts().values():
        remove_hook_from_module(part)
    assert image.equal(draw(model, [2])[2])
    assert set(called) == set(placed.parts()) and placed.denoisers == ("unet",)
    assert called.count("unet") == 4
    # Texts and pictures are encoded once a call, before the first update.
    assert called.index("unet") > max(called.index(name) for name in ("text_encoder_2", "resampler"))
    assert called.count("text_encoder") == called.count("text_encoder_2") == 1


def test_inputs_are_sent_to_where_the_model_computes(trained):
    """On the meta device, where each part comes when it is called."""
    from accelerate.hooks import ModelHook, add_hook_to_module

    class Bring(ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            module.to("meta")
            return args, kwargs

    model = KeyStepModel.load(trained, "meta", place=lambda it: None)
    for part in model.parts().values():
        add_hook_to_module(part, Bring())
    image = picture()[None]
    text, mask, pooled = model.encode_texts(["stir the tea"])
    tokens, latents = model.encode_images(image), model.encode_latents(image)
    made = [text, mask, pooled, tokens, latents, model.zero_image_tokens()]
    made.append(model.predict(torch.randn(1, 4, 4, 4), torch.tensor(7), Condition(text, pooled, tokens, latents)))
    made.append(model.decode_latents(torch.randn(1, 4, 4, 4)))
    assert {tensor.device.type for tensor in made} == {"meta"}


def test_half_precision_keeps_the_vae_in_float32_where_it_would_overflow(plain, tmp_path):
    shutil.copytree(plain, tmp_path / "sdxl")
    config = json.loads((plain / "vae/config.json").read_text())
    (tmp_path / "sdxl/vae/config.json").write_text(json.dumps({**config, "force_upcast": True}))
    for folder, kept in ((tmp_path / "sdxl", torch.float32), (plain, torch.float16)):
        model = KeyStepModel.load(folder, dtype=torch.float16)
        assert model.dtype == model.pipe.unet.dtype == torch.float16 and model.pipe.vae.dtype == kept
    model = KeyStepModel.load(tmp_path / "sdxl", dtype=torch.float16)
    assert draw(model, [2], settings=replace(FAST, updates=2))[2].shape == (32, 32, 3)


def test_a_vae_with_statistics_of_its_latents_goes_by_them(plain, tmp_path):
    shutil.copytree(plain, tmp_path / "sdxl")
    config = json.loads((plain / "vae/config.json").read_text())
    statistics = {"latents_mean": [0.5, -1.0, 0.0, 2.0], "latents_std": [2.0, 1.0, 0.5, 3.0]}
    (tmp_path / "sdxl/vae/config.json").write_text(json.dumps(config | statistics))
    image = picture()[None]
    plain_latents = KeyStepModel.load(plain).encode_latents(image)
    model = KeyStepModel.load(tmp_path / "sdxl")
    mean, std = (torch.tensor(values).view(1, 4, 1, 1) for values in statistics.values())
    torch.testing.assert_close(model.encode_latents(image), (plain_latents - mean) / std)
    torch.testing.assert_close(
        model.decode_latents(model.encode_latents(image)), KeyStepModel.load(plain).decode_latents(plain_latents)
    )
