"""The planners that a node offers, and what each of them asks for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from . import host, language_models, libraries, sockets

if TYPE_CHECKING:
    from ..ksgen_core.pipeline import Planned, Planner, Writing
    from ..ksgen_core.types import Example, Query

RETRIEVAL, MLLM, NATIVE, ENDPOINT = "retrieval", "mllm", "native", "endpoint"


def planner_input() -> io.DynamicCombo.Input:
    """The choice of a planner. Optional, so that graphs saved before there was a choice still run."""
    return io.DynamicCombo.Input(
        "planner",
        optional=True,
        options=[
            io.DynamicCombo.Option(RETRIEVAL, step_limits()),
            io.DynamicCombo.Option(MLLM, [*_model(), *step_limits(), *_writing()]),
            io.DynamicCombo.Option(NATIVE, [_clip(), *step_limits(), *_writing()]),
            io.DynamicCombo.Option(ENDPOINT, [*_server(), *step_limits(), *_writing()]),
        ],
        tooltip="retrieval: the steps most plans of the library agree on, no language model. mllm: a language model in "
        "a folder, held to the form of a plan. native: a model of ComfyUI's own loaders that can write text. endpoint: "
        "a server that speaks OpenAI's protocol.",
    )


def step_limits() -> list[io.Input]:
    return [
        io.Int.Input(
            "fewest", display_name="fewest steps", default=2, min=1, max=99, tooltip="At least so many steps."
        ),
        io.Int.Input("most", display_name="most steps", default=7, min=1, max=99, tooltip="At most so many steps."),
    ]


def check_limits(fewest: int, most: int) -> None:
    """Raise `KSGenError` unless the limits leave room for a plan."""
    from ..ksgen_core.errors import KSGenError

    if fewest > most:
        raise KSGenError(f"'fewest steps' is {fewest} and 'most steps' {most}. Make the first one the smaller.")


def _model() -> list[io.Input]:
    return [
        io.Combo.Input(
            "model",
            options=language_models.names(),
            default=host.EMBEDDED,
            tooltip="'embedded' is the small model that ships with the pack and knows Tabletop alone. Other names are "
            "transformers folders of yours in ComfyUI's models/LLM folder.",
        ),
        io.String.Input(
            "hub_id",
            display_name="hub id",
            default="",
            tooltip="Instead of a folder: a model of the Hugging Face hub, e.g. Qwen/Qwen2.5-VL-3B-Instruct. It is "
            "downloaded when it is first used.",
        ),
    ]


def _clip() -> io.Input:
    return io.Clip.Input(
        "clip",
        tooltip="From 'Load CLIP' with a model that can write text: Qwen3-VL, Qwen3.5, Gemma. The weights are shared "
        "with whatever else uses them.",
    )


def _server() -> list[io.Input]:
    return [
        io.String.Input(
            "url",
            default="http://127.0.0.1:8080/v1",
            tooltip="The server's address up to /v1: vLLM, SGLang, Ollama, llama.cpp or a service. A key belongs into "
            "ComfyUI's user/ksgen/keys.json or into the environment, never in here.",
        ),
        io.String.Input(
            "model_name",
            display_name="model name",
            default="default",
            tooltip="The model's name as the server lists it; servers with a single model take any.",
        ),
        io.Boolean.Input("send_picture", display_name="send picture", default=True, tooltip="Show it the picture."),
        io.Int.Input(
            "timeout",
            display_name="timeout",
            default=120,
            min=1,
            max=3600,
            tooltip="Seconds to wait for the server's next word.",
        ),
    ]


def _writing() -> list[io.Input]:
    return [
        io.Int.Input(
            "max_tokens",
            display_name="most tokens",
            default=1024,
            min=16,
            max=32768,
            tooltip="Longest reply, in tokens.",
        ),
        io.Float.Input(
            "temperature",
            default=0.0,
            min=0.0,
            max=2.0,
            step=0.05,
            tooltip="0 takes the likeliest word each time; higher values vary more, by the seed.",
        ),
        sockets.seed_input("Another seed, another plan, if the temperature is above 0.", fixed=True),
    ]


def agrees(chosen: dict[str, Any] | None) -> bool:
    """Whether the chosen planner lets many examples vote, rather than reading a few."""
    return chosen is None or chosen["planner"] == RETRIEVAL


def make_planner(chosen: dict[str, Any] | None, done: Sequence[str] = ()) -> Planner:
    """The planner that a node's `planner` input chose, knowing which steps are `done`. Raises `KSGenError`."""
    chosen = {"planner": RETRIEVAL, "fewest": 2, "most": 7, **(chosen or {})}
    check_limits(chosen["fewest"], chosen["most"])
    if done:
        # What is done counts among the steps, and one may be all that is left.
        chosen |= {"fewest": 1, "most": max(1, chosen["most"] - len(done))}
    return {RETRIEVAL: _consensus, MLLM: _language_model, NATIVE: _native, ENDPOINT: _endpoint}[chosen["planner"]](
        chosen, tuple(done)
    )


def _consensus(chosen: dict[str, Any], done: tuple[str, ...]) -> Planner:
    from ..ksgen_core import build

    return build.consensus(chosen["fewest"], chosen["most"])


def _language_model(chosen: dict[str, Any], done: tuple[str, ...]) -> Planner:
    from ..ksgen_core.planning.mllm_transformers import WritingSettings, write_plan

    settings = WritingSettings(
        fewest=chosen["fewest"],
        most=chosen["most"],
        max_tokens=chosen["max_tokens"],
        temperature=chosen["temperature"],
        seed=chosen["seed"],
        done=done,
    )
    name = chosen["hub_id"].strip() or language_models.folder_of(chosen["model"])

    def plan(query: Query, examples: Sequence[Example]) -> Iterator[Writing | Planned]:
        with language_models.loaded(name) as model:
            yield from write_plan(model, query, examples, settings)

    return plan


def _endpoint(chosen: dict[str, Any], done: tuple[str, ...]) -> Planner:
    from ..ksgen_core.planning.endpoint import EndpointSettings, ask_endpoint

    settings = EndpointSettings(
        url=chosen["url"],
        model=chosen["model_name"],
        fewest=chosen["fewest"],
        most=chosen["most"],
        done=done,
        max_tokens=chosen["max_tokens"],
        temperature=chosen["temperature"],
        seed=chosen["seed"] % 2**31,  # what servers take
        timeout_seconds=chosen["timeout"],
        picture=chosen["send_picture"],
        keys_file=libraries.user_folder() / "keys.json",
    )
    return ask_endpoint(settings)


@dataclass(frozen=True)
class _Native:
    """Plans by a model that the host holds: a CLIP socket whose model can write text.

    The host's writing cannot be held to a form, so a reply that is no plan is asked for again with the next seed, a
    few times; without sampling it would be the same reply and is refused at once.
    """

    clip: Any
    chosen: dict[str, Any]
    done: tuple[str, ...]

    ATTEMPTS = 3

    def __call__(self, query: Query, examples: Sequence[Example]) -> Iterator[Writing | Planned]:
        from ..ksgen_core.pipeline import Planned, Writing
        from ..ksgen_core.planning.reply import ReplyError, plan_from_reply
        from ..ksgen_core.planning.wording import whole_prompt

        fewest, most = self.chosen["fewest"], self.chosen["most"]
        prompt = whole_prompt(query.goal, examples, self.done, fewest=fewest, most=most)
        sampled = self.chosen["temperature"] > 0
        for attempt in range(self.ATTEMPTS if sampled else 1):
            reply = self._write(prompt, query, self.chosen["seed"] + attempt, sampled)
            yield Writing(reply, attempt + 1, self.ATTEMPTS)
            try:
                plan = plan_from_reply(
                    reply,
                    query.goal,
                    sources=[example.source for example in examples],
                    planner=NATIVE,
                    fewest=fewest,
                    most=most,
                )
            except ReplyError:
                if attempt + 1 == self.ATTEMPTS or not sampled:
                    raise
            else:
                yield Planned(plan)
                return

    def _write(self, prompt: str, query: Query, seed: int, sampled: bool) -> str:
        """The host shows its own progress for every token, and stops there when it is asked to."""
        # Some models' chat templates, which hold the place of the picture, are off unless asked for.
        tokens = self.clip.tokenize(prompt, image=query.image[None], skip_template=False, min_length=1, thinking=False)
        written = self.clip.generate(
            tokens,
            do_sample=sampled,
            max_length=self.chosen["max_tokens"],
            temperature=self.chosen["temperature"] or 1.0,
            seed=seed % 2**64,
        )
        nested = len(written) > 0 and hasattr(written[0], "__len__")  # a batch of one, in former versions of the host
        return self.clip.decode(written[0] if nested else written)


def _native(chosen: dict[str, Any], done: tuple[str, ...]) -> Planner:
    from ..ksgen_core.errors import KSGenError

    clip = chosen["clip"]
    model = clip.cond_stage_model
    # Every text encoder of the host has a `generate` that asks the model within, which may have none.
    inner = getattr(getattr(model, str(getattr(model, "clip", "")), model), "transformer", model)
    if not hasattr(inner, "generate"):
        raise KSGenError(
            f"The text encoder {type(model).__name__} cannot write text. Load a Qwen3-VL, Qwen3.5 or Gemma model with "
            "'Load CLIP', or choose another planner."
        )
    return _Native(clip, chosen, done)
