"""Any diffusers pipeline as an iterator: its own `__call__` runs, and every sampler update comes out of it.

A pipeline tells of its updates by a callback, or not at all; our loops yield (HOUSE.md, example 9). So the pipeline
runs in a thread of its own that works only while the caller waits for the next update: never do two threads run at
once. What is watched is the scheduler, which every pipeline takes as a component and asks once per update.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

Event = TypeVar("Event")
Result = TypeVar("Result")


@dataclass(frozen=True)
class State:
    """Update `number` of `total` is done. `latents` are those after it, `foreseen` the clean ones foreseen now or None,
    both as this pipeline hands them to its scheduler (packed, or without the frames that are given)."""

    number: int
    total: int
    latents: Tensor
    foreseen: Tensor | None


class _Stopped(BaseException):
    """Ends a pipeline from within; no `except Exception` of a library may catch it."""


def run_pipeline(pipe: Any, **call: Any) -> Generator[State, None, Any]:
    """Run `pipe(**call)` and yield a `State` after every update; the return value is what the pipeline returns.

    Closing the generator stops the pipeline within one update. `pipe` stays as it was: what runs is a shallow copy with
    a fresh scheduler, since a scheduler counts its updates. Errors of the pipeline come out where it is iterated.
    """
    running = copy.copy(pipe)
    states: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    go_on = threading.Semaphore(0)
    stopped = threading.Event()

    def wait() -> None:
        go_on.acquire()
        if stopped.is_set():
            raise _Stopped

    def watch(state: State) -> None:
        states.put(("state", state))
        wait()

    running.scheduler = watched(pipe.scheduler, watch, call.get("generator"))
    running.set_progress_bar_config(disable=True)
    surroundings = _surroundings()

    def work() -> None:
        try:
            wait()
            with surroundings():
                result = running(**call)
            states.put(("result", result))
        except _Stopped:
            states.put(("stopped", None))
        except BaseException as error:  # handed to the caller, whatever it is
            states.put(("error", error))

    worker = threading.Thread(target=work, name="ksgen-pipeline", daemon=True)
    worker.start()
    try:
        while True:
            go_on.release()
            kind, value = states.get()
            if kind == "result":
                return value
            if kind == "error":
                try:
                    raise value
                finally:
                    del value  # its traceback has this frame: a ring that would hold all of the pipeline's tensors
            yield value
            del value
    finally:
        stopped.set()
        go_on.release()
        worker.join()
        running.scheduler.watching = None
        for component in running.components.values():
            if hasattr(component, "_reset_stateful_cache"):
                component._reset_stateful_cache()  # as a pipeline does at its end, which a stopped one does not reach


def relayed(
    states: Generator[State, None, Result], event_of: Callable[[State], Event]
) -> Generator[Event, None, Result]:
    """An event for every state, and what `states` returns; it is closed at once where the caller stops."""
    with contextlib.closing(states):
        while True:
            try:
                state = next(states)
            except StopIteration as end:
                return end.value
            event = event_of(state)
            del state  # not held while the caller has the event
            yield event


def watched(scheduler: Any, watch: Callable[[State], object], generator: Any = None) -> Any:
    """A fresh scheduler of the same config that calls `watch` after each of its updates.

    What it draws comes from `generator`, unless the pipeline says one itself: flow pipelines forget it, and distilled
    LTX-Video draws new noise in every update.
    """
    fresh = _watched_kind(type(scheduler)).from_config(scheduler.config)
    # LTX-2 copies the scheduler for its sound: the copy, which is another object, is not what is watched.
    fresh.watching = _Watching(id(fresh), watch, generator)
    return fresh


@dataclass
class _Watching:
    scheduler: int
    watch: Callable[[State], object]
    generator: Any
    count: int = 0


@functools.cache
def _watched_kind(kind: type) -> type:
    """Once for each kind: a class is a ring that only the garbage collector takes away, with all that it holds."""
    takes_generator = "generator" in inspect.signature(kind.step).parameters  # type: ignore[attr-defined]

    class Watched(kind):
        watching: _Watching | None = None

        @functools.wraps(kind.step)  # type: ignore[attr-defined]
        def step(self, model_output, timestep, sample, *args, **kwargs):
            watching = self.watching
            if watching is not None and watching.generator is not None and takes_generator and not args:
                kwargs.setdefault("generator", watching.generator)
            result = super().step(model_output, timestep, sample, *args, **kwargs)
            if watching is not None and watching.scheduler == id(self):
                watching.count += 1
                latents = result[0] if isinstance(result, tuple) else result.prev_sample
                clean = foreseen(self, model_output, sample, result, kwargs.get("per_token_timesteps"))
                watching.watch(State(watching.count, len(self.timesteps), latents, clean))
            return result

    Watched.__name__ = Watched.__qualname__ = kind.__name__  # pipelines and logs look at the name
    return Watched


def foreseen(
    scheduler: Any, output: Tensor, sample: Tensor, result: Any, of_tokens: Tensor | None = None
) -> Tensor | None:
    """The clean latents that a scheduler foresees after an update, in the way that its kind keeps them."""
    latents, *others = result if isinstance(result, tuple) else (result.prev_sample,)
    # Some return it beside the latents (DDIM, Euler), CogVideoX' own DPM keeps it for the next update.
    clean = others[0] if others else getattr(result, "pred_original_sample", None)
    if torch.is_tensor(clean) and clean.shape == latents.shape:
        return clean
    kept, config = (
        getattr(scheduler, "model_outputs", None),
        scheduler.config,
    )  # what multistep solvers extrapolate from
    if kept and torch.is_tensor(kept[-1]):
        is_clean = config.get("predict_x0", False) or "dpmsolver++" in config.get("algorithm_type", "")
        return kept[-1] if is_clean else None
    number = getattr(scheduler, "step_index", None)
    flows = "Flow" in type(scheduler).__name__ or config.get("prediction_type") == "flow_prediction"
    if not flows or number is None or output.shape != latents.shape:
        return None
    if of_tokens is not None:  # flow matching with a timestep for each token: the output is clean minus noise
        sigmas = of_tokens[..., None].float() / scheduler.config.num_train_timesteps
        return (sample.float() + sigmas * output.float()).to(sample.dtype)
    # Flow matching: the output is noise minus clean, sigma is how much of the sample is noise. The index has moved on.
    sigma = scheduler.sigmas[number - 1].to(sample.device, torch.float32)
    return (sample.float() - sigma * output.float()).to(sample.dtype)


def _surroundings() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """What torch keeps for each thread, as it is in this one: no gradients, inference mode, the current device."""
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    @contextlib.contextmanager
    def surroundings() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(gradients))
            if inference:
                stack.enter_context(torch.inference_mode())
            if device is not None:
                stack.enter_context(torch.cuda.device(device))
            yield

    return surroundings
