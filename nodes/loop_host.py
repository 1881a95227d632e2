"""What the step loop needs of the host: its graph and node classes, the folder of results, and its memory."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import folder_paths
from comfy_api.latest import _io

from ..ksgen_core.errors import KSGenError
from ..ksgen_core.loop.graph import ALWAYS, START, Body, Node, find_body, find_loops, links

if TYPE_CHECKING:
    from comfy_execution.graph import DynamicPrompt

    from ..ksgen_core.cache import ResultCache

HASHED_BYTES = 64 * 2**20
"""Up to this size an input file counts by its content, beyond by its size and time."""

FOLDERS = {"LLM", "diffusers", "ksgen", "sentence_transformers"}
"""Kinds of model folders in which a model is a folder. In others a folder only sorts files."""
UNFIT = {"VHS_BatchManager": "it queues the whole workflow again, part by part, and so would never end"}
"""Nodes of other packs that cannot run step by step, and why."""


class HostGraph:
    """A running prompt, what was added to it on the way included."""

    def __init__(self, dynprompt: DynamicPrompt) -> None:
        self._dynprompt = dynprompt
        # By the node itself, which stays as it is while a loop is looked at: a copy for each of many steps asks anew.
        self._declared: dict[int, tuple[Node, dict[str, dict[str, Any]]]] = {}

    def declared(self, node: Node) -> dict[str, dict[str, Any]]:
        """The inputs that a node has, required and optional, with those that its values bring forth."""
        if id(node) not in self._declared:
            self._declared[id(node)] = node, _declared(node)
        return self._declared[id(node)][1]

    def _inputs(self, node: Node) -> dict[str, Any]:
        declared = self.declared(node)
        return {**declared.get("required", {}), **declared.get("optional", {})}

    def ids(self) -> Iterable[str]:
        return sorted(self._dynprompt.all_node_ids())

    def node(self, node_id: str) -> Node:
        return self._dynprompt.get_node(node_id)

    def is_output(self, class_type: str) -> bool:
        return is_output(class_type)

    def takes(self, node: Node, name: str) -> bool:
        return name in self._inputs(node) or bool(getattr(node_class(node), "ACCEPT_ALL_INPUTS", False))

    def required(self, node: Node) -> set[str]:
        return set(self.declared(node).get("required", {}))

    def lazy(self, node: Node) -> set[str]:
        return {name for name, (_, *options) in self._inputs(node).items() if options and options[0].get("lazy")}

    def steps_of(self, node: Node, name: str) -> tuple[int, int, int] | None:
        kind, *options = self._inputs(node).get(name, ("",))
        if kind != "INT" or not options or not {"min", "max", "step"} <= options[0].keys():
            return None
        return options[0]["min"], options[0]["max"], options[0]["step"]

    def fingerprint(self, node_id: str, node: Node) -> Any:
        """As the host's cache asks for it: of the constants alone. A node that fails at that always changes, and so
        does one that answers with the time or a random number, which asking twice shows."""
        first = _ask(node_id, node)
        if first is False:
            return None
        return first if _is_plain(first) and first == _ask(node_id, node) else ALWAYS

    def files(self, text: str) -> list[Any]:
        if not text or len(text) > 255 or "\n" in text or text.strip(". /\\") == "":
            return []
        return [*_model_files(text), *_input_file(text)]

    def name_that_counts(self, node_id: str, class_type: str) -> str | None:
        from comfy_execution.caching import include_unique_id_in_input

        once = getattr(node_classes()[class_type], "NOT_IDEMPOTENT", False)
        return self._dynprompt.get_display_node_id(node_id) if once or include_unique_id_in_input(class_type) else None


class _OneNode:
    """As much of a prompt as a node's fingerprint needs."""

    def __init__(self, node_id: str, node: Node) -> None:
        self._node_id, self._node = node_id, node

    def get_node(self, node_id: str) -> Node:
        return self._node


def _ask(node_id: str, node: Node) -> Any:
    """What the host's cache finds a node to say of what it reads; False if it says nothing."""
    from execution import IsChangedCache

    alone = {"class_type": node["class_type"], "inputs": node["inputs"]}
    asked = IsChangedCache("", _OneNode(node_id, alone), None).get(node_id)  # pyright: ignore[reportArgumentType]
    try:
        asked.send(None)
    except StopIteration as done:
        return done.value
    asked.close()
    return ALWAYS  # it waits for something else than its own constants


def node_classes() -> dict[str, Any]:
    """Every node class of the host, by its id."""
    import nodes

    return nodes.NODE_CLASS_MAPPINGS  # pyright: ignore[reportAttributeAccessIssue]  the host's module, not ours


def node_class(node: Node) -> Any:
    return node_classes()[node["class_type"]]


def _declared(node: Node) -> dict[str, Any]:
    """What the host finds a node to declare."""
    from comfy_api.internal import _ComfyNodeInternal

    cls = node_class(node)
    declared = cls.INPUT_TYPES()
    if issubclass(cls, _ComfyNodeInternal):
        declared, _, _ = _io.get_finalized_class_inputs(declared, node["inputs"])
    return declared


def is_output(class_type: str) -> bool:
    """Does the host run nodes of this class by themselves?"""
    return bool(getattr(node_classes().get(class_type), "OUTPUT_NODE", False))


def _is_plain(value: Any) -> bool:
    """Can JSON say it, and does it equal itself?"""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int) or (isinstance(value, float) and not math.isnan(value))


def _model_files(name: str) -> list[Any]:
    """The files of that name in the host's model folders, and model folders of that name: which kind, size, time of
    change."""
    found = []
    for kind in sorted(folder_paths.folder_names_and_paths):
        if kind == "custom_nodes":
            continue
        for root in folder_paths.get_folder_paths(kind):
            path = os.path.join(root, name)
            if os.path.isfile(path):
                found.append([kind, *_stamp(path)])
            elif kind in FOLDERS and os.path.isdir(path) and not os.path.isabs(name):
                inner = sorted(str(one) for one in Path(path).rglob("*") if os.path.isfile(one))
                found.append([kind, [[os.path.relpath(one, path), *_stamp(one)] for one in inner]])
    return found


def _input_file(name: str) -> list[Any]:
    """The content of the input file of that name, or, of a large one, its size and time of change."""
    path = name
    if not os.path.isabs(name):
        if not folder_paths.exists_annotated_filepath(name):
            return []
        path = folder_paths.get_annotated_filepath(name)
    if not os.path.isfile(path) or not os.access(path, os.R_OK):
        return []
    if os.path.getsize(path) > HASHED_BYTES:
        return [["file", *_stamp(path)]]
    return [["file", hashlib.sha256(Path(path).read_bytes()).hexdigest()]]


def _stamp(path: str) -> list[int]:
    state = os.stat(path)
    return [state.st_size, state.st_mtime_ns]


def refuse_unfit(graph: HostGraph, body: Body) -> None:
    """Raise `KSGenError` if a node of the body, or one that it takes something from, cannot run step by step."""
    near = {source for one in body.nodes for _, source, _ in links(graph.node(one))} | set(body.nodes)
    for one in sorted(near):
        if (why := UNFIT.get(graph.node(one)["class_type"])) is not None:
            raise KSGenError(f"{graph.node(one)['class_type']} cannot be used in a loop: {why}. Take it out.")


def result_cache() -> ResultCache:
    """The folder of results: KSGEN_CACHE, else `ksgen/results` in the host's user folder."""
    from ..ksgen_core.cache import ResultCache, default_limit, named_root

    own = Path(folder_paths.get_user_directory()) / "ksgen" / "results"
    return ResultCache(named_root() or own, default_limit())


def forget(dynprompt: DynamicPrompt, node_ids: Iterable[str]) -> None:
    """Let the host's cache drop the outputs of nodes that have done their work, and of those that they added to the
    graph, so that memory stays flat.

    The host keeps every output until the prompt ends; of a loop that would be all frames of all steps. Its default
    cache is reached through the hook that it offers for freeing memory. Where there is none (`--cache-classic`,
    `--cache-lru`, older hosts) nothing is dropped: who starts the host so wants everything kept.
    """
    import comfy.memory_management

    cache = getattr(getattr(comfy.memory_management, "extra_ram_release_callback", None), "__self__", None)
    keys = getattr(cache, "cache_key_set", None)
    if keys is None:
        return
    done = set(node_ids)
    for node_id, parent in dynprompt.ephemeral_parents.items():  # parents come before their children
        if parent in done:
            done.add(node_id)
    for node_id in done:
        if (key := keys.get_data_key(node_id)) is not None:
            for held in ("cache", "used_generation", "timestamps", "children"):
                getattr(cache, held, {}).pop(key, None)


def watch_queue() -> None:
    """Have every prompt looked at before it is queued."""
    from server import PromptServer

    if (server := getattr(PromptServer, "instance", None)) is not None:
        server.add_on_prompt_handler(leave_sides_to_the_loop)


def leave_sides_to_the_loop(request: dict[str, Any]) -> dict[str, Any]:
    """Take the previews and saves inside loops out of what the host runs by itself.

    They run once per step, in the copies. By itself the host would run what they hang on once more, model loaders
    included, only to find that the start of the loop gives nothing outside its steps.
    """
    prompt = request.get("prompt") or {}
    if START not in {node.get("class_type") for node in prompt.values()}:
        return request
    graph = _Queued(prompt)
    every = [one for one in graph.ids() if is_output(graph.node(one)["class_type"])]
    outputs = request.get("partial_execution_targets") or every
    try:
        loops = find_loops(graph).items()
        ends = {side: end for start, end in loops for side in find_body(graph, start, end).sides}
    except KSGenError:
        return request  # the start of the loop says it, where the user sees it
    left = []
    for one in outputs:
        while one in ends:  # a loop inside a loop is itself a side of the outer one
            one = ends[one]
        left.append(one)
    return {**request, "partial_execution_targets": list(dict.fromkeys(left))} if left != outputs else request


class _Queued(HostGraph):
    """A prompt that is about to be queued."""

    def __init__(self, prompt: dict[str, Any]) -> None:
        self._prompt = {node_id: {"inputs": {}, **node} for node_id, node in prompt.items()}

    def ids(self) -> Iterable[str]:
        return list(self._prompt)

    def node(self, node_id: str) -> Node:
        return self._prompt.get(node_id) or {"class_type": "", "inputs": {}}
