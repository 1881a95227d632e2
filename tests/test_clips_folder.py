"""The clip model's folder: what is written is read bit for bit, and what is broken is named."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import tiny_cog_svd
import torch
from safetensors.torch import load_file, save_file
from tiny_clips import PLAN, TEXTS, clip_model, clips_folder, picture, render, weights

from ksgen_core.clips.clip_diffusers import ClipModel
from ksgen_core.clips.render import render_clip
from ksgen_core.clips.settings import DEFAULTS_FILE, Defaults, RenderSettings, read_own
from ksgen_core.clips.wan_diffusers import WanClipModel
from ksgen_core.clips.wan_native import SHIFT, TRANSFORMER_FILE, VAE_FILE, export_native
from ksgen_core.errors import KSGenError
from ksgen_core.training import wan_folder
from ksgen_core.training.wan_folder import DEFAULTS, TINY, new_wan_folder


@pytest.fixture
def folder(tmp_path):
    """A copy of the tiny clips folder, to be broken."""
    return shutil.copytree(clips_folder(), tmp_path / "clips")


def test_a_new_folder_is_the_same_for_the_same_seed_and_leaves_the_random_state_alone(tmp_path):
    torch.manual_seed(7)
    state = torch.get_rng_state()
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        new_wan_folder(tmp_path / name, TEXTS, TINY, seed)
    assert torch.get_rng_state().equal(state)
    one, two, three = (
        {p.relative_to(tmp_path / name): p for p in (tmp_path / name).rglob("*") if p.is_file()}
        for name in ("one", "two", "three")
    )
    assert one.keys() == two.keys()
    for name, path in one.items():
        if path.suffix == ".safetensors":  # their metadata is written in any order
            first, second, third = load_file(path), load_file(two[name]), load_file(three[name])
            assert first.keys() == second.keys() and all(first[key].equal(second[key]) for key in first), name
            assert not all(first[key].equal(third[key]) for key in first), name
        else:
            assert path.read_bytes() == two[name].read_bytes(), name


def test_save_and_load_are_bit_equal(tmp_path):
    model = clip_model()
    model.save(tmp_path / "again", torch.float32)
    loaded = ClipModel.load(tmp_path / "again")
    before, after = weights(model), weights(loaded)
    assert before.keys() == after.keys()
    assert all(tensor.equal(after[key]) for key, tensor in before.items())
    assert render(loaded, [1])[1].equal(render(model, [1])[1])


def test_no_file_tells_of_the_machine_that_wrote_it(tmp_path):
    clip_model().save(tmp_path / "again")
    for file in (tmp_path / "again").rglob("*.json"):
        assert str(clips_folder().parent) not in file.read_text() and "_name_or_path" not in file.read_text(), file


def test_half_precision_on_disk_is_float32_when_loaded(tmp_path):
    model = clip_model()
    model.save(tmp_path / "half")
    files = list((tmp_path / "half").rglob("*.safetensors"))
    assert all(tensor.dtype == torch.float16 for file in files for tensor in load_file(file).values())
    loaded = weights(ClipModel.load(tmp_path / "half"))
    for key, tensor in weights(model).items():
        assert loaded[key].dtype == torch.float32
        torch.testing.assert_close(loaded[key], tensor, atol=1e-3, rtol=1e-3)


def test_the_stock_pipeline_reads_the_folder():
    from diffusers import WanImageToVideoPipeline

    pipe = WanImageToVideoPipeline.from_pretrained(str(clips_folder()))
    assert pipe.transformer.config.in_channels == 36 and pipe.scheduler.config.shift == SHIFT == wan_folder.SHIFT


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_a_cut_off_weights_file_is_named(folder, part):
    file = next((folder / part).glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(KSGenError, match=f"{part}.*cut off"):
        ClipModel.load(folder)


def test_a_pickle_is_not_read(folder):
    file = folder / "vae/diffusion_pytorch_model.safetensors"
    file.write_bytes(pickle.dumps({"weight": [1.0] * 100}))
    with pytest.raises(KSGenError, match="vae.*not a safetensors file"):
        ClipModel.load(folder)
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(KSGenError, match="vae holds no .safetensors weights"):
        ClipModel.load(folder)


@pytest.mark.parametrize(
    "name", ["model_index.json", "vae/config.json", "scheduler/scheduler_config.json", "text_encoder/config.json"]
)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(KSGenError, match=f"{name} is missing"):
        ClipModel.load(folder)


def test_a_missing_package_is_named(folder, monkeypatch):
    monkeypatch.setattr(sys, "path", [place for place in sys.path if not (Path(place) / "accelerate").is_dir()])
    for name in [name for name in sys.modules if name.split(".")[0] == "accelerate"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(KSGenError, match="accelerate, which is not installed"):
        ClipModel.load(folder)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(KSGenError, match="nothing is missing"):
        ClipModel.load(tmp_path / "nothing")


def test_weights_that_lack_a_layer_or_are_of_another_model_are_named(folder):
    file = folder / "transformer/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    save_file({key: t for key, t in tensors.items() if key != "proj_out.weight"}, file, {"format": "pt"})
    with pytest.raises(KSGenError, match="transformer.*lacks 1 weights.*proj_out.weight"):
        ClipModel.load(folder)
    save_file({key: t[:1] for key, t in tensors.items()}, file, {"format": "pt"})
    with pytest.raises(KSGenError, match="transformer cannot be loaded"):
        ClipModel.load(folder)


def test_another_pipeline_or_another_wan_is_refused(folder):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "WanPipeline"}))
    with pytest.raises(KSGenError, match="holds a WanPipeline of a kind that is not known.*Wan 2.2 14B"):
        ClipModel.load(folder)
    (folder / "model_index.json").write_text(json.dumps({**index, "expand_timesteps": True}))
    with pytest.raises(KSGenError, match="has 36 input channels, Wan 2.2 5B with this VAE has 16"):
        ClipModel.load(folder)
    (folder / "model_index.json").write_text(json.dumps({**index, "boundary_ratio": 0.9}))
    with pytest.raises(KSGenError, match="transformer_2 is missing"):
        ClipModel.load(folder)
    (folder / "model_index.json").write_text("{")
    with pytest.raises(KSGenError, match="model_index.json cannot be read"):
        ClipModel.load(folder)


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(KSGenError, match="cannot be written"):
        clip_model().save(tmp_path / "file" / "clips")


def test_native_names_are_those_that_diffusers_reads_back(tmp_path):
    from diffusers.loaders import single_file_utils as stock

    transformer_file, vae_file = export_native(clips_folder(), tmp_path)
    assert transformer_file == tmp_path / TRANSFORMER_FILE and vae_file == tmp_path / VAE_FILE
    for file, part, back in (
        (transformer_file, "transformer", stock.convert_wan_transformer_to_diffusers),
        (vae_file, "vae", stock.convert_wan_vae_to_diffusers),
    ):
        wanted = load_file(clips_folder() / part / "diffusion_pytorch_model.safetensors")
        native = load_file(file)
        assert len(native) == len(wanted)
        got = back(dict(native))
        assert got.keys() == wanted.keys()
        assert all(tensor.equal(got[key]) for key, tensor in wanted.items())


def test_the_native_file_says_its_text_width(tmp_path):
    from safetensors import safe_open

    with safe_open(export_native(clips_folder(), tmp_path)[0], "pt") as file:
        assert json.loads(file.metadata()["config"]) == {"transformer": {"text_dim": TINY.text_width}}


def test_what_the_host_would_take_for_something_else_is_not_exported(folder, tmp_path):
    config = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps({**config, "shift": 5.0}))
    with pytest.raises(KSGenError, match="shift of the scheduler is 5.0"):
        export_native(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_a_folder_says_of_its_own_wins_over_the_family(folder):
    assert ClipModel.load(folder).own == DEFAULTS
    (folder / DEFAULTS_FILE).write_text(json.dumps({"updates": 7, "fps": 5}))
    model = ClipModel.load(folder)
    family = model.family
    assert model.defaults == Defaults(7, family.guidance, family.frames, 5.0, family.negative, family.guidance_2)
    assert model.defaults.over(RenderSettings(updates=3, frames=9)).updates == 3
    (folder / DEFAULTS_FILE).write_text(json.dumps({"guidance": 2.0}))
    assert ClipModel.load(folder).defaults.guidance_2 is None  # the family's is for the family's other guidance
    (folder / DEFAULTS_FILE).unlink()
    assert ClipModel.load(folder).defaults.updates == family.updates


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"steps": 3}, "unknown field.*steps.*known are updates"),
        ({"updates": 0}, "from 1 to 1000, got 0"),
        ({"guidance": "strong"}, "guidance must be of type float"),
        ({"frames": 16}, None),
    ],
)
def test_nonsense_in_a_folders_own_defaults_is_named(folder, own, said):
    (folder / DEFAULTS_FILE).write_text(json.dumps(own))
    if said is not None:
        with pytest.raises(KSGenError, match=said):
            ClipModel.load(folder)
        return
    with pytest.raises(KSGenError, match="got 16. The nearest are 13 and 17"):
        render_clip(ClipModel.load(folder), picture(), PLAN, 0)


def test_the_embedded_clips_say_how_they_are_rendered_and_both_versions_of_transformers_know_their_classes():
    clips = Path(__file__).parent.parent / "ksgen_core/mini/clips"
    assert read_own(clips) == DEFAULTS
    named = json.loads((clips / "model_index.json").read_text())["tokenizer"]
    assert named == ["transformers", "PreTrainedTokenizerFast"]


def test_somebody_else_may_take_over_where_the_parts_are_kept():
    placed = []
    model = ClipModel.load(clips_folder(), "meta", place=placed.append)
    assert placed == [model] and model.device.type == "meta"
    assert {weight.device.type for part in model.parts().values() for weight in part.parameters()} == {"cpu"}


def test_what_is_trained_is_wan(tmp_path):
    with pytest.raises(KSGenError, match="holds CogVideoX, which is not what is trained here"):
        WanClipModel.load(tiny_cog_svd.folder("CogVideoX"))
