"""Key-step clips seen through the frozen encoders of a clip model: what its transformer is trained on.

Encoded once, in shards that are kept under what they depend on, so that a killed encoding goes on where it was. They
stay on disk: a batch reads its own clips. Several processes take turns at the shards.
Legend: B clips, F frames, H, W their size in pixels, L tokens of a text, C their width.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import pixels, video
from ..checkpoints import read_metadata, save_weights
from ..errors import KSGenError
from .clip_flow import Flow, Given
from .dataset import Record
from .devices import Share
from .encoded import digest
from .encoded_plans import content_of, halved, parts_of

KIND = "ksgen.encoded_clips/1"
CLIPS, TEXTS = 16, 256
"""Clips, and texts, of one shard: what a killed encoding does again at most."""
Step = tuple[Record, int]


@dataclass(frozen=True)
class ClipForm:
    """What every clip is brought to: frames, height, width, frames a second."""

    frames: int
    height: int
    width: int
    fps: float


@dataclass(frozen=True)
class EncodedClips:
    """`steps` are those whose clips are long enough, places[k] is where step k's clip lies: a file and a number in it.

    texts holds every text as the model takes it, without the zeros after its end, and its length with them. `seen`
    is a digest of all of it.
    """

    steps: Sequence[Step]
    places: Sequence[tuple[Path, int]]
    texts: dict[str, tuple[Given, int]]
    seen: str

    def clips(self, chosen: Sequence[int]) -> Given:
        """The chosen clips, with a batch in front."""
        found = []
        for path, number in (self.places[k] for k in chosen):
            file = _opened(path)
            names = [name for name in file.keys() if name.startswith(f"{number}.")]  # noqa: SIM118
            found.append({name.partition(".")[2]: file.get_tensor(name) for name in names})
        return {name: torch.stack([one[name] for one in found]) for name in found[0]}

    def text(self, words: Sequence[str]) -> Given:
        """These texts, [B, L, ...] each."""
        found = []
        for tensors, length in (self.texts[word] for word in words):
            found.append({name: _lengthened(tensor, length) for name, tensor in tensors.items()})
        return {name: torch.stack([one[name] for one in found]) for name in found[0]}

    def only(self, split: str) -> EncodedClips:
        """The clips of one split."""
        kept = [k for k, (record, _) in enumerate(self.steps) if record.split == split]
        return EncodedClips([self.steps[k] for k in kept], [self.places[k] for k in kept], self.texts, self.seen)


@cache
def _opened(path: Path) -> Any:
    from safetensors import safe_open

    return safe_open(str(path), "pt")


def _lengthened(tensor: Tensor, length: int) -> Tensor:
    """[l, ...] -> [L, ...], zeros behind."""
    return F.pad(tensor, (0, 0) * (tensor.ndim - 1) + (0, length - len(tensor)))


def film_of(record: Record, step: int, form: ClipForm) -> Tensor | None:
    """The clip of a step from its start, in this form: [F, H, W, 3], 0..1; None if it is too short.

    Frame n is the one that begins nearest to n / fps seconds after the first, so the first is the clip's own, which the
    key image stands for; where the clip is a little slower than wanted, as 23.976 is than 24, one in a thousand comes
    twice. Raises `KSGenError`, naming record and clip, if it is no video, or has fewer frames a second than are wanted.
    """
    with record.clip(step) as clip:
        if clip is None:
            raise ValueError(f"step {step} of {record.where} has no clip")
        if clip.fps < form.fps * 0.999:
            raise KSGenError(f"it has {clip.fps:.4g} frames a second, {form.fps:.4g} are wanted: lower --fps")
        wanted = [math.floor(n * clip.fps / form.fps + 0.5) for n in range(form.frames)]
        found = {}
        for number, frame in enumerate(islice(video.frames(clip), wanted[-1] + 1)):
            if number in wanted:
                found[number] = pixels.fit(pixels.from_uint8(frame), form.height, form.width)
    return torch.stack([found[number] for number in wanted]) if wanted[-1] in found else None


@torch.no_grad()
def encode_clips(
    flow: Flow,
    records: Sequence[Record],
    form: ClipForm,
    more_texts: Sequence[str],
    folder: Path,
    *,
    share: Share | None = None,
    told: Callable[[str], object] = lambda _: None,
) -> EncodedClips:
    """Encode all clips and texts of these records, and `more_texts`; what `folder` holds by these weights is read.

    Clips that are too short are left out, and `told` of. Raises `KSGenError`, naming the record, if a clip cannot be
    used, or if none is long enough.
    """
    share = share or Share()
    model = flow.model
    steps = [(record, k) for record in records for k, step in enumerate(record.steps) if step.clip is not None]
    words = sorted({record.steps[k].text for record, k in steps} | set(more_texts))
    encoders = [part for name, part in model.parts().items() if name not in model.denoisers]
    weights = f"{digest(*encoders)} {model.dtype} {model.family.name} {form}"

    def texts(shard: Sequence[str]) -> tuple[dict[str, Tensor], object]:
        tensors, lengths = {}, []
        for number, word in enumerate(shard):
            embeds = {name: tensor[0] for name, tensor in model.encode([word])[word].items()}
            lengths.append(max(len(tensor) for tensor in embeds.values()))
            tensors |= {f"{number}.{name}": _without_zeros(tensor) for name, tensor in embeds.items()}
        return tensors, lengths

    def clips(shard: Sequence[Step]) -> tuple[dict[str, Tensor], object]:
        tensors, there = {}, []
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as readers:
            for number, film in enumerate(readers.map(lambda one: film_of(one[0], one[1], form), shard)):
                if film is not None:
                    there.append(number)
                    tensors |= {f"{number}.{name}": halved(tensor) for name, tensor in flow.encode(film).items()}
        return tensors or {"none": torch.zeros(1)}, there

    shards: list[tuple[str, Any, Any, Callable[[Any], tuple[dict[str, Tensor], object]]]] = []
    shards += [("texts", part, part, texts) for part in parts_of(words, TEXTS)]
    for part in parts_of(steps, CLIPS):
        shards.append(("clips", part, [(record.to_json(), record.stamp, k) for record, k in part], clips))
    paths = []
    for number, (kind, content, of, make) in enumerate(shards):
        name = hashlib.sha256(json.dumps([weights, kind, of]).encode()).hexdigest()[:20]
        paths.append(folder / f"{kind}-{name}.safetensors")
        if number % share.count == share.number and not paths[-1].exists():
            tensors, what = make(content)
            save_weights(paths[-1], tensors, KIND, {"content": content_of(tensors), "what": what})
            told(f"encoded {number + 1}/{len(shards)}")
    share.wait()
    return _read(paths, [(kind, content) for kind, content, _, _ in shards], form, weights, told)


def _read(
    paths: Sequence[Path], shards: Sequence[tuple[str, Any]], form: ClipForm, weights: str, told: Callable
) -> EncodedClips:
    steps: list[Step] = []
    places: list[tuple[Path, int]] = []
    texts: dict[str, tuple[Given, int]] = {}
    short: list[Step] = []
    seen = [weights]
    for path, (kind, content) in zip(paths, shards, strict=True):
        about = json.loads(read_metadata(path)["config"])
        seen.append(about["content"])
        if kind == "texts":
            file = _opened(path)
            for number, (word, length) in enumerate(zip(content, about["what"], strict=True)):
                names = [name for name in file.keys() if name.startswith(f"{number}.")]  # noqa: SIM118
                texts[word] = {name.partition(".")[2]: file.get_tensor(name) for name in names}, length
        else:
            there = set(about["what"])
            for number, step in enumerate(content):
                if number in there:
                    steps.append(step)
                    places.append((path, number))
                else:
                    short.append(step)
    if short:
        record, k = short[0]
        what = (
            f"{len(short)} of {len(short) + len(steps)} clips are shorter than {form.frames} frames at {form.fps:.4g} "
            f"frames a second, the first is {record.steps[k].clip!r} of {record.where}"
        )
        if not steps:
            raise KSGenError(f"{what}. Give fewer --frames.")
        told(f"{what}. They are left out.")
    return EncodedClips(steps, places, texts, hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:12])


def _without_zeros(tensor: Tensor) -> Tensor:
    """[L, ...] -> [l, ...]: without the rows of zeros at its end, at least one row."""
    there = tensor.reshape(len(tensor), -1).ne(0).any(1).nonzero()
    return tensor[: max(1, int(there.max()) + 1 if len(there) else 1)].cpu()
