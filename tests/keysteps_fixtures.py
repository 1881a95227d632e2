"""Tiny but real key-step models for tests, made in code once a session."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from tiny_keysteps import TEXTS

from ksgen_core.keysteps.sdxl_diffusers import KeyStepModel
from ksgen_core.training.sdxl_folder import TINY, new_sdxl_folder


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("untrained")
    new_sdxl_folder(folder, TEXTS, TINY, seed=0)
    return folder / "keysteps"


@pytest.fixture(scope="session")
def trained(untrained, tmp_path_factory):
    """A folder whose exits are not zero, as after training: the adapter and the Skill Transformer both speak."""
    model = KeyStepModel.load(untrained)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, weight in model.pipe.unet.named_parameters():
            if "to_v_ip" in name:
                weight.normal_(std=0.5)
        model.skill_transformer.to_tokens.weight.normal_(std=0.5)
    folder = tmp_path_factory.mktemp("trained") / "keysteps"
    model.save(folder)
    return folder


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    """Stock SDXL: no room for a reference, no adapter, no Skill Transformer."""
    folder = tmp_path_factory.mktemp("plain")
    new_sdxl_folder(folder, TEXTS, replace(TINY, reference=False), seed=0)
    for name in ("image_encoder", "ip_adapter"):
        shutil.rmtree(folder / "keysteps" / name)
    (folder / "keysteps/skill_transformer.safetensors").unlink()
    return folder / "keysteps"


@pytest.fixture(scope="session")
def model(trained):
    return KeyStepModel.load(trained)
