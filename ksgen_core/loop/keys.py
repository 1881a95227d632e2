"""The name of a result: a digest of all in the graph that made it.

As the host's own cache does, a node counts with its class, its constants, what it says of the files it reads, and all
nodes before it; node ids do not count. Beside that count the identity of the model files that constants name, and a
step's pictures by their content. The code of the nodes does not: a new version of a pack changes no name.
"""

from __future__ import annotations

import hashlib
import json
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import KSGenError
from .graph import ALWAYS, END, OUTPUTS, START, STEP, Copy, Graph, Link, Node, is_link, links

if TYPE_CHECKING:
    import torch

    from ..types import Clip

FORMAT = "ksgen.loop/1"
"""Part of every name: results of another format are not found."""


def digest(data: Any) -> str:
    """SHA-256, 64 hex digits, of what JSON can say."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def picture_digest(picture: torch.Tensor) -> str:
    """SHA-256 of the values, the type and the shape of a picture or of frames."""
    import torch

    array = picture.detach().cpu().contiguous()
    name = hashlib.sha256(f"{array.dtype} {tuple(array.shape)} ".encode())
    # NumPy does not know every type, but bytes.
    name.update(array.view(-1).view(torch.uint8).numpy().data if array.numel() else b"")
    return name.hexdigest()


def clip_digest(clip: Clip) -> str:
    """SHA-256 of a clip's file, or, of one in memory, of its frames and its rate.

    Raises `KSGenError` if the file is not what was once made, or cannot be read.
    """
    clip.check()
    if clip.path is None:
        return digest([picture_digest(clip.frames), clip.fps])
    name = hashlib.sha256()
    try:
        with clip.path.open("rb") as file:
            while part := file.read(2**20):
                name.update(part)
    except OSError as error:
        raise KSGenError(f"The clip {clip.path} cannot be read ({error}). Make it again.") from error
    return name.hexdigest()


def constant(given: Any) -> list[Any]:
    """How a value stands in a name, whether a node has it from a constant or by a link."""
    return ["constant", given]


def content(digits: str) -> list[Any]:
    """How a picture of that digest stands in a name."""
    return ["content", digits]


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
        """The digest of the copy's result. Raises `KSGenError` if nodes before it wait for each other."""
        inside: dict[str, str] = {}
        known = ChainMap(inside, self._outside)
        waiting, begun = [copy.result[0]], set()
        # No recursion: a graph may be deeper than Python's stack.
        while waiting:
            node_id = waiting[-1]
            node = self._node(node_id, copy)
            sources = () if node_id in known or node["class_type"] == STEP else [one for _, one, _ in links(node)]
            if missing := [one for one in sources if one not in known and self._node(one, copy)["class_type"] != STEP]:
                begun.add(node_id)
                if not begun.isdisjoint(missing):
                    raise KSGenError(
                        f"The node {node['class_type']} inside the loop waits for itself: its links run in a circle. "
                        "Cut one of them."
                    )
                waiting += missing
                continue
            waiting.pop()
            if node_id not in known and node["class_type"] != STEP:
                (inside if node_id in copy.nodes else self._outside)[node_id] = self._digest(node_id, node, copy, known)
        return digest(self._link(copy.result, copy, known))

    def _node(self, node_id: str, copy: Copy) -> Node:
        return copy.nodes.get(node_id) or self._graph.node(node_id)

    def _digest(self, node_id: str, node: Node, copy: Copy, known: Mapping[str, str]) -> str:
        """The digest of a node whose sources are known."""
        inputs = [
            [name, self._link((given[0], int(given[1])), copy, known) if is_link(given) else self._constant(given)]
            for name, given in sorted(node["inputs"].items())
        ]
        original = copy.origin.get(node_id, node_id)
        # What loops say of themselves is about where results lie, not about what they are.
        read = None if node["class_type"] in (START, END) else self._graph.fingerprint(original, node)
        if read == ALWAYS:
            self.always.add(node["class_type"])
            read = self._once()
        named = self._graph.name_that_counts(original, node["class_type"])
        try:
            return digest([node["class_type"], named, read, inputs])
        except TypeError:  # an object: other packs' loops put such into the nodes that they add to a graph
            self.always.add(node["class_type"])
            return digest(self._once())

    def _link(self, link: Link, copy: Copy, known: Mapping[str, str]) -> list[Any]:
        node_id, slot = link
        node = self._node(node_id, copy)
        if node["class_type"] == STEP:
            said = json.loads(node["inputs"]["known"])[OUTPUTS[slot]]
            # A text may name a file, whichever way it comes to the node.
            return self._constant(said[1]) if said == constant(said[1]) else said
        return ["node", known[node_id], slot]

    def _constant(self, given: Any) -> list[Any]:
        found = {text: files for text in _texts(given) if (files := self._named(text))}
        return [*constant(given), *([found] if found else [])]

    def _named(self, text: str) -> list[Any]:
        if text not in self._files:
            self._files[text] = self._graph.files(text)
        return self._files[text]


def _texts(given: Any) -> Iterator[str]:
    """The texts in a constant; some LoRA loaders, say, take an object for each of their rows."""
    if isinstance(given, str):
        yield given
    elif isinstance(given, dict | list):
        for one in given.values() if isinstance(given, dict) else given:
            yield from _texts(one)
