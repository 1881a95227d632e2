"""The planner that asks a language model of transformers, with the picture if the model sees.

Reads any folder or hub id of `AutoModelForImageTextToText` or `AutoModelForCausalLM`. What the model writes is held
to the schema of a plan, so that even an untrained model gives one.

Legend: T tokens read so far, V the width of the logits.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints_diffusers import quietly
from ..errors import KSGenError
from ..pipeline import Planned, Writing
from ..types import MAX_STEPS, Example, Query
from .constrained import Constraint, Vocabulary
from .mllm_chat import model_inputs
from .mllm_files import find_folder, look_over, read_model, read_processor
from .reply import ReplyError, plan_from_reply, reply_schema
from .wording import FEWEST, MOST

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

log = logging.getLogger("ksgen")


@dataclass(eq=False)
class Mllm:
    """A language model and its processor; for a model that does not see (`sees`), its tokenizer."""

    model: Any
    processor: Any
    sees: bool
    folder: Path | None = None

    @classmethod
    def load(
        cls, folder_or_id: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> Mllm:
        """Read a folder, or a model of the hub; without `dtype` in the one that its config names.

        Raises `KSGenError`, saying what to do, if it is missing, broken or of a kind that cannot plan.
        """
        folder = find_folder(folder_or_id)
        sees = look_over(folder)
        with quietly():
            processor = read_processor(folder, sees)
            model = read_model(folder, sees, dtype)
        mllm = cls(model.to(device).eval(), processor, sees, folder)
        mllm.vocabulary  # noqa: B018  a tokenizer that cannot be constrained is refused here, not after the prompt
        return mllm

    def parts(self) -> dict[str, nn.Module]:
        """What holds memory, by name."""
        return {"model": self.model}

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def tokenizer(self) -> Any:
        return getattr(self.processor, "tokenizer", self.processor)

    @property
    def longest(self) -> int | None:
        """How many tokens the model can read and write together; None if it does not say."""
        length = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return length if isinstance(length, int) and length > 0 else None

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What the tokens spell. Raises `KSGenError` if that cannot be had."""
        ends: set[int] = set()
        for source in (self.tokenizer, self.model.config, getattr(self.model, "generation_config", None)):
            end = getattr(source, "eos_token_id", None)
            ends.update(end if isinstance(end, list | tuple) else [] if end is None else [end])
        return Vocabulary.of(self.tokenizer, sorted(ends))


@dataclass(frozen=True)
class WritingSettings:
    """How a plan is written: of `fewest` to `most` steps, in at most `max_tokens` tokens.

    At `temperature` 0 the likeliest token is taken each time, above it one is drawn, with `seed`. `done` are the
    texts of steps already done.
    """

    fewest: int = FEWEST
    most: int = MOST
    max_tokens: int = 1024
    temperature: float = 0.0
    seed: int = 0
    done: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "done", tuple(self.done))
        if not 1 <= self.fewest <= self.most <= MAX_STEPS:
            raise KSGenError(
                f"A plan has at least 1 and at most {MAX_STEPS} steps, got fewest {self.fewest} and most {self.most}. "
                "Give two numbers in that range, the first not above the second."
            )
        if not 1 <= self.max_tokens <= 100_000:
            raise KSGenError(
                f"A plan is written in 1 to 100000 tokens, got {self.max_tokens}. Some hundreds are usual."
            )
        if not 0 <= self.temperature <= 5:
            raise KSGenError(f"The temperature is 0 (always the likeliest word) to 5, got {self.temperature}.")
        if not 0 <= self.seed < 2**64:
            raise KSGenError(f"A seed is a whole number from 0 to 2**64 - 1, got {self.seed}.")
        if not all(isinstance(text, str) and text.strip() for text in self.done):
            raise KSGenError(f"The steps already done are texts that are not empty, got {self.done!r}.")


def write_plan(
    mllm: Mllm, query: Query, examples: Sequence[Example] = (), settings: WritingSettings | None = None
) -> Iterator[Writing | Planned]:
    """Let the model write the plan, token by token; a `Writing` for each, the plan at the end.

    Where `settings.max_tokens`, or the model after the prompt, has no room for more, the plan is cut short and the
    log says so. Stop iterating to cancel: what was read is freed then, the model is the caller's. Raises `KSGenError`
    if the prompt is too long for the model or the model cannot be used, `ReplyError` if what it wrote is no plan.
    """
    import torch

    settings = settings or WritingSettings()
    fewest, most = settings.fewest, settings.most
    inputs = model_inputs(mllm.processor, mllm.sees, query, examples, fewest=fewest, most=most, done=settings.done)
    read = inputs["input_ids"].shape[1]
    budget = settings.max_tokens if mllm.longest is None else min(settings.max_tokens, mllm.longest - read)
    if budget < 1:
        raise KSGenError(
            f"The prompt has {read} tokens, but this model takes {mllm.longest} in all, with what it writes. Give "
            "fewer examples, or choose another model."
        )
    yield Writing("", 0, budget)
    reading = Reading(mllm.model, inputs)
    logits = reading.logits
    constraint = Constraint(mllm.vocabulary, reply_schema(fewest, most), budget, logits.shape[0])
    generator = torch.Generator().manual_seed(settings.seed)
    for number in range(1, budget + 1):
        token = constraint.take(choose(logits, constraint.allowed(), settings.temperature, generator))
        yield Writing(constraint.text, number, budget)
        if constraint.done:
            break
        logits = reading.read(token)
    else:
        raise ReplyError(f"The model had not ended its plan after {budget} tokens. Allow more.", constraint.text)
    if constraint.shortened:
        log.warning("The plan was cut short to end within %d tokens. Allow more for a longer one.", budget)
    sources = tuple(example.source for example in examples)
    plan = plan_from_reply(constraint.text, query.goal, sources=sources, planner="mllm", fewest=fewest, most=most)
    yield Planned(plan)


class Reading:
    """A text that a model reads on and on: the whole prompt first, then a token at a time."""

    def __init__(self, model: Any, inputs: dict[str, torch.Tensor]) -> None:
        """Reads the prompt: input_ids [1, T] and what goes with them, anywhere."""
        self.model = model
        parameters = inspect.signature(model.forward).parameters
        # transformers 5 renamed the first and dropped the second, which some models of 4 count positions by.
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"
        self._counts = "cache_position" in parameters
        # A prompt's logits but the last are thrown away, and can be a gigabyte.
        self._last = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        self._cache: Any = None
        self._length = 0
        device, dtype = model.device, model.dtype
        moved = {
            name: value.to(device, dtype) if value.is_floating_point() else value.to(device)
            for name, value in inputs.items()
        }
        self.logits = self._forward(moved)

    def read(self, token: int) -> torch.Tensor:
        """Read one more token -> logits float32 [V] for the next one, on the CPU."""
        import torch

        self.logits = self._forward({"input_ids": torch.tensor([[token]], device=self.model.device)})
        return self.logits

    def _forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        import torch

        new = inputs["input_ids"].shape[1]
        given: dict[str, Any] = {**inputs, **self._last, "use_cache": True}
        if self._counts:
            given["cache_position"] = torch.arange(self._length, self._length + new, device=self.model.device)
        if self._cache is not None:
            given[self._cache_name] = self._cache
        try:
            # Not around the loop: between two tokens the caller's own code runs.
            with torch.no_grad():
                output = self.model(**given, return_dict=True)
                logits = output.logits[0, -1].float().cpu()
        except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
            raise KSGenError(
                f"The model ({type(self.model).__name__}) cannot read the prompt: {error} Choose another model."
            ) from error
        self._cache = output.get(self._cache_name)
        self._length += new
        if self._cache is None:
            raise KSGenError(
                f"The model ({type(self.model).__name__}) does not keep what it has read, so that it cannot write "
                "token by token. Update transformers, or choose another model."
            )
        return logits


def choose(logits: torch.Tensor, allowed: np.ndarray, temperature: float, generator: torch.Generator) -> int:
    """logits float32 [V], allowed bool [V] -> a token: the likeliest at temperature 0, else one drawn by its chances.

    Raises `KSGenError` for logits that are not numbers.
    """
    import torch

    tokens = torch.from_numpy(allowed).nonzero().flatten()
    scores = logits[tokens]
    if not scores.max().isfinite():
        raise KSGenError("The model's logits are not numbers (NaN or infinite). Load it in bfloat16 or float32.")
    if temperature == 0:
        return int(tokens[scores.argmax()])
    chances = ((scores - scores.max()) / temperature).softmax(0)
    return int(tokens[torch.multinomial(chances, 1, generator=generator)])
