"""Plans seen through the frozen encoders of a key-step model: what a Skill Transformer is trained on.

Encoded once and kept, see `shards`. Legend: P plans, T_i steps of plan i, N image tokens of width C, U texts,
L_u tokens of text u (padding left out), K their width, B plans of a batch, T, S, L their most steps, images and tokens.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import pixels
from ..errors import KSGenError
from ..keysteps.sdxl_diffusers import KeyStepModel
from .devices import Share
from .encoded import Encoded, digest
from .records import Record
from .shards import Place, digest_of, encode_items, files_of, halved, parts_of

PLANS, TEXTS = 64, 1024
"""Plans, and texts, of one shard: what a killed encoding does again at most."""
NO_ENCODERS = ("unet", "vae", "skill_transformer")
"""The parts of a key-step model that encode neither texts nor pictures into tokens."""


@dataclass(frozen=True)
class EncodedPlans:
    """images[i] [T_i, N, C] are the tokens of plan i's key images, texts[u] [L_u, K] the states of text u, and
    text_of[i][k] the number of plan i's step k; zero [N, C] are the tokens of the zero image. contents[i] is a digest
    of plan i, or without these `of` is one of all.
    """

    images: Sequence[Tensor]
    texts: Sequence[Tensor]
    text_of: Sequence[Sequence[int]]
    zero: Tensor
    of: str
    contents: Sequence[str] = ()

    def __post_init__(self) -> None:
        lengths = [len(tokens) for tokens in self.images]
        if lengths != [len(numbers) for numbers in self.text_of]:
            raise ValueError("every step has one text and one image")
        if min(lengths, default=2) < 2:
            raise ValueError("a plan of one step has no next image")

    @property
    def seen(self) -> str:
        """What stands for all that is trained on."""
        return digest_of(self.of, *self.contents) if self.contents else self.of

    @classmethod
    def from_pool(cls, data: Encoded) -> EncodedPlans:
        """The plans of Tabletop's pool that have a next image."""
        kept = [i for i, numbers in enumerate(data.text_of) if len(numbers) > 1]
        images = [data.tokens[data.first[i] : data.first[i] + len(data.text_of[i])] for i in kept]
        texts = [states[mask] for states, mask in zip(data.text, data.mask, strict=True)]
        return cls(images, texts, [data.text_of[i] for i in kept], data.zero, data.seen)

    def only(self, chosen: Sequence[int]) -> EncodedPlans:
        """Only these plans, e.g. those of one split."""
        images, text_of = [self.images[i] for i in chosen], [self.text_of[i] for i in chosen]
        contents = [self.contents[i] for i in chosen] if self.contents else ()
        return EncodedPlans(images, self.texts, text_of, self.zero, self.of, contents)

    def batch(self, chosen: Sequence[int], images: int | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The first `images` key images (None: all) and all texts of the `chosen` plans, on the CPU, in half precision
        if all of them are kept so, else float32
        -> tokens [B, S, N, C], texts [B, T, L, K], text_mask [B, T, L], is_step [B, S] (False: padding).
        """
        lengths = [len(self.images[i]) for i in chosen]
        longest = max(lengths)
        count = longest if images is None else min(images, longest)
        kept = [self.images[i] for i in chosen], [self.texts[u] for i in chosen for u in self.text_of[i]]
        length = max(len(states) for states in kept[1])
        dtypes = [torch.half if all(t.dtype == torch.half for t in some) else torch.float32 for some in kept]
        tokens = torch.zeros(len(chosen), count, *self.zero.shape, dtype=dtypes[0])
        texts = torch.zeros(len(chosen), longest, length, kept[1][0].shape[-1], dtype=dtypes[1])
        mask = torch.zeros(len(chosen), longest, length, dtype=torch.bool)
        is_step = torch.arange(count) < torch.tensor(lengths)[:, None]
        for b, i in enumerate(chosen):
            tokens[b, : lengths[b]] = self.images[i][:count]
            for k, u in enumerate(self.text_of[i]):
                texts[b, k, : len(self.texts[u])] = self.texts[u]
                mask[b, k, : len(self.texts[u])] = True
        return tokens, texts, mask, is_step


@torch.no_grad()
def encode_records(
    load: Callable[[], KeyStepModel],
    records: Sequence[Record],
    folder: Path,
    *,
    batch: int = 16,
    precision: torch.dtype = torch.float32,
    share: Share | None = None,
    told: Callable[[str], object] = lambda _: None,
) -> tuple[EncodedPlans, list[Path]]:
    """Encode the texts and key images of these records, `batch` at once; what `folder` holds by these encoders is read
    -> the plans, and the shards that they do not use.

    Pictures are fitted to the size of the model's key images first, as the initial picture is when it draws. The model
    that `load` gives is let go of at the end. `precision` below float32 means autocast. `told` is called with a line
    per shard that is made. Raises `KSGenError`, naming the record, if a picture cannot be used.
    """
    share = share or Share()
    words = sorted({step.text for record in records for step in record.steps})
    found, unused = _encode(load(), records, words, folder, batch, precision, share, told)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    (zero,), texts, images = (found[kind] for kind in ("zero", "texts", "images"))
    number = {text: u for u, text in enumerate(words)}
    text_of = [[number[step.text] for step in record.steps] for record in records]
    contents = [
        digest_of(place.content, *(texts[u].content for u in numbers))
        for place, numbers in zip(images, text_of, strict=True)
    ]
    tokens = [place.tensors()["tokens"] for place in images]
    states = [place.tensors()["states"] for place in texts]
    return EncodedPlans(tokens, states, text_of, zero.tensors()["zero"], zero.content, contents), unused


def _encode(
    model: KeyStepModel,
    records: Sequence[Record],
    words: Sequence[str],
    folder: Path,
    batch: int,
    precision: torch.dtype,
    share: Share,
    told: Callable[[str], object],
) -> tuple[dict[str, list[Place]], list[Path]]:
    """Where the zero image, these texts and the records' pictures lie, by these kinds, and shards that are not used."""
    encoders = [part for name, part in model.parts().items() if name not in NO_ENCODERS]
    beside = files_of(model.folder, ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "image_encoder"))
    of = f"{digest(*encoders)} {beside} {model.image_mean} {model.image_std} {precision} {model.size}"
    half = nullcontext() if precision == torch.float32 else torch.autocast(model.device.type, precision)

    def zero(_: list[None]) -> Iterator[tuple[dict[str, Tensor], None]]:
        yield {"zero": model.zero_image_tokens().float().cpu()}, None

    def texts(some: list[str]) -> Iterator[tuple[dict[str, Tensor], None]]:
        for group in parts_of(some, batch):
            states, mask, _ = model.encode_texts(list(group))
            for one, real in zip(states, mask.bool(), strict=True):
                yield {"states": halved(one[real].cpu())}, None

    def images(some: list[Record]) -> Iterator[tuple[dict[str, Tensor], None]]:
        steps = [(record, step) for record in some for step in range(len(record.steps))]
        found = []
        with ThreadPoolExecutor(os.cpu_count()) as readers:  # reading large files takes longer than encoding them
            for group in parts_of(steps, batch):
                pictures = readers.map(lambda one: pixels.fit(one[0].image(one[1]), *model.size), group)
                with half:
                    found.append(model.encode_images(torch.stack(list(pictures))).cpu())
        for tokens in torch.cat(found).split([len(record.steps) for record in some]):
            yield {"tokens": halved(tokens)}, None

    items: dict[str, tuple[list[tuple[object, Any]], Callable, int]] = {
        "zero": ([(None, None)], zero, 1),
        "texts": ([(text, text) for text in words], texts, TEXTS),
        "images": ([([r.id, [step.image for step in r.steps], r.stamp], r) for r in records], images, PLANS),
    }
    places, unused = {}, []
    for kind, (some, encode, size) in items.items():
        places[kind], more = encode_items(kind, some, encode, of, folder, size=size, share=share, told=told)
        unused += more
    return places, unused


def only_of(records: Sequence[Record], split: str, max_images: int) -> list[Record]:
    """The records of a split that have a next image. Raises `KSGenError` for one with more steps than can be read."""
    found = [record for record in records if record.split == split and len(record.steps) > 1]
    if long := [record for record in found if len(record.steps) > max_images]:
        raise KSGenError(
            f"{long[0].where} has {len(long[0].steps)} steps, the Skill Transformer is to read at most {max_images}. "
            "Give a larger --max-images, or split the record."
        )
    return found
