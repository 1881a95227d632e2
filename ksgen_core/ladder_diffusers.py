"""What is done when memory runs out while a model works: less is made together, then `memory.LADDER` is climbed."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from .errors import KSGenError
from .memory import LADDER, MemoryOptions
from .residence_diffusers import Settled, free_now, out_of_memory, settle, tiles

Event = TypeVar("Event")
Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Climbed:
    """Memory ran out, and the model now stands on this rung of the ladder."""

    rung: str
    text: str
    options: MemoryOptions


def climb(model: Any) -> Climbed | None:
    """Put the model on the next rung of `memory.LADDER`; None if it stands on the last one."""
    settled: Settled = model.settled
    options = settled.options
    while (step := options.next_rung(tiles(model))) is not None:
        rung, options = step
        if rung == "parts" and settled.hosted:
            continue  # the host does that already
        try:
            settle(model, options, settled.residence if settled.hosted else None)
        except KSGenError:
            continue  # e.g. weights that cannot be kept in 8 bits: the rung is not there for this model
        return Climbed(rung, dict(LADDER)[rung], options)
    return None


def with_ladder(
    model: Any, work: Callable[[], Iterator[Event]], tell: Callable[[str, str], Event] | None = None
) -> Iterator[Event]:
    """The events of `work()`; when memory runs out the model climbs a rung and `work` is begun again.

    `tell` makes an event of a rung and what it means. What `work` had yielded before stays with the caller. Raises
    `KSGenError` when the last rung is not enough, or the model was not settled.
    """
    while True:
        try:
            yield from work()
            return
        except Exception as error:
            if not out_of_memory(error):
                raise
            if hasattr(model, "settled") and model.settled.options.gpus > 1:
                raise  # the other processes would wait for this one for ever
            reason = str(error).partition("\n")[0]
        # Outside the handler: the error's traceback holds the tensors that filled the memory.
        free_now(model.device)
        climbed = climb(model) if hasattr(model, "settled") else None
        if climbed is None:
            raise KSGenError(
                f"There is not enough memory on {model.device} ({reason}), though all was tried that saves some: "
                f"{', '.join(rung for rung, _ in LADDER)}. Choose a smaller size, fewer frames or a smaller model."
            )
        if tell is not None:
            yield tell(climbed.rung, climbed.text)


def with_ladder_once(
    model: Any, make: Callable[[], Made], tell: Callable[[str, str], Event]
) -> Generator[Event, None, Made]:
    """`with_ladder` for work that has no events of its own: returns what `make()` returns."""
    made: list[Made] = []

    def work() -> Iterator[Event]:
        made.append(make())
        yield from ()

    yield from with_ladder(model, work, tell)
    return made.pop()


def in_halves(
    model: Any,
    batch: Sequence[Item],
    work: Callable[[Sequence[Item]], Iterator[Event]],
    tell: Callable[[str, str], Event],
) -> Iterator[Event]:
    """The events of `work(batch)`; when memory runs out, of either half of the batch, of one alone by the ladder."""
    if len(batch) == 1:
        yield from with_ladder(model, lambda: work(batch), tell)
        return
    try:
        yield from work(batch)
        return
    except Exception as error:
        if not out_of_memory(error):
            raise
    free_now(model.device)
    half = (len(batch) + 1) // 2
    yield tell("batch", f"at most {half} are made together")
    for part in (batch[:half], batch[half:]):
        yield from in_halves(model, part, work, tell)
