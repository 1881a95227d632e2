"""`ksgen bench core`: both sides make the same pictures, figures are of what they say, models of full size are as
published, and the same code runs with them scaled down."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))
import core_child
import core_table
import full_size
import full_work

from ksgen_core.cli import main
from ksgen_core.training import sdxl_folder, wan_folder

SMALL = {"pairs": 1, "updates": 2, "device": "cpu"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("core")
    sdxl_folder.new_sdxl_folder(folder, list(core_child.TEXTS), replace(sdxl_folder.TINY, reference=False))
    wan_folder.new_wan_folder(folder, list(core_child.TEXTS), wan_folder.TINY)
    return folder


def bare_folder(tiny, place):
    """Without adapter and Skill Transformer."""
    left_out = shutil.ignore_patterns("ip_adapter", "image_encoder", "skill_transformer.safetensors")
    return str(shutil.copytree(tiny / "keysteps", place, ignore=left_out))


@pytest.mark.parametrize("policy", ["text_only", "image_prompt"])
def test_key_images_are_those_of_the_bare_pipeline(tiny, tmp_path, policy):
    folder = str(tiny / "keysteps") if policy == "image_prompt" else bare_folder(tiny, tmp_path / "bare")
    found = core_child.keys_overhead(folder, policy, steps=2, **SMALL)
    assert found["difference"] <= 1 and found["key_images"] == 2
    assert found["seconds"] > 0 and found["bare_seconds"] > 0
    assert found["ratio"] == pytest.approx(found["seconds"] / found["bare_seconds"])


@pytest.mark.parametrize("same_vae", [True, False])
def test_clips_are_those_of_the_bare_pipeline(tiny, same_vae):
    found = core_child.clips_overhead(str(tiny / "clips"), frames=5, same_vae=same_vae, **SMALL)
    assert found["difference"] <= (0 if same_vae else 1)


def test_a_whole_run_makes_as_many_clips_as_key_images(tiny):
    found = core_child.peak(str(tiny), "whole", 1)
    assert found["key_images"] == found["clips"] > 1 and found["peak_mb"] > 100


def test_an_option_leaves_its_picture_or_says_why_not(tmp_path):
    def option(name, **options):
        return core_child.option("clips", options, str(tmp_path / name), 2, 5, "cpu")

    assert option("none", offload="none")["update_seconds"] > 0
    option("layers", offload="layers")
    assert torch.equal(torch.load(tmp_path / "none"), torch.load(tmp_path / "layers"))
    assert "flash" in option("flash", attention="flash")["refused"]
    assert not (tmp_path / "flash").exists()
    found = core_child.option("key images", {"offload": "none", "attention": "native"}, "", 2, 5, "cpu")
    assert "UNet2DConditionModel" in found["refused"]


@pytest.mark.parametrize("name", full_size.MODELS)
def test_models_of_full_size_have_the_published_parameters(name):
    model = full_size.MODELS[name]
    denoiser = full_size.empty(next(iter(model.parts.values())))
    count = sum(weight.numel() for weight in denoiser.parameters())
    assert all(weight.is_meta for weight in denoiser.parameters())
    assert count / 1e9 == pytest.approx(model.published, abs=0.06 if name != "LTX-2" else 0.2)


@pytest.mark.parametrize("name", full_size.MODELS)
@pytest.mark.parametrize("options", [{"offload": "none"}, {"offload": "layers"}])
def test_the_same_code_runs_scaled_down(name, options):
    found = full_work.measure(name, options, "cpu", True, 2)
    assert "refused" not in found, found
    assert found["parameters"] < 5e6 and found["made_seconds"] > found["update_seconds"] > 0


def test_the_report_has_its_figures_and_says_what_was_not_measured(tmp_path):
    few = ["--few", "--pairs", "1", "--updates", "2", "--only", "batches", "--only", "full", "--full"]
    assert main(["bench", "core", *few, "--reports", str(tmp_path)]) == 0
    report, page = (json.loads((tmp_path / "core.json").read_text()), (tmp_path / "core.md").read_text())
    assert report["batches"]["difference"] <= 2 and report["batches"]["ratio"] > 0
    assert {"command", "seeds", "commit", "machine"} <= report["run"].keys()
    assert "These were not measured: no GPU" in page and "| one by one |" in page


def test_every_measure_has_its_table():
    one = {"parameters": 1e9, "updates": 2, "seconds": 1.0, "bare_seconds": 1.0, "processor_seconds": 1.0}
    one |= {"bare_processor_seconds": 1.0, "ratio": 1.01, "processor_ratio": 1.02, "difference": 0.5, "key_images": 7}
    option = {"update_seconds": 1.0, "ratio": 1.0, "processor_ratio": 1.0, "peak_mb": 500.0, "largest_difference": 3.0}
    option |= {"mean_difference": 0.25}
    full = {"parameters": 14.3e9, "work": "81 frames", "update_seconds": 2.5, "made_seconds": 99.0, "peak_mb": 70000.0}
    refused = {"refused": "flash-attn is not there"}
    page = core_table.table(
        {
            "device": "a card",
            "overhead": {"clips": one},
            "batches": one,
            "memory": {name: {"peak_mb": 900.0} for name in ("key images", "clips", "whole", "both")}
            | {"weights_mb": {"key images": 300.0, "clips": 400.0}, "ratio": 1.04},
            "options": {"clips": {"none": option, "attention flash": refused}},
            "full": {"scaled_down": True, "models": {"Wan 2.2 14B": {"none": full, "attention flash": refused}}},
        }
    )
    assert "1.040 times" in page and "of full size, scaled down" in page
    assert "14.30 B | 81 frames | 2.500 | 99.000 | 70.0 |" in page
    assert "- clips, attention flash: flash-attn" in page and "- Wan 2.2 14B, attention flash: flash-attn" in page
