"""A run on the command line: its progress, and Ctrl-C."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

    from .pipeline import Event


def until_ctrl_c(events: Iterable[Event]) -> Iterator[Event]:
    """The events; after Ctrl-C none follows and `KeyboardInterrupt` is raised. Pressed again, it stops at once.

    An interrupt at any place would be dropped by Python, with a traceback, wherever it fell into a finaliser.
    """
    with _ctrl_c_noted() as pressed:
        for event in events:
            yield event
            if pressed.is_set():
                raise KeyboardInterrupt


@contextmanager
def _ctrl_c_noted() -> Iterator[threading.Event]:
    """The event that the first Ctrl-C sets. Elsewhere than in the main thread Python hears no signals."""
    pressed = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        if pressed.is_set():
            signal.default_int_handler(number, frame)
        pressed.set()
        print("\nksgen: stopping after this update; Ctrl-C again stops at once.", file=sys.stderr)

    if threading.current_thread() is not threading.main_thread():
        yield pressed
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def show(events: Iterable[Event]) -> None:
    """Go through the events of a run with a progress bar for each stage and a line for each key step of the plan."""
    from tqdm import tqdm

    from .pipeline import Fallback, Planned, Update, Writing

    with ExitStack() as bars:
        bar, work = None, ("", 0)
        for event in events:
            if isinstance(event, Planned):
                bars.close()
                bar = None
                print(event.plan.goal)
                for number, step in enumerate(event.plan.steps, 1):
                    print(f"  {number}. {step.text}", flush=True)
            elif isinstance(event, Writing):
                if bar is None:
                    bar = bars.enter_context(tqdm(desc="plan", unit="token"))
                bar.update(event.number - bar.n)
            elif isinstance(event, Fallback):
                numbers = ", ".join(str(step + 1) for step in event.steps)
                tqdm.write(f"{event.stage} step {numbers}: memory ran out, now {event.text}.", file=sys.stderr)
                work = ("", 0)
            elif isinstance(event, Update):
                # A stage counts its updates from 1, through all steps that it was asked for together.
                if bar is None or event.stage != work[0] or event.number <= work[1]:
                    bars.close()
                    bar = bars.enter_context(tqdm(total=event.total, unit="update"))
                work = (event.stage, event.number)
                numbers = ", ".join(str(step + 1) for step in event.steps)
                bar.set_description(f"{event.stage} step {numbers}", refresh=False)
                bar.update(event.number - bar.n)
