"""Any scheduler that a real folder brings: the seeds hold, and the latents are bit for bit those of the pipelines."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_keysteps import FAST, PLAN, draw, picture

from ksgen_core.keysteps.draw import complete, conditions, draw_key_steps, sample
from ksgen_core.keysteps.sdxl_diffusers import KeyStepModel
from ksgen_core.pipeline import Update
from ksgen_core.training.sdxl_folder import TINY

pytest_plugins = ["keysteps_fixtures"]

OF_SDXL = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}
"""The config that SDXL's folder has for its EulerDiscreteScheduler."""
SCHEDULERS = {
    "euler": ("EulerDiscreteScheduler", {}),
    "euler karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "euler ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "dpm++ 2m": ("DPMSolverMultistepScheduler", {}),
    "dpm++ 2m sde karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    ),
    "unipc": ("UniPCMultistepScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "edm": ("EDMDPMSolverMultistepScheduler", {}),
}
SETTINGS = replace(FAST, policy="text_only", updates=5, guidance=3.0)


@pytest.fixture(scope="module")
def sdxl(plain):
    return KeyStepModel.load(plain)


@pytest.fixture(scope="module")
def kolors(tmp_path_factory):
    pytest.importorskip("sentencepiece", reason="Kolors' tokenizer is a sentencepiece model")
    from tiny_kolors import new_kolors_folder

    return KeyStepModel.load(new_kolors_folder(tmp_path_factory.mktemp("kolors")))


@pytest.fixture(params=SCHEDULERS)
def scheduler(request):
    import diffusers

    name, more = SCHEDULERS[request.param]
    return getattr(diffusers, name).from_config({**OF_SDXL, **more})  # EDM's knows no betas


@pytest.fixture(params=["sdxl", "kolors"])
def model(request, scheduler):
    model = request.getfixturevalue(request.param)
    before, model.pipe.scheduler = model.pipe.scheduler, scheduler
    yield model
    model.pipe.scheduler = before


def test_one_at_a_time_a_step_drawn_alone_is_the_same_bit_for_bit(model):
    torch.manual_seed(1)  # whatever the global state is
    alone = draw(model, [2], settings=SETTINGS)[2]
    torch.manual_seed(2)
    assert alone.equal(draw(model, [1, 2], settings=SETTINGS)[2])
    assert alone.std() > 0.02 and getattr(model.pipe.scheduler, "step_index", None) is None


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_latents_are_bit_for_bit_those_of_the_pipeline(model, guidance):
    given, empty = conditions(model, picture(), PLAN, 2, "text_only")
    settings = complete(model, replace(SETTINGS, guidance=guidance))
    condition = given[[2]] if guidance == 1 else empty[[2]].then(given[[2]])
    states = list(sample(model, condition, [12], settings))
    chance = torch.Generator().manual_seed(12)
    noise = torch.randn(1, TINY.latent_channels, 4, 4, generator=chance)
    model.pipe.set_progress_bar_config(disable=True)
    theirs = model.pipe(
        prompt_embeds=given.text[2:],
        pooled_prompt_embeds=given.pooled[2:],
        negative_prompt_embeds=empty.text[2:],
        negative_pooled_prompt_embeds=empty.pooled[2:],
        latents=noise,
        generator=[chance],  # goes on where the noise left off, for schedulers that draw more
        height=32,
        width=32,
        num_inference_steps=settings.updates,
        guidance_scale=guidance,
        output_type="latent",
    ).images
    assert states[-1].latents.equal(theirs)
    # What is foreseen at the end is what is drawn.
    torch.testing.assert_close(states[-1].foreseen, theirs, atol=1e-4, rtol=1e-4)
    assert [(state.number, state.total) for state in states] == [(n, len(states)) for n in range(1, len(states) + 1)]


def test_updates_count_to_their_total_also_where_each_has_two_halves(sdxl):
    from diffusers import HeunDiscreteScheduler

    before, sdxl.pipe.scheduler = sdxl.pipe.scheduler, HeunDiscreteScheduler(**OF_SDXL)
    try:
        events = draw_key_steps(sdxl, picture(), PLAN, [1, 2], SETTINGS)
        updates = [(event.number, event.total) for event in events if isinstance(event, Update)]
    finally:
        sdxl.pipe.scheduler = before
    assert updates == [(n, 18) for n in range(1, 19)]
