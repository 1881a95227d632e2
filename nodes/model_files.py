"""Files below the host's model folders: which folders hold models, and whether files are still those of before."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import folder_paths


class ModelFolders(NamedTuple):
    """By their path below the host's folders. An image encoder may be part of a diffusers folder."""

    diffusers: dict[str, Path]
    image_encoders: dict[str, Path]


def model_folders() -> ModelFolders:
    """The diffusers folders in the host's `diffusers`, the CLIP vision models there and in its `clip_vision`."""
    found = ModelFolders({}, {})
    for kind in ("clip_vision", "diffusers"):
        for root in map(Path, folder_paths.get_folder_paths(kind)):
            whole: set[Path] = set()  # what lies in a diffusers folder is part of it, whatever it holds
            for place, files in _walk(root):
                name = place.relative_to(root).as_posix()
                if place == root:
                    continue
                if kind == "diffusers" and "model_index.json" in files and whole.isdisjoint(place.parents):
                    whole.add(place)
                    found.diffusers[name] = place
                if "config.json" in files and _is_vision(place / "config.json"):
                    found.image_encoders[name] = place
    return found


def subfolders(kind: str) -> list[Path]:
    """The folders in the host's folders of this kind, without those below them."""
    roots = map(Path, folder_paths.get_folder_paths(kind))
    return [root / name for root in roots for name in next(os.walk(root), ("", [], []))[1]]


def _walk(place: Path, above: tuple[str, ...] = ()) -> Iterator[tuple[Path, list[str]]]:
    """Every folder and the names of its files. Links are followed, for models often lie on another disk, but never
    back into a folder that they are in. What cannot be read is empty."""
    real = os.path.realpath(place)
    if real in above:
        return
    _, folders, files = next(os.walk(place), ("", [], []))
    yield place, files
    for name in sorted(folders):
        yield from _walk(place / name, (*above, real))


def _is_vision(config: Path) -> bool:
    try:
        return "CLIPVisionModel" in config.read_text(encoding="utf-8", errors="replace")
    except OSError:  # such as a link to nowhere, which a moved download leaves
        return False


def state(paths: Iterable[Path | None]) -> str:
    """Changes whenever one of these files, or a file in one of these folders, does. What is not there is left out."""
    files: list[Path] = []
    for path in filter(None, paths):
        files += [folder / name for folder, names in _walk(path) for name in sorted(names)] if path.is_dir() else [path]
    return " ".join(f"{file} {found.st_mtime_ns} {found.st_size}" for file in files if (found := _stat(file)))


def weights_size(folder: Path) -> int:
    """Bytes of the weights in a folder, with those of every variant: at least what they need in main memory at the
    precision that they are stored in."""
    weights = (place / name for place, names in _walk(folder) for name in names if name.endswith(".safetensors"))
    return sum(found.st_size for file in weights if (found := _stat(file)))


def _stat(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except OSError:
        return None
