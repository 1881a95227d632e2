"""Plans seen through the frozen encoders of a key-step model: what a Skill Transformer is trained on.

Encoded once, in shards that are kept under what they depend on, so that a killed encoding goes on where it was.
Several processes take turns at the shards. Legend: P plans, T_i steps of plan i, N image tokens of width C, U texts,
L_u tokens of text u (padding left out), K their width, B plans of a batch, T, S, L their most steps, images and tokens.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import pixels
from ..checkpoints import load_weights, save_weights
from ..errors import KSGenError
from ..keysteps.sdxl_diffusers import KeyStepModel
from .dataset import Record
from .devices import Share
from .encoded import Encoded, digest

KIND = "ksgen.encoded_plans/1"
PLANS, TEXTS = 64, 1024
"""Plans, and texts, of one shard: what a killed encoding does again at most."""
NO_ENCODERS = ("unet", "vae", "skill_transformer")
"""The parts of a key-step model that encode neither texts nor pictures into tokens."""


@dataclass(frozen=True)
class EncodedPlans:
    """images[i] [T_i, N, C] are the tokens of plan i's key images, texts[u] [L_u, K] the states of text u, and
    text_of[i][k] the number of plan i's step k; zero [N, C] are the tokens of the zero image. `seen` is a digest of
    all of it.
    """

    images: Sequence[Tensor]
    texts: Sequence[Tensor]
    text_of: Sequence[Sequence[int]]
    zero: Tensor
    seen: str

    def __post_init__(self) -> None:
        lengths = [len(tokens) for tokens in self.images]
        if lengths != [len(numbers) for numbers in self.text_of]:
            raise ValueError("every step has one text and one image")
        if min(lengths, default=2) < 2:
            raise ValueError("a plan of one step has no next image")

    @classmethod
    def of(cls, data: Encoded) -> EncodedPlans:
        """The plans of Tabletop's pool that have a next image."""
        kept = [i for i, numbers in enumerate(data.text_of) if len(numbers) > 1]
        images = [data.tokens[data.first[i] : data.first[i] + len(data.text_of[i])] for i in kept]
        texts = [states[mask] for states, mask in zip(data.text, data.mask, strict=True)]
        return cls(images, texts, [data.text_of[i] for i in kept], data.zero, data.seen)

    def batch(self, chosen: Sequence[int], images: int | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The first `images` key images (None: all) and all texts of the `chosen` plans, float32 on the CPU
        -> tokens [B, S, N, C], texts [B, T, L, K], text_mask [B, T, L], is_step [B, S] (False: padding).
        """
        lengths = [len(self.images[i]) for i in chosen]
        longest = max(lengths)
        count = longest if images is None else min(images, longest)
        length = max(len(self.texts[u]) for i in chosen for u in self.text_of[i])
        tokens = torch.zeros(len(chosen), count, *self.zero.shape)
        texts = torch.zeros(len(chosen), longest, length, self.texts[self.text_of[chosen[0]][0]].shape[-1])
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
) -> EncodedPlans:
    """Encode the texts and key images of these records, `batch` at once; what `folder` holds by these weights is read.

    Pictures are fitted to the size of the model's key images first, as the initial picture is when it draws. The model
    that `load` gives is let go of at the end. `precision` below float32 means autocast. `told` is called with a line
    per shard that is made. Raises `KSGenError`, naming the record, if a picture cannot be used.
    """
    share = share or Share()
    words = sorted({step.text for record in records for step in record.steps})
    weights, paths = _make_shards(load(), records, words, folder, batch, precision, share, told)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    share.wait()
    return _read(paths, records, words, weights)


def _make_shards(
    model: KeyStepModel,
    records: Sequence[Record],
    words: Sequence[str],
    folder: Path,
    batch: int,
    precision: torch.dtype,
    share: Share,
    told: Callable[[str], object],
) -> tuple[str, list[Path]]:
    """Make this process's share of the shards that are missing -> what the encoders are, and all shards' paths."""
    encoders = [part for name, part in model.parts().items() if name not in NO_ENCODERS]
    weights = f"{digest(*encoders)} {precision} {model.size}"
    half = nullcontext() if precision == torch.float32 else torch.autocast(model.device.type, precision)

    def zero() -> dict[str, Tensor]:
        return {"zero": model.zero_image_tokens().float().cpu()}

    def texts(shard: Sequence[str]) -> dict[str, Tensor]:
        found: list[Tensor] = []
        for group in parts_of(shard, batch):
            states, mask, _ = model.encode_texts(list(group))
            found += [one[real].cpu() for one, real in zip(states, mask.bool(), strict=True)]
        return {"states": halved(torch.cat(found)), "lengths": torch.tensor([len(one) for one in found])}

    def images(shard: Sequence[Record]) -> dict[str, Tensor]:
        steps = [(record, step) for record in shard for step in range(len(record.steps))]
        found = []
        with ThreadPoolExecutor(os.cpu_count()) as readers:  # reading large files takes longer than encoding them
            for group in parts_of(steps, batch):
                pictures = readers.map(lambda one: pixels.fit(one[0].image(one[1]), *model.size), group)
                with half:
                    found.append(model.encode_images(torch.stack(list(pictures))).cpu())
        return {"images": halved(torch.cat(found))}

    shards: list[tuple[str, object, Callable[[], dict[str, Tensor]]]] = [("zero", None, zero)]
    for part in parts_of(words, TEXTS):
        shards.append(("texts", list(part), partial(texts, part)))
    for part in parts_of(records, PLANS):
        shards.append(("images", [(record.to_json(), record.stamp) for record in part], partial(images, part)))
    paths = []
    for number, (kind, of, make) in enumerate(shards):
        name = hashlib.sha256(json.dumps([weights, kind, of]).encode()).hexdigest()[:20]
        paths.append(folder / f"{kind}-{name}.safetensors")
        if number % share.count == share.number and not paths[-1].exists():
            tensors = make()
            save_weights(paths[-1], tensors, KIND, {"content": content_of(tensors)})
            told(f"encoded {number + 1}/{len(shards)}")
    return weights, paths


def parts_of(whole: Sequence[Any], size: int) -> list[Any]:
    """In order, `size` each, the last of them fewer."""
    return [whole[start : start + size] for start in range(0, len(whole), size)]


def _read(paths: Sequence[Path], records: Sequence[Record], words: Sequence[str], weights: str) -> EncodedPlans:
    """The plans in these shards: the zero image's, the texts', the pictures'. What is not asked for stays on disk."""
    (first, about), *shards = [load_weights(path, KIND) for path in paths]
    texts: list[Tensor] = []
    images: list[Tensor] = []
    for tensors, _ in shards[: len(parts_of(words, TEXTS))]:
        texts += tensors["states"].split(tensors["lengths"].tolist())
    for part, (tensors, _) in zip(parts_of(records, PLANS), shards[len(parts_of(words, TEXTS)) :], strict=True):
        images += tensors["images"].split([len(record.steps) for record in part])
    number = {text: u for u, text in enumerate(words)}
    text_of = [[number[step.text] for step in record.steps] for record in records]
    seen = json.dumps([weights, text_of, about["content"], [config["content"] for _, config in shards]])
    return EncodedPlans(images, texts, text_of, first["zero"], hashlib.sha256(seen.encode()).hexdigest()[:12])


def halved(tensor: Tensor) -> Tensor:
    """In half precision, unless it is too large for that."""
    half = tensor.half()
    return half if half.isfinite().all() else tensor.float()


def content_of(tensors: dict[str, Tensor]) -> str:
    """A digest of named tensors."""
    found = hashlib.sha256()
    for key, value in sorted(tensors.items()):
        found.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def only_of(records: Sequence[Record], split: str, max_images: int) -> list[Record]:
    """The records of a split that have a next image. Raises `KSGenError` for one with more steps than can be read."""
    found = [record for record in records if record.split == split and len(record.steps) > 1]
    if long := [record for record in found if len(record.steps) > max_images]:
        raise KSGenError(
            f"{long[0].where} has {len(long[0].steps)} steps, the Skill Transformer is to read at most {max_images}. "
            "Give a larger --max-images, or split the record."
        )
    return found
