"""Train the mini MLLM on Tabletop: prompt to reply, with two losses beside it that make it quick.

Legend: B batch, T tokens, V vocabulary, E width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checkpoints import write_atomically
from ..planning.wording import user_text
from ..tabletop.started import make_started
from ..tabletop.world import HEADS
from .loop import Progress, Recipe, fit
from .planner_folder import (
    CLOSE_STEPS,
    DEVIATION,
    END,
    IMAGE,
    MEAN,
    NEXT_STEP,
    OPEN_STEPS,
    PAD,
    REPLY,
    PlannerModel,
)
from .planner_samples import GREY, PICTURES, Pictures, Sample, copying, draw_sample

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration

PLANNER = Recipe(iterations=6000, batch=32, rate=1e-3, warm_up=300, decay=0.02, ema=0.998)
PROMPT_WEIGHT = 0.15
"""Of the loss on the examples' own tokens: they repeat each other, so copying is learned from them as well."""
DONE_WEIGHT = 0.5
"""Of the loss on what is done, read at the end of every example step in the middle of the model."""
FACTS_WEIGHT = 0.1
"""Of the sum of the losses on what the picture shows, read off the image tokens."""
OUTPUTS = tuple(1 + len(values) for _, _, values in HEADS)
IGNORED = -100
COUNTS = (0, 1, 1, 2, 2, 3, 3, 4, 6, 8)
"""How many examples a prompt has: each as likely as it is often here."""
SCHOOL, SCHOOL_PAUSE = 1500, 6
"""Up to this iteration all but every sixth batch is school: short prompts of random words without a picture, cheap, to
learn copying from. Without it that begins late: real steps are learned by heart first."""
GROUPS = 4
"""A batch is one of so many, drawn together and sorted by length."""


class FactReader(nn.Module):
    """Reads what each thing's state is off image tokens: one query a fact looks at them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.look_at = nn.Parameter(torch.randn(len(OUTPUTS), width) * 0.1)
        self.seen = nn.Parameter(torch.zeros(len(OUTPUTS), width, max(OUTPUTS)))

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """tokens [B, N, E] -> logits, one [B, values] a fact."""
        tokens = F.layer_norm(tokens, tokens.shape[-1:])
        weights = (self.look_at @ tokens.transpose(1, 2) / tokens.shape[-1] ** 0.5).softmax(-1)
        logits = torch.einsum("bqe,qev->bqv", weights @ tokens, self.seen)
        return [logits[:, k, :count] for k, count in enumerate(OUTPUTS)]


class Writer(nn.Module):
    """The model, and two throw-away heads: at the end of an example's step, whether it is done already; at the image
    tokens, what the picture shows."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.model = model
        self.layer = 2 + model.config.text_config.num_hidden_layers // 3
        width = model.config.text_config.hidden_size
        self.done = nn.Linear(width, 2)
        self.facts = FactReader(width)


class Encoder:
    """Samples to tensors, with the tokens that the folder's own processor makes of the same prompt."""

    def __init__(self, planner: PlannerModel) -> None:
        tokenizer = self.tokenizer = planner.tokenizer
        self.image_tokens = planner.model.config.image_seq_length
        one = {name: tokenizer.encode(name, add_special_tokens=False) for name in (OPEN_STEPS, NEXT_STEP, CLOSE_STEPS)}
        (self.open,), (self.next,), (self.close,) = one.values()
        self.image, self.reply, self.end, self.pad = tokenizer.convert_tokens_to_ids([IMAGE, REPLY, END, PAD])

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def prompt(self, sample: Sample, picture: bool = True) -> list[int]:
        text = self.ids(user_text(sample.goal, sample.examples, sample.done))
        return [*[self.image] * self.image_tokens * picture, *text, self.reply]

    def marks(self, prompt: Sequence[int], sample: Sample) -> list[int]:
        """`sample.marks`, each at the token that ends its step."""
        found = [IGNORED] * len(prompt)
        flat = iter([mark for example in sample.marks for mark in example])
        inside = False
        for place, token in enumerate(prompt):
            if token == self.open:
                inside = True
            elif inside and token in (self.next, self.close):
                found[place] = next(flat)
                inside = token == self.next
        if next(flat, None) is not None:
            raise ValueError("an example's step holds a mark of JSON itself")
        return [IGNORED if mark < 0 else mark for mark in found]

    def batch(self, samples: Sequence[Sample], facts: np.ndarray | None = None) -> dict[str, Tensor]:
        """ids, kinds (0 picture or filling, 1 reply, 2 prompt), marks: [B, T] each, filled up on the right.

        With a picture each its facts [B, H]; those of a grey one are left out.
        """
        picture = facts is not None
        rows = []
        for sample in samples:
            prompt = self.prompt(sample, picture)
            reply = [*self.ids(sample.reply), self.end]
            bare = self.image_tokens * picture
            marks = self.marks(prompt, sample) + [IGNORED] * len(reply)
            kinds = [0] * bare + [2] * (len(prompt) - bare) + [1] * len(reply)
            rows.append((prompt + reply, kinds, marks))
        length = max(len(ids) for ids, _, _ in rows)
        fill = [(self.pad, 0, IGNORED)] * length
        columns = [torch.tensor([list(row[k]) + [f[k] for f in fill[len(row[k]) :]] for row in rows]) for k in range(3)]
        batch = dict(zip(("ids", "kinds", "marks"), columns, strict=True))
        if facts is not None:
            labels = torch.from_numpy(facts.astype(np.int64))
            batch["facts"] = labels.masked_fill(~torch.tensor([s.seen for s in samples])[:, None], IGNORED)
        return batch


def pixels_of(images: np.ndarray) -> Tensor:
    """uint8 [B, S, S, 3] -> what the processor makes of them, float [B, 3, S, S].

    Contiguous: torch 2.13's float32 backward of a first convolution over permuted memory crashes on some CPUs.
    """
    pictures = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).contiguous().float() / 255
    return (pictures - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]


def losses_of_batch(writer: Writer, batch: dict[str, Tensor], pixels: Tensor | None) -> dict[str, Tensor]:
    """Cross entropies of the reply, of the examples' tokens and of what is done."""
    model = writer.model
    # No mask: what is filled up comes last, so nothing before it sees it.
    with torch.autocast(model.device.type, torch.bfloat16):
        out = model.model(
            input_ids=batch["ids"],
            pixel_values=pixels,
            use_cache=False,
            output_hidden_states=True,
        )
        # Only where something is to be said: most of a batch are image tokens and filling.
        kinds = batch["kinds"][:, 1:]
        places = kinds > 0
        logits = model.lm_head(out.last_hidden_state[:, :-1][places]).float()
        ended = batch["marks"] != IGNORED
        middle = out.hidden_states[writer.layer][ended]
        done = writer.done(F.layer_norm(middle, middle.shape[-1:])).float()
        shown = writer.facts(out.hidden_states[0][:, : model.config.image_seq_length].float())
    losses = F.cross_entropy(logits, batch["ids"][:, 1:][places], reduction="none")
    of_reply = (kinds == 1)[places]
    result = {
        "reply": losses[of_reply].mean(),
        "examples": PROMPT_WEIGHT * losses[~of_reply].mean(),
    }
    if len(done):
        result["done"] = DONE_WEIGHT * F.cross_entropy(done, batch["marks"][ended])
    if pixels is not None and (batch["facts"] != IGNORED).any():
        facts = [F.cross_entropy(x.float(), batch["facts"][:, k], ignore_index=IGNORED) for k, x in enumerate(shown)]
        result["facts"] = FACTS_WEIGHT * torch.stack(facts).sum()
    return result


def in_parts(
    writer: Writer, parts: Sequence[tuple[dict[str, Tensor], Tensor | None]], workers: ThreadPoolExecutor
) -> dict[str, Tensor]:
    """The losses of parts of a batch, one thread a part, with gradients that the loop can take from their sum.

    torch's own threads wait for each other at every operation, so a machine that is shared slows them down twice over.
    """
    parameters = [parameter for parameter in writer.parameters() if parameter.requires_grad]

    def work(part: tuple[dict[str, Tensor], Tensor | None]) -> tuple[dict[str, Tensor], Sequence[Tensor | None]]:
        losses = losses_of_batch(writer, *part)
        total = torch.stack(list(losses.values())).sum()
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        return {name: loss.detach() for name, loss in losses.items()}, gradients

    found = list(workers.map(work, parts))
    share = 1 / len(found)
    # Zero in value; its gradient is the mean of the parts'.
    carrier = torch.zeros(())
    for parameter, *gradients in zip(parameters, *(each for _, each in found), strict=True):
        whole = [gradient for gradient in gradients if gradient is not None]
        if whole:
            inner = (parameter * (torch.stack(whole).sum(0) * share)).sum()
            carrier = carrier + inner - inner.detach()
    names = dict.fromkeys(name for losses, _ in found for name in losses)
    means = {name: torch.stack([losses[name] for losses, _ in found if name in losses]).mean() for name in names}
    return {**means, "reply": means["reply"] + carrier}


def draw_school(size: int, generator: torch.Generator) -> tuple[list[Sample]]:
    """Short prompts to copy from."""
    random = Random(int(torch.randint(1 << 62, (), generator=generator)))
    return ([copying(random, random.choice((1, 1, 2)), 3, 4) for _ in range(size)],)


def draw_batch(
    pictures: Pictures, size: int, generator: torch.Generator
) -> tuple[list[Sample], np.ndarray, np.ndarray]:
    """Samples of about the same length, so that little is filled up, their pictures [size, S, S, 3], their facts."""
    random = Random(int(torch.randint(1 << 62, (), generator=generator)))
    rows = [random.randrange(len(pictures.started)) for _ in range(GROUPS * size)]
    counts = [random.choice(COUNTS) for _ in rows]
    drawn = [(row, draw_sample(pictures.started[row], random, count)) for row, count in zip(rows, counts, strict=True)]
    drawn.sort(key=lambda pair: pair[1].length)
    group = random.randrange(GROUPS)
    chosen = drawn[group * size : (group + 1) * size]
    samples = [sample for _, sample in chosen]
    chosen_rows = [row for row, _ in chosen]
    images = pictures.images[chosen_rows]
    images = np.roll(images, (random.randint(-3, 3), random.randint(-3, 3)), (1, 2))
    images[[not sample.seen for sample in samples]] = GREY
    return samples, images, pictures.facts[chosen_rows]


def train_planner(
    planner: PlannerModel, pictures: Pictures, run: Path, recipe: Recipe = PLANNER, threads: int = 1
) -> Iterator[Progress]:
    """The whole model, tower included. `threads` work on a part of every batch each."""
    writer = Writer(planner.model).train().requires_grad_(True)
    encoder, device = Encoder(planner), planner.model.device
    _write_out_attention(planner.model)

    def part_of(
        samples: Sequence[Sample], images: np.ndarray | None = None, facts: np.ndarray | None = None
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        batch = {key: value.to(device) for key, value in encoder.batch(samples, facts).items()}
        return batch, None if images is None else pixels_of(images).to(device)

    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as workers:

        def losses_of(iteration: int, generator: torch.Generator) -> dict[str, Tensor]:
            school = iteration < SCHOOL and iteration % SCHOOL_PAUSE
            drawn = (
                draw_school(2 * recipe.batch, generator) if school else draw_batch(pictures, recipe.batch, generator)
            )
            parts = [part_of(*(of_all[k::threads] for of_all in drawn)) for k in range(threads)]
            losses = losses_of_batch(writer, *parts[0]) if threads == 1 else in_parts(writer, parts, workers)
            return {f"school {name}": loss for name, loss in losses.items()} if school else losses

        yield from fit("planner", writer, losses_of, recipe, run, seen=f"{len(planner.tokenizer)} tokens")
    writer.eval()
    planner.model.set_attn_implementation("sdpa")


def _write_out_attention(model: LlavaForConditionalGeneration) -> None:
    """Attention in single products: on processors a third quicker, there and back, than torch's fused one."""
    from transformers import AttentionInterface

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, scaling: float, **_: object
    ) -> tuple[Tensor, None]:
        """query, key, value [B, H, T, D] -> [B, T, H, D]."""
        rows, heads, length, width = query.shape
        q, k, v = (x.reshape(rows * heads, length, width).bfloat16() for x in (query, key, value))
        bias = torch.zeros(1, length, length, dtype=q.dtype, device=q.device)
        if module.is_causal:
            bias = bias.fill_(float("-inf")).triu(1)
        scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=scaling).softmax(-1)
        return torch.bmm(scores.to(v.dtype), v).view(rows, heads, length, width).transpose(1, 2).contiguous(), None

    AttentionInterface.register("written_out", attention)
    model.set_attn_implementation("written_out")


@torch.no_grad()
def write_replies(planner: PlannerModel, run: Path, iteration: int, count: int = 8) -> None:
    """Write `<run>/planner-replies/<iteration>.txt`: prompts that it is not trained on, what is wanted, what it writes.

    During a training it is the model of this moment, not the moving average. Raises `KSGenError` if the file cannot be
    written.
    """
    encoder, model = Encoder(planner), planner.model
    training, random, parts = model.training, Random(iteration), []
    model.eval()
    for number in range(count):
        started = make_started("train", PICTURES + number)
        sample = draw_sample(started, random, number % 4)
        picture = started.picture() if sample.seen else np.full((128, 128, 3), GREY, np.uint8)
        prompt = torch.tensor([encoder.prompt(sample)], device=model.device)
        pixels = pixels_of(picture[None]).to(model.device)
        made = model.generate(input_ids=prompt, pixel_values=pixels, max_new_tokens=160, do_sample=False)
        reply = planner.tokenizer.decode(made[0, prompt.shape[1] :], skip_special_tokens=True)
        prompt_text = user_text(sample.goal, sample.examples, sample.done)
        parts.append(f"{prompt_text}\nwanted {sample.reply}\nwrites {reply}\n")
    model.train(training)
    text = "\n".join(parts)
    path = run / f"planner-replies/{iteration:06d}.txt"
    write_atomically(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))
