"""Key-step clips seen through the frozen encoders of a clip model: what its transformer is trained on.

Encoded once and kept, see `shards`. Clips stay on disk: a batch reads its own.
Legend: B clips, F frames, H, W their size in pixels, L tokens of a text, C their width.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import pixels, video
from ..errors import KSGenError
from .clip_flow import Flow, Given
from .devices import Share
from .encoded import digest
from .records import Record
from .shards import Place, digest_of, encode_items, files_of, halved

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
    """`steps` are those whose clips are long enough, places[k] is where step k's clip lies.

    texts holds every text as the model takes it, without the zeros after its end, and its length with them. contents[k]
    is a digest of step k, `of` one of the text that stands for dropped ones.
    """

    steps: Sequence[Step]
    places: Sequence[Place]
    texts: dict[str, tuple[Given, int]]
    of: str
    contents: Sequence[str]

    @property
    def seen(self) -> str:
        """What stands for all that is trained on."""
        return digest_of(self.of, *self.contents)

    def clips(self, chosen: Sequence[int]) -> Given:
        """The chosen clips, with a batch in front."""
        found = [self.places[k].tensors() for k in chosen]
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
        steps, places = [self.steps[k] for k in kept], [self.places[k] for k in kept]
        return EncodedClips(steps, places, self.texts, self.of, [self.contents[k] for k in kept])


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
) -> tuple[EncodedClips, list[Path]]:
    """Encode all clips and texts of these records, `more_texts` and the empty one; what `folder` holds by these
    encoders is read -> the clips, and the shards that they do not use.

    Clips that are too short are left out, and `told` of. Raises `KSGenError`, naming the record, if a clip cannot be
    used, or if none is long enough.
    """
    share = share or Share()
    model = flow.model
    steps = [(record, k) for record in records for k, step in enumerate(record.steps) if step.clip is not None]
    words = sorted({record.steps[k].text for record, k in steps} | {"", *more_texts})
    encoders = {name: part for name, part in model.parts().items() if name not in model.denoisers}
    beside = files_of(model.folder, {*encoders, "tokenizer", "image_processor", "feature_extractor"})
    of = f"{digest(*encoders.values())} {beside} {model.dtype} {model.family.name}"

    def encode_texts(some: list[str]) -> Iterator[tuple[Given, int]]:
        for word in some:
            embeds = {name: tensor[0] for name, tensor in model.encode([word])[word].items()}
            length = max(len(tensor) for tensor in embeds.values())
            yield {name: _without_zeros(tensor) for name, tensor in embeds.items()}, length

    def encode_films(some: list[Step]) -> Iterator[tuple[Given, bool]]:
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as readers:
            for film in readers.map(lambda one: film_of(one[0], one[1], form), some):
                encoded = {} if film is None else flow.encode(film)
                yield {name: halved(tensor) for name, tensor in encoded.items()}, film is not None

    items = [([record.id, k, record.steps[k].clip, record.stamp, asdict(form)], (record, k)) for record, k in steps]
    texts, unused = encode_items(
        "texts", [(word, word) for word in words], encode_texts, of, folder, size=TEXTS, share=share, told=told
    )
    clips, more = encode_items("clips", items, encode_films, of, folder, size=CLIPS, share=share, told=told)
    there = [k for k, place in enumerate(clips) if place.about]
    if len(there) < len(steps):
        _tell_of_short_ones(
            [step for step, place in zip(steps, clips, strict=True) if not place.about], steps, form, told
        )
    content = {word: place.content for word, place in zip(words, texts, strict=True)}
    contents = [digest_of(clips[k].content, content[steps[k][0].steps[steps[k][1]].text]) for k in there]
    found = EncodedClips(
        [steps[k] for k in there],
        [clips[k] for k in there],
        {word: (place.tensors(), place.about) for word, place in zip(words, texts, strict=True)},
        content[""],
        contents,
    )
    return found, [*unused, *more]


def _tell_of_short_ones(short: list[Step], steps: list[Step], form: ClipForm, told: Callable[[str], object]) -> None:
    record, k = short[0]
    what = (
        f"{len(short)} of {len(steps)} clips are shorter than {form.frames} frames at {form.fps:.4g} "
        f"frames a second, the first is {record.steps[k].clip!r} of {record.where}"
    )
    if len(short) == len(steps):
        raise KSGenError(f"{what}. Give fewer --frames.")
    told(f"{what}. They are left out.")


def _without_zeros(tensor: Tensor) -> Tensor:
    """[L, ...] -> [l, ...]: without the rows of zeros at its end, at least one row."""
    there = tensor.reshape(len(tensor), -1).ne(0).any(1).nonzero()
    return tensor[: max(1, int(there.max()) + 1 if len(there) else 1)].cpu()
