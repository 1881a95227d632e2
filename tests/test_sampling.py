"""Any pipeline as an iterator: tiny real pipelines of diffusers, compared with their own call."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch
from diffusers import SchedulerMixin
from tiny_clips import clip_model, picture

from ksgen_core.sampling_diffusers import run_pipeline

LATENTS = (1, 16, 2, 4, 4)


@pytest.fixture(scope="module")
def pipe():
    return clip_model().pipe


def call(pipe, **more):
    # Some random texts: the text encoder is not what is tested.
    width = pipe.transformer.config.text_dim
    shape = (1, pipe.vae.config.z_dim, 2, 4, 4)
    return {
        "image": picture().movedim(-1, 0)[None],
        "prompt_embeds": torch.randn(1, 8, width, generator=torch.Generator().manual_seed(1)),
        "negative_prompt_embeds": torch.zeros(1, 8, width),
        "latents": torch.randn(shape, generator=torch.Generator().manual_seed(2)),
        "height": 32,
        "width": 32,
        "num_frames": 5,
        "num_inference_steps": 3,
        "guidance_scale": 2.0,
        "output_type": "pt",
        **more,
    }


def drain(events):
    states = []
    while True:
        try:
            states.append(next(events))
        except StopIteration as end:
            return states, end.value


def test_it_gives_what_the_pipeline_gives_bit_for_bit(pipe):
    pipe.set_progress_bar_config(disable=True)
    states, result = drain(run_pipeline(pipe, **call(pipe)))
    assert result.frames.equal(pipe(**call(pipe)).frames)
    assert [(s.number, s.total) for s in states] == [(1, 3), (2, 3), (3, 3)]
    assert torch.allclose(states[-1].latents, states[-1].foreseen, atol=1e-4)  # the last update foresees what it gives
    assert not torch.allclose(states[0].latents, states[0].foreseen, atol=1e-2)


def test_the_given_pipeline_stays_as_it_was(pipe):
    scheduler, config = pipe.scheduler, dict(pipe.config)
    drain(run_pipeline(pipe, **call(pipe)))
    assert pipe.scheduler is scheduler and dict(pipe.config) == config
    assert type(scheduler).__module__.startswith("diffusers")


def test_closing_it_stops_the_pipeline_within_one_update(pipe):
    passes = []
    hook = pipe.transformer.register_forward_hook(lambda *_: passes.append(1))
    before = threading.active_count()
    try:
        events = run_pipeline(pipe, **call(pipe, num_inference_steps=50, guidance_scale=1.0))
        assert next(events).number == 1 and next(events).number == 2
        events.close()
    finally:
        hook.remove()
    assert len(passes) == 2
    assert threading.active_count() == before


def test_it_works_only_while_it_is_waited_for(pipe):
    passes = []
    hook = pipe.transformer.register_forward_hook(lambda *_: passes.append(1))
    try:
        events = run_pipeline(pipe, **call(pipe, guidance_scale=1.0))
        assert not passes
        next(events)
        threading.Event().wait(0.3)
        assert len(passes) == 1
        events.close()
    finally:
        hook.remove()


def test_an_error_of_the_pipeline_comes_out_where_it_is_iterated(pipe):
    with pytest.raises(ValueError, match="height"):
        drain(run_pipeline(pipe, **call(pipe, height=33)))


def test_nothing_of_a_run_stays_in_memory_whether_it_ends_is_stopped_or_fails(pipe):
    """With the garbage collector off: what is left then is held by a ring, on a device until it happens to run."""
    seen = []

    def note(_module, _args, output):
        seen.append(weakref.ref(output[0]))

    def whole():
        drain(run_pipeline(pipe, **call(pipe)))

    def stopped():
        events = run_pipeline(pipe, **call(pipe))
        next(events)
        events.close()

    def failed():
        hook = pipe.vae.decoder.register_forward_pre_hook(lambda *_: torch.empty(2**60))
        with pytest.raises(RuntimeError, match="memory"):
            drain(run_pipeline(pipe, **call(pipe)))
        hook.remove()

    hook = pipe.transformer.register_forward_hook(note)
    before = count_schedulers()
    gc.disable()
    try:
        for run in (whole, stopped, whole, failed):
            run()
        alive = [ref() is not None for ref in seen]
        schedulers = count_schedulers() - before
    finally:
        gc.enable()
        hook.remove()
    assert not any(alive) and schedulers <= 0


def count_schedulers() -> int:
    return sum(isinstance(thing, SchedulerMixin) for thing in gc.get_objects())


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_gradients_are_as_where_it_is_called(pipe, mode):
    seen = []

    def note(*_):
        seen.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))

    hook = pipe.transformer.register_forward_hook(note)
    try:
        with mode():
            drain(run_pipeline(pipe, **call(pipe, num_inference_steps=1)))
    finally:
        hook.remove()
    assert seen[0][0] is (mode is torch.inference_mode)
    assert seen[0][1] is False  # the pipelines themselves turn gradients off
