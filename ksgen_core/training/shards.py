"""What frozen encoders made, kept on disk: every item under what it depends on, in whichever shard it lies.

So what is there is never made again, whatever is put beside it or taken away, and a killed encoding goes on where it
was. Several processes take turns at the shards that are missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints import read_metadata, save_weights
from .devices import Share

KIND = "ksgen.encoded/1"
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".msgpack", ".h5", ".onnx")


@dataclass(frozen=True)
class Place:
    """Where an item lies: a shard and its number in there, a digest of its tensors, and what was said of it."""

    path: Path
    number: int
    content: str
    about: Any

    def tensors(self) -> dict[str, Tensor]:
        """The item's tensors by their names, read now."""
        file, names = _opened(self.path)
        return {name: file.get_tensor(f"{self.number}.{name}") for name in names[self.number]}


def encode_items(
    kind: str,
    items: Sequence[tuple[object, Any]],
    encode: Callable[[list[Any]], Iterable[tuple[dict[str, Tensor], object]]],
    of: str,
    folder: Path,
    *,
    size: int,
    share: Share,
    told: Callable[[str], object],
) -> tuple[list[Place], list[Path]]:
    """Encode what `folder` does not hold of these items -> where each of them lies, and the shards of this kind that
    nothing here uses.

    An item is what it depends on beside the encoders, JSON, and what `encode` is given of it. `encode` makes tensors,
    and something to say of them, for each of a list of items; `of` stands for the encoders. `size` items are in one
    shard: what a killed encoding does again at most. All processes of a `share` must call this with the same items.
    """
    keys = [hashlib.sha256(json.dumps([of, kind, what]).encode()).hexdigest()[:32] for what, _ in items]
    there = _there(kind, folder)
    share.wait()  # until all have seen the same, and agree on what is missing
    missing = {key: given for key, (_, given) in zip(keys, items, strict=True) if key not in there}
    parts = parts_of(list(missing), size)
    for number, part in enumerate(parts):
        if number % share.count == share.number:
            _write(kind, folder, part, encode([missing[key] for key in part]))
            told(f"encoded {number + 1}/{len(parts)} of the {kind} that are new")
    share.wait()
    there = _there(kind, folder)
    places = [there[key] for key in keys]
    unused = {place.path for place in there.values()} - {place.path for place in places}
    return places, sorted(unused)


def _there(kind: str, folder: Path) -> dict[str, Place]:
    """What the shards of a kind hold, by its key."""
    found = {}
    for path in sorted(folder.glob(f"{kind}-*.safetensors")):
        metadata = read_metadata(path)
        if metadata.get("kind") == KIND:
            for number, (key, content, about) in enumerate(json.loads(metadata["config"])["items"]):
                found[key] = Place(path, number, content, about)
    return found


def _write(kind: str, folder: Path, keys: Sequence[str], made: Iterable[tuple[dict[str, Tensor], object]]) -> None:
    tensors: dict[str, Tensor] = {}
    items = []
    for number, (key, (of_item, about)) in enumerate(zip(keys, made, strict=True)):
        tensors |= {f"{number}.{name}": tensor for name, tensor in of_item.items()}
        items.append((key, content_of(of_item), about))
    name = hashlib.sha256("".join(keys).encode()).hexdigest()[:20]
    # A safetensors file has one tensor at least.
    tensors = tensors or {"none": torch.zeros(1)}
    save_weights(folder / f"{kind}-{name}.safetensors", tensors, KIND, {"items": items})


@cache
def _opened(path: Path) -> tuple[Any, dict[int, list[str]]]:
    """A shard, and the names of the tensors of each of its items."""
    from safetensors import safe_open

    file = safe_open(str(path), "pt")
    names: dict[int, list[str]] = {}
    for whole in file.keys():  # noqa: SIM118
        number, _, name = whole.partition(".")
        if name:
            names.setdefault(int(number), []).append(name)
    return file, names


def parts_of(whole: Sequence[Any], size: int) -> list[Any]:
    """In order, `size` each, the last of them fewer."""
    return [whole[start : start + size] for start in range(0, len(whole), size)]


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
    return found.hexdigest()[:32]


def digest_of(*contents: object) -> str:
    """Twelve hexadecimal digits that stand for all of these, in their order."""
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()[:12]


def files_of(folder: Path | None, parts: Iterable[str]) -> str:
    """A digest of what lies beside the weights of a model's parts: tokenizers, image processors, configs."""
    found = hashlib.sha256()
    if folder is None:  # a model made in code
        return ""
    for part in sorted(parts):
        for path in sorted((folder / part).rglob("*")):
            if path.is_file() and path.suffix not in WEIGHTS:
                content = path.read_bytes()
                found.update(f"{path.relative_to(folder).as_posix()} {len(content)} ".encode() + content)
    return found.hexdigest()[:12]
