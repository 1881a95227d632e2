"""The key-step model's folder: what is written is read bit for bit, and what is broken is named."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_keysteps import TEXTS, draw, weights

from ksgen_core.errors import KSGenError
from ksgen_core.keysteps.backbone_diffusers import SDXL
from ksgen_core.keysteps.check_diffusers import check_key_folder
from ksgen_core.keysteps.sdxl_diffusers import KeyStepModel
from ksgen_core.training.sdxl_folder import TINY, new_sdxl_folder

pytest_plugins = ["keysteps_fixtures"]


def test_a_new_folder_is_the_same_for_the_same_seed_and_leaves_the_random_state_alone(untrained, tmp_path):
    torch.manual_seed(7)
    state = torch.get_rng_state()
    new_sdxl_folder(tmp_path, TEXTS, TINY, seed=0)
    assert torch.get_rng_state().equal(state)
    files = sorted(p.relative_to(untrained) for p in untrained.rglob("*") if p.is_file())
    assert files == sorted(
        p.relative_to(tmp_path / "keysteps") for p in (tmp_path / "keysteps").rglob("*") if p.is_file()
    )
    for name in files:
        if name.suffix == ".safetensors":  # their metadata is written in any order
            one, other = load_file(untrained / name), load_file(tmp_path / "keysteps" / name)
            assert one.keys() == other.keys() and all(one[key].equal(other[key]) for key in one), name
        else:
            assert (tmp_path / "keysteps" / name).read_bytes() == (untrained / name).read_bytes(), name


def test_no_file_tells_of_the_machine_that_wrote_it(trained):
    for file in trained.rglob("*.json"):
        assert str(trained.parent) not in file.read_text() and "_name_or_path" not in file.read_text(), file


def test_save_and_load_are_bit_equal(model, tmp_path):
    model.save(tmp_path / "again")
    loaded = KeyStepModel.load(tmp_path / "again")
    before, after = weights(model), weights(loaded)
    assert before.keys() == after.keys()
    assert all(tensor.equal(after[key]) for key, tensor in before.items())
    assert draw(loaded, [2])[2].equal(draw(model, [2])[2])


def test_weights_have_the_names_that_every_version_of_the_libraries_reads(trained):
    firsts = {
        "text_encoder": {"text_model"},
        "text_encoder_2": {"text_model", "text_projection"},
        "image_encoder": {"vision_model", "visual_projection"},
    }
    for part, names in firsts.items():
        assert {key.split(".")[0] for key in load_file(trained / part / "model.safetensors")} == names
    adapter = load_file(trained / "ip_adapter/ip-adapter-plus.safetensors")
    first = {key.removeprefix("image_proj.layers.0.") for key in adapter if key.startswith("image_proj.layers.0.")}
    assert first == {
        *("0.norm1.weight", "0.norm1.bias", "0.norm2.weight", "0.norm2.bias"),
        *("0.to_q.weight", "0.to_kv.weight", "0.to_out.weight"),
        *("1.0.weight", "1.0.bias", "1.1.weight", "1.3.weight"),
    }
    assert {key.split(".")[1] for key in adapter if key.startswith("ip_adapter.")} == {
        "1",
        "3",
        "5",
        "7",
        "9",
        "11",
        "13",
    }
    assert not any("_ip." in key for key in load_file(trained / "unet/diffusion_pytorch_model.safetensors"))


def test_half_precision_on_disk_is_float32_when_loaded(model, tmp_path):
    before = {key: tensor.clone() for key, tensor in weights(model).items()}
    model.save(tmp_path / "half", torch.float16)
    assert all(tensor.equal(before[key]) for key, tensor in weights(model).items())
    loaded = weights(KeyStepModel.load(tmp_path / "half"))
    assert all(tensor.dtype == torch.float32 for tensor in loaded.values() if tensor.is_floating_point())
    for key, tensor in before.items():
        torch.testing.assert_close(loaded[key], tensor, atol=1e-3, rtol=1e-3)
    size = sum(file.stat().st_size for file in (tmp_path / "half").rglob("*.safetensors"))
    assert size < 2.2 * sum(tensor.numel() for tensor in before.values()) + 100_000


def test_saving_over_itself_keeps_the_tokenizers(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "keysteps")
    model = KeyStepModel.load(tmp_path / "keysteps")
    model.save(tmp_path / "keysteps")
    KeyStepModel.load(tmp_path / "keysteps")
    assert not list((tmp_path / "keysteps").rglob(".writing-*"))


def test_diffusers_own_pipeline_reads_the_folder_with_its_adapter(trained):
    from diffusers import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(str(trained), add_watermarker=False)
    pipe.load_ip_adapter(
        str(trained), "ip_adapter", "ip-adapter-plus.safetensors", image_encoder_folder=None, low_cpu_mem_usage=False
    )
    ours = KeyStepModel.load(trained)
    theirs = pipe.unet.encoder_hid_proj.image_projection_layers[0].state_dict()
    assert all(tensor.equal(theirs[key]) for key, tensor in ours.resampler.state_dict().items())
    theirs = pipe.unet.state_dict()
    assert all(tensor.equal(theirs[key]) for key, tensor in ours.pipe.unet.state_dict().items())


def test_a_missing_folder_or_file_is_named(trained, tmp_path):
    with pytest.raises(KSGenError, match="nowhere is missing"):
        KeyStepModel.load(tmp_path / "nowhere")
    for number, name in enumerate(
        ("model_index.json", "unet/config.json", "tokenizer_2", "scheduler/scheduler_config.json")
    ):
        folder = tmp_path / str(number)
        shutil.copytree(trained, folder)
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
        with pytest.raises(KSGenError, match=f"{name} is missing"):
            KeyStepModel.load(folder)


WEIGHT_FILES = (
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
    "text_encoder_2/model.safetensors",
    "image_encoder/model.safetensors",
    "ip_adapter/ip-adapter-plus.safetensors",
    "skill_transformer.safetensors",
)


@pytest.fixture
def broken(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "keysteps")
    return tmp_path / "keysteps"


@pytest.mark.parametrize("name", WEIGHT_FILES)
def test_a_weights_file_that_is_cut_off_or_no_safetensors_is_named(broken, name):
    whole = (broken / name).read_bytes()
    (broken / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(KSGenError, match=f"{name} is cut off"):
        KeyStepModel.load(broken)
    (broken / name).write_bytes(pickle.dumps({"weights": [1.0] * 100}))
    with pytest.raises(KSGenError, match=f"{name}.* not a safetensors file"):
        KeyStepModel.load(broken)


@pytest.mark.parametrize("name", WEIGHT_FILES)
def test_a_weights_file_that_its_header_does_not_describe_is_named(broken, name):
    whole = (broken / name).read_bytes()
    (broken / name).write_bytes(whole + bytes(8))
    with pytest.raises(KSGenError, match=f"{name} is cut off or damaged"):
        KeyStepModel.load(broken)
    (broken / name).write_bytes(whole.replace(b"data_offsets", b"data_offsetz", 1))
    with pytest.raises(KSGenError, match=f"{name} is cut off or damaged .*data_offsets"):
        KeyStepModel.load(broken)


@pytest.mark.parametrize("name", WEIGHT_FILES)
def test_weights_of_another_kind_are_named_and_never_made_up(broken, name):
    save_file({"something.else": torch.zeros(3)}, broken / name, metadata={"format": "pt"})
    with pytest.raises(KSGenError, match=name.split("/")[0]):
        KeyStepModel.load(broken)


@pytest.mark.parametrize("name", WEIGHT_FILES[:5])
def test_a_part_without_weights_is_named(broken, name):
    (broken / name).unlink()
    with pytest.raises(KSGenError, match=f"{name.split('/')[0]} holds no .safetensors"):
        KeyStepModel.load(broken)


def test_an_adapter_or_skill_transformer_of_another_size_is_refused(trained, tmp_path):
    sizes = replace(TINY, text_width=32, unet_channels=(16, 32, 32))
    new_sdxl_folder(tmp_path / "other", TEXTS, sizes, seed=0)
    for name, match in (
        ("ip_adapter", "does not fit the UNet"),
        ("skill_transformer.safetensors", "made for another model"),
    ):
        folder = tmp_path / name
        shutil.copytree(trained, folder)
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
        source = tmp_path / "other/keysteps" / name
        shutil.copytree(source, folder / name) if source.is_dir() else shutil.copy(source, folder / name)
        with pytest.raises(KSGenError, match=match):
            KeyStepModel.load(folder)


@pytest.mark.parametrize("name", WEIGHT_FILES)
def test_a_folder_is_checked_without_loading_it(broken, name, monkeypatch):
    monkeypatch.setattr(KeyStepModel, "load", None)
    assert check_key_folder(broken).name == "sdxl"
    whole = (broken / name).read_bytes()
    (broken / name).write_bytes(whole[:-4])
    with pytest.raises(KSGenError, match=f"{name} is cut off"):
        check_key_folder(broken)
    if name in WEIGHT_FILES[4:]:  # what lies elsewhere
        elsewhere = broken.parent / "elsewhere"
        elsewhere.mkdir()
        part = ("image_encoder", "adapter", "skill_transformer")[WEIGHT_FILES[4:].index(name)]
        place = broken / name if part != "image_encoder" else (broken / name).parent
        place.rename(elsewhere / place.name)
        with pytest.raises(KSGenError, match=f"{place.name}.* is cut off"):
            check_key_folder(broken, **{part: elsewhere / place.name})
        with pytest.raises(KSGenError, match="nowhere"):
            check_key_folder(broken, **{part: elsewhere / "nowhere"})


def test_own_defaults_are_checked_with_the_folder(broken):
    (broken / "ksgen.json").write_text('{"steps": 3}')
    with pytest.raises(KSGenError, match="unknown field"):
        check_key_folder(broken)


@pytest.mark.parametrize(
    ("name", "entry", "says"),
    [
        ("unet", ["diffusers", "UNet3DConditionModel"], "names UNet3DConditionModel as its unet"),
        ("vae", ["my_module", "Mine"], "names Mine as its vae; known there is AutoencoderKL"),
        ("tokenizer_2", [None, None], "names nothing as its tokenizer_2; known there is CLIPTokenizer or"),
        ("scheduler", ["my_module", "Scheduler"], "known there is a scheduler of diffusers"),
        ("scheduler", ["diffusers", "DPMSolverSDEScheduler"], "whose noise goes by no seed"),
    ],
)
def test_components_that_are_not_known_are_refused(broken, name, entry, says):
    index = json.loads((broken / "model_index.json").read_text())
    (broken / "model_index.json").write_text(json.dumps({**index, name: entry}))
    for ask in (check_key_folder, KeyStepModel.load):
        with pytest.raises(KSGenError, match=says):
            ask(broken)


def test_the_known_classes_are_those_that_are_read():
    for name, kind in SDXL.classes().items():
        assert name == "pipeline" or SDXL.named[name] == (kind.__name__,)
    assert SDXL.named.keys() == {*SDXL.text_encoders, *SDXL.tokenizers}


def test_another_pipeline_is_refused(broken):
    index = json.loads((broken / "model_index.json").read_text())
    (broken / "model_index.json").write_text(json.dumps({**index, "_class_name": "WanImageToVideoPipeline"}))
    with pytest.raises(KSGenError, match="WanImageToVideoPipeline, wanted a StableDiffusionXLPipeline"):
        KeyStepModel.load(broken)
    (broken / "model_index.json").write_text("{")
    with pytest.raises(KSGenError, match="model_index.json cannot be read"):
        KeyStepModel.load(broken)


def test_a_folder_that_cannot_be_written_says_so(model, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(KSGenError, match="cannot be written"):
        model.save(tmp_path / "file" / "keysteps")
