"""What a language model of transformers is given to read: the prompt in its chat template, and the picture.

Legend: T tokens of the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .. import pixels
from ..errors import KSGenError
from ..types import Example, Query
from . import wording

if TYPE_CHECKING:
    import torch

LONGEST_SIDE = 1024
"""Of the picture in pixels: enough to tell what is done already; some models make a token of every 28 x 28."""

# Templates of models that think first may open the thought. It is closed at once: what follows is the plan.
OPEN_THOUGHT = re.compile(r"<(think|thinking|thought|reasoning)>\s*$")
# gpt-oss opens a channel for its thoughts unless the one for answers is open.
HARMONY, ANSWER_CHANNEL = "<|start|>assistant", "<|channel|>final<|message|>"


def model_inputs(
    processor: Any,
    sees: bool,
    query: Query,
    examples: Sequence[Example],
    *,
    fewest: int,
    most: int,
    done: Sequence[str] = (),
) -> dict[str, torch.Tensor]:
    """What the model's forward takes, on the CPU: input_ids [1, T] and, if it sees, the processed picture.

    Raises `KSGenError` if the model's chat template or its processor cannot be used.
    """
    tokenizer = _tokenizer(processor)
    texts = (
        wording.system_text(fewest, most, sees),
        wording.user_text(query.goal, examples, done),
        wording.whole_prompt(query.goal, examples, done, fewest=fewest, most=most, picture=sees),
    )
    text = chat_text(processor, sees, *(without_marks(text, tokenizer) for text in texts))
    given: dict[str, Any] = {}
    if sees:
        picture = pixels.to_pil(pixels.one_picture(query.image))
        picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        given["images"] = [picture]
    # As transformers does it: a text-only model's template writes every mark itself; one with pictures may leave the
    # first to the tokenizer, and where it does not, a second one would be added.
    begin = getattr(tokenizer, "bos_token", None)
    if (begin and text.startswith(begin)) if sees else chat_template(processor):
        given["add_special_tokens"] = False
    try:
        inputs = processor(text=[text], return_tensors="pt", **given)
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError, ImportError) as error:
        raise KSGenError(
            f"The model's processor ({type(processor).__name__}) does not take the prompt: {error} Choose another "
            "model."
        ) from error
    mark = getattr(processor, "image_token_id", None)
    if sees and isinstance(mark, int) and not (inputs["input_ids"] == mark).any():
        raise KSGenError("The model's chat template leaves the picture out. Get its files again.")
    if not sees:
        # transformers 4's tokenizers add the kinds of tokens, which few models without pictures take.
        return {name: inputs[name] for name in ("input_ids", "attention_mask")}
    return {name: value for name, value in inputs.items() if hasattr(value, "shape")}


def chat_text(processor: Any, sees: bool, system: str, user: str, whole: str) -> str:
    """The prompt as the model's chat template writes it, up to where the answer begins.

    A template that refuses the role of the system, and a model without a template, get `whole`. A template may leave
    the system's text out, as that of a model trained for this one task does.
    """
    template = chat_template(processor)
    if not template:
        # Gemma's processor wants the token before a picture, others the one that stands for it, some want none.
        mark = getattr(processor, "boi_token", None) or getattr(processor, "image_token", None)
        return f"{mark}\n{whole}\n" if sees and isinstance(mark, str) else f"{whole}\n"

    def content(text: str, picture: bool = False) -> Any:
        if not sees:
            return text
        return [{"type": "image"}] * picture + [{"type": "text", "text": text}]

    attempts = (
        [{"role": "system", "content": content(system)}, {"role": "user", "content": content(user, True)}],
        [{"role": "user", "content": content(whole, True)}],
    )
    # Templates that can leave the model's thoughts out go by one of these names.
    directly = {name: False for name in ("enable_thinking", "thinking") if re.search(rf"\b{name}\b", template)}
    faults = []
    for messages in attempts:
        try:
            text = processor.apply_chat_template(
                messages, chat_template=template, add_generation_prompt=True, tokenize=False, **directly
            )
            return _answering_at_once(text)
        except Exception as error:  # a template is a program of the model's maker and may raise what it likes
            faults.append(error)
    raise KSGenError(
        f"The model's chat template cannot be used: {faults[-1]} Get its files again, or choose another model."
    ) from faults[-1]


def chat_template(processor: Any) -> str:
    """The processor's template or, in older folders, its tokenizer's; of several the usual one; empty for none."""
    template = getattr(processor, "chat_template", None) or getattr(_tokenizer(processor), "chat_template", None)
    return (template.get("default") if isinstance(template, dict) else template) or ""


def without_marks(text: str, tokenizer: Any) -> str:
    """The text with a blank inside whatever the tokenizer would read as a mark of its own (`<|im_end|>`, a picture).

    Goals and examples are data: in them such a mark must not end the user's turn or begin another.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    marks = {str(token) for token in added if token.special or (str(token)[:1], str(token)[-1:]) == ("<", ">")}
    marks = sorted((mark for mark in marks if len(mark) > 1), key=len, reverse=True)
    if not marks:
        return text
    return re.sub("|".join(map(re.escape, marks)), lambda found: f"{found[0][0]} {found[0][1:]}", text)


def _answering_at_once(text: str) -> str:
    if thought := OPEN_THOUGHT.search(text):
        return f"{text.rstrip()}\n\n</{thought[1]}>\n\n"
    return text + ANSWER_CHANNEL if text.endswith(HARMONY) else text


def _tokenizer(processor: Any) -> Any:
    """A processor's tokenizer; a text-only model has nothing but one."""
    return getattr(processor, "tokenizer", processor)
