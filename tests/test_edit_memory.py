"""Editing models with every memory option, and with a LoRA."""

from __future__ import annotations

from importlib.metadata import version

import pytest
import tiny_edit
import torch
from test_edit import FAST, KLEIN, draw, whole
from tiny_edit import KINDS, PLAN, picture

from ksgen_core.errors import KSGenError
from ksgen_core.keysteps.edit_diffusers import EditModel
from ksgen_core.keysteps.policies import DrawSettings
from ksgen_core.lora_diffusers import Lora, load_loras
from ksgen_core.memory import MemoryOptions
from ksgen_core.pipeline import Update
from ksgen_core.residence_diffusers import settle

NO_OFFLOAD = {"offload": "none"}
STREAMS = torch.accelerator.is_available() or tuple(map(int, version("diffusers").split(".")[:2])) >= (0, 41)
LAYERS = pytest.mark.skipif(not STREAMS, reason="diffusers before 0.41 streams layers to accelerators only")


def settled(kind, **options):
    edit_model = EditModel.load(tiny_edit.folder(kind), place=lambda _: None)
    settle(edit_model, MemoryOptions(**options))
    return edit_model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        NO_OFFLOAD,
        {"offload": "parts"},
        pytest.param({"offload": "layers"}, marks=LAYERS),
        {**NO_OFFLOAD, "attention": "native"},
    ],
)
def test_options_that_leave_the_numbers_as_they_are(kind, options):
    images = draw(settled(kind, **options), [1, 2])
    assert images[1].equal(whole(kind)[1]) and images[2].equal(whole(kind)[2])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {"fp8": True, "offload": "none"},
        pytest.param({"tiling": True, "offload": "layers", "fp8": True}, marks=LAYERS),
    ],
)
def test_options_that_change_pictures(kind, options):
    image = draw(settled(kind, **options), [1])[1]
    assert not image.equal(whole(kind)[1]) and image.isfinite().all()


@pytest.mark.parametrize("kind, far", [("qwen-edit", False), ("flux-kontext", True)])
def test_first_block_cache_forgets_a_run_that_was_stopped(kind, far):
    """`far`: random weights whose first block changes little enough from update to update to be taken from before."""
    edit_model = settled(kind, **NO_OFFLOAD, first_block_cache=0.95)
    settings = DrawSettings(updates=8, guidance=1.0)
    first = draw(edit_model, [1], settings=settings)[1]
    events = edit_model.draw(picture(7), PLAN, [1], settings)
    while not (isinstance(event := next(events), Update) and event.number == 3):
        pass
    events.close()
    assert draw(edit_model, [1], settings=settings)[1].equal(first)
    plain = draw(settled(kind, **NO_OFFLOAD), [1], settings=settings)[1]
    assert first.equal(plain) is not far


def test_where_memory_runs_out_a_step_is_begun_again_on_the_next_rung():
    """The third pass of the backbone, in the second key image, finds no room; once."""
    edit_model, passes = settled("flux-kontext", **NO_OFFLOAD), []

    def fill(module, args):
        passes.append(1)
        if len(passes) == 3:
            raise torch.OutOfMemoryError("no room")

    edit_model.pipe.transformer.register_forward_pre_hook(fill)
    events = list(edit_model.draw(picture(), PLAN, [1, 2], FAST))
    assert [(type(event).__name__, getattr(event, "number", None)) for event in events] == [
        ("Update", 1), ("Update", 2), ("KeyImage", None), ("Fallback", None),
        ("Update", 3), ("Update", 4), ("KeyImage", None),
    ]  # fmt: skip
    assert events[3].steps == (2,) and events[3].rung == "tiling" and edit_model.settled.options.tiling
    assert events[2].image.equal(whole("flux-kontext")[1])


def test_first_block_cache_is_refused_where_it_does_not_work():
    with pytest.raises(KSGenError, match="FirstBlockCache does not work|cannot work with"):
        settled(KLEIN, **NO_OFFLOAD, first_block_cache=0.1).draw(picture(), PLAN, [1])


@pytest.fixture(scope="module", params=KINDS)
def lora(request, tmp_path_factory):
    """A kind, and a LoRA of random weights as peft and diffusers write it."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    path, edit_model = tmp_path_factory.mktemp("lora"), EditModel.load(tiny_edit.folder(request.param))
    transformer, names = edit_model.pipe.transformer, ["to_q", "to_k", "to_v", "to_qkv_mlp_proj"]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        transformer.add_adapter(LoraConfig(r=4, lora_alpha=16, init_lora_weights=False, target_modules=names))
    edit_model.pipe.save_lora_weights(path, transformer_lora_layers=get_peft_model_state_dict(transformer))
    return request.param, next(path.iterdir())


def test_a_lora_works_by_its_strength(lora):
    kind, path = lora
    images = {}
    for strength in (0.0, 0.5, 1.0):
        edit_model = EditModel.load(tiny_edit.folder(kind))
        load_loras(edit_model, [Lora(path, strength)])
        images[strength] = draw(edit_model, [1])[1]
    with pytest.raises(KSGenError, match="LoRAs on the transformer"):
        edit_model.save(path.parent / "saved")
    assert images[0.0].equal(whole(kind)[1])
    assert not images[0.5].equal(images[0.0]) and not images[1.0].equal(images[0.5])


def test_a_lora_comes_to_the_device_with_its_backbone(lora):
    kind, path = lora
    images = []
    for offload in ("none", "parts"):
        edit_model = EditModel.load(tiny_edit.folder(kind), place=lambda _: None)
        load_loras(edit_model, [Lora(path)])
        settle(edit_model, MemoryOptions(offload=offload))
        images.append(draw(edit_model, [1])[1])
    assert images[0].equal(images[1])
