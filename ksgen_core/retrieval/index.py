"""The vectors of a library, kept on disk by content: only what is new or has changed is embedded again.

One file an embedding, named after it. Processes that write at the same time each put a whole file there, what they
found in it included; the last one wins, and what it lacks is embedded again when it is wanted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..checkpoints import write_atomically
from ..errors import KSGenError

if TYPE_CHECKING:
    import numpy as np

KIND = "ksgen.vectors/1"
CHUNK = 64
"""Documents that are embedded at a time."""
MOST_KEPT = 40_000
"""Vectors in a file, 60 MB of them at a width of 384: past that the file keeps those of the last library only."""
UNLIKE = (
    "make coffee",
    "change a car tyre",
    "knit a scarf",
    "plant a tree",
    "tune a guitar",
    "bandage a cut finger",
    "print a document",
    "fold a paper crane",
    "solder a wire",
    "swim a length",
    "feed a cat",
    "hang up a picture",
)
"""Goals that have nothing to do with each other: how near an embedding puts them is its zero."""

log = logging.getLogger("ksgen")


def cache_folder() -> Path:
    """Where the command line keeps its index: the user's folder for what can be made again."""
    if os.name == "nt":
        place = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        place = Path.home() / "Library" / "Caches"
    else:
        place = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(place) / "ksgen" / "index"


class Embed(Protocol):
    """What turns texts into vectors [B, C] of length 1, as `embed.Embedding` does."""

    @property
    def id(self) -> str: ...

    @property
    def width(self) -> int: ...

    def __call__(self, texts: Sequence[str], kind: str = "document", /) -> np.ndarray: ...


class VectorIndex:
    """Vectors of skills and of queries by one embedding; those of skills are kept in `folder`, if one is given."""

    def __init__(
        self, embed: Embed, folder: str | Path | None = None, progress: Callable[[int, int], None] = lambda *_: None
    ) -> None:
        """`progress` is called with how many documents of how many are embedded; what it raises stops the work, and
        what is done by then is kept."""
        self.embed, self.progress = embed, progress
        self.folder = None if folder is None else Path(folder)

    @property
    def path(self) -> Path | None:
        return None if self.folder is None else self.folder / f"{self.embed.id}.safetensors"

    def of_query(self, text: str) -> np.ndarray:
        """float32 [C], of length 1. Not kept."""
        return self.embed([text], "query")[0]

    def of_library(self, documents: Sequence[Sequence[str]]) -> np.ndarray:
        """float32 [documents, C], of length 1: each the mean direction of the document's texts.

        An index that is broken is built again, and one that cannot be written is not kept; a warning says so.
        """
        import numpy as np

        keys = [_key(texts) for texts in documents]
        kept, vectors = self._read()
        found = np.empty((len(keys), self.embed.width), np.float32)
        missing: dict[bytes, list[int]] = {}
        for number, key in enumerate(keys):
            if key in kept:
                found[number] = vectors[kept[key]]
            else:
                missing.setdefault(key, []).append(number)
        new: dict[bytes, np.ndarray] = {}
        todo = list(missing)
        try:
            for begin in range(0, len(todo), CHUNK):
                chunk = todo[begin : begin + CHUNK]
                made = self._embedded([documents[missing[key][0]] for key in chunk])
                new |= zip(chunk, made, strict=True)
                self.progress(len(new), len(todo))
        finally:
            # What is done by then is kept, even if it is stopped.
            if new:
                self._write(new, keys)
        for key, numbers in missing.items():
            found[numbers] = new[key]
        return found

    @cached_property
    def unlike(self) -> float:
        """The cosine that this embedding gives goals that have nothing to do with each other, on the average."""
        vectors = self._embedded([(text,) for text in UNLIKE])
        return float((vectors.sum(0) @ vectors.sum(0) - len(UNLIKE)) / (len(UNLIKE) * (len(UNLIKE) - 1)))

    def _embedded(self, documents: Sequence[Sequence[str]]) -> np.ndarray:
        import numpy as np

        vectors = self.embed([text for texts in documents for text in texts], "document")
        starts = np.cumsum([0, *(len(texts) for texts in documents[:-1])])
        sums = np.add.reduceat(vectors, starts, 0)
        return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)

    def _read(self) -> tuple[Mapping[bytes, int], np.ndarray]:
        """The row of every key in the file, and the rows."""
        import numpy as np

        nothing = {}, np.empty((0, self.embed.width), np.float32)
        if self.path is None or not self.path.is_file():
            return nothing
        try:
            from safetensors import safe_open

            # Opened once: another process may put a new file there at any time.
            with safe_open(str(self.path), "np") as file:
                metadata = file.metadata() or {}
                keys, vectors = file.get_tensor("keys"), file.get_tensor("vectors")
            wanted = {"kind": KIND, "embedding": self.embed.id, "digest": _digest(keys, vectors)}
            if any(metadata.get(name) != value for name, value in wanted.items()):
                raise KSGenError("its content is not what it says")
            if vectors.shape != (len(keys), self.embed.width) or vectors.dtype != np.float32 or keys.shape[1:] != (16,):
                raise KSGenError("its vectors are of another shape")
        except OSError as error:
            log.warning("The index %s cannot be read and is built again: %s", self.path, error)
            return nothing
        except Exception as error:  # safetensors and numpy each raise their own
            log.warning("The index %s is broken and is built again: %s", self.path, error)
            return nothing
        return {key.tobytes(): row for row, key in enumerate(keys)}, vectors

    def _write(self, new: Mapping[bytes, np.ndarray], wanted: Sequence[bytes]) -> None:
        """Put new vectors beside those that are in the file by now."""
        import numpy as np
        from safetensors.numpy import save_file

        if self.path is None:
            return
        kept, vectors = self._read()
        rows = {**{key: vectors[row] for key, row in kept.items()}, **new}
        if len(rows) > MOST_KEPT:
            rows = {key: rows[key] for key in dict.fromkeys(wanted) if key in rows}
        keys = np.frombuffer(b"".join(rows), np.uint8).reshape(-1, 16)
        stacked = np.stack(list(rows.values()))
        metadata = {"kind": KIND, "embedding": self.embed.id, "digest": _digest(keys, stacked)}
        tensors = {"keys": keys, "vectors": stacked}
        try:
            write_atomically(self.path, lambda temporary: save_file(tensors, temporary, metadata))
        except KSGenError as error:
            log.warning("The index is not kept: %s", error)


def _key(texts: Sequence[str]) -> bytes:
    return hashlib.blake2b(json.dumps(list(texts)).encode(), digest_size=16).digest()


def _digest(keys: np.ndarray, vectors: np.ndarray) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in (keys, vectors):
        digest.update(part.data if part.size else b"")
    return digest.hexdigest()
