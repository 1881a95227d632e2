"""The name of a result: a digest of everything that made it.

As the host's own cache does, a node counts with its class, its constants, what it says of the files it reads, and all
nodes before it; node ids do not count. Beside that count the identity of the model files that constants name, and a
step's pictures by their content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .graph import ALWAYS, PICTURES, STEP, Copy, Graph, is_link

if TYPE_CHECKING:
    import torch

FORMAT = "ksgen.loop/1"
"""Part of every name: results of another format are not found."""


def digest(data: Any) -> str:
    """SHA-256, 64 hex digits, of what JSON can say."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def picture_digest(picture: torch.Tensor) -> str:
    """SHA-256 of the values, the type and the shape of a picture or of frames."""
    array = picture.detach().cpu().contiguous()
    name = hashlib.sha256(f"{array.dtype} {tuple(array.shape)} ".encode())
    name.update(array.view(-1).numpy().data if array.numel() else b"")
    return name.hexdigest()


class Signatures:
    """Digests of nodes with all that is before them; those outside the copies are kept from step to step.

    `once` gives a text that no other run has, for nodes that say that they always change.
    """

    def __init__(self, graph: Graph, once: Callable[[], str]) -> None:
        self._graph = graph
        self._once = once
        self._outside: dict[str, str] = {}
        self._files: dict[str, list[Any]] = {}
        self.always: set[str] = set()
        """Classes of the nodes that always change."""

    def of(self, copy: Copy) -> str:
        """The digest of the copy's result."""
        return digest(self._link([copy.result[0], copy.result[1]], copy, {}))

    def _link(self, link: list[Any], copy: Copy, inside: dict[str, str]) -> list[Any]:
        node_id, slot = link[0], int(link[1])
        node = copy.nodes.get(node_id) or self._graph.node(node_id)
        if node["class_type"] == STEP:
            return ["content", json.loads(node["inputs"]["digests"])[PICTURES[slot]]]
        done = inside if node_id in copy.nodes else self._outside
        if node_id not in done:
            inputs = [
                [name, self._link(given, copy, inside) if is_link(given) else self._constant(given)]
                for name, given in sorted(node["inputs"].items())
            ]
            original = copy.origin.get(node_id, node_id)
            read = self._graph.fingerprint(original, node)
            if read == ALWAYS:
                self.always.add(node["class_type"])
                read = self._once()
            named = original if self._graph.knows_its_id(node["class_type"]) else None
            done[node_id] = digest([node["class_type"], named, read, inputs])
        return ["node", done[node_id], slot]

    def _constant(self, given: Any) -> list[Any]:
        if isinstance(given, str) and given not in self._files:
            self._files[given] = self._graph.files(given)
        files = self._files[given] if isinstance(given, str) else []
        return ["constant", given, *files]
