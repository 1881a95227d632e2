"""The body of a loop in a graph of the host: found, copied for one step, and named by everything that makes its result.

A graph is in the host's API format: nodes by id, each {"class_type": ..., "inputs": {name: constant or [id, slot]}}.
Nothing here knows the host: what it knows of its node classes comes through `Graph`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeGuard

from ..errors import KSGenError
from .settings import ANY_COUNT, FrameRule

Node = Mapping[str, Any]
Link = tuple[str, int]

START, END = "KSGenStepLoopStart", "KSGenStepLoopEnd"
STEP, KEEP, NEXT = "KSGenLoopStep", "KSGenLoopKeep", "KSGenLoopNext"
"""The nodes that the end of a loop adds to the copies: a step's pictures, what keeps its result, what goes on."""
LOOP, RESULT = "loop", "result"
OUTPUTS = (
    LOOP,
    "text",
    "before",
    "after",
    "previous_text",
    "key_image",
    "next_key_image",
    "image",
    "previous",
    "previous_frames",
    "seed",
    "seconds",
    "frames",
    "fps",
    "number",
    "count",
    "is_first",
    "is_last",
    "clip_frames",
)
"""What the start of a loop gives, in the order of its sockets; so does the node that stands for it in a copy."""
PICTURES = ("key_image", "next_key_image", "image", "previous", "previous_frames", "clip_frames")
SAME_FOR_ALL = {LOOP, "image", "fps", "count"}
"""Outputs that do not tell one step from another."""
ALWAYS = "always changes"
"""The fingerprint of a node that says of itself that its result is never the same."""


class Graph(Protocol):
    """A graph, and what the host knows of the classes of its nodes."""

    def ids(self) -> Iterable[str]: ...

    def node(self, node_id: str) -> Node: ...

    def is_output(self, class_type: str) -> bool:
        """Does the host run such a node though nothing hangs on it (a preview, a save)?"""
        ...

    def takes(self, node: Node, name: str) -> bool:
        """Does the node declare such an input? The host gives it no constant by another name, only what is linked."""
        ...

    def required(self, node: Node) -> set[str]:
        """The inputs that the node cannot do without."""
        ...

    def lazy(self, node: Node) -> set[str]:
        """The inputs that the node asks for only when it wants them."""
        ...

    def steps_of(self, node: Node, name: str) -> tuple[int, int, int] | None:
        """Which whole numbers an input takes: the least, the greatest, and the distance between two; None if any."""
        ...

    def fingerprint(self, node_id: str, node: Node) -> Any:
        """What the node says of what it reads beside its inputs, as JSON; None if nothing, or `ALWAYS`."""
        ...

    def files(self, text: str) -> list[Any]:
        """The identity, as JSON, of the model files and input files that a constant names; empty for other texts."""
        ...

    def name_that_counts(self, node_id: str, class_type: str) -> str | None:
        """The id of the node in the user's workflow if the node's result depends on it."""
        ...


@dataclass(frozen=True)
class Body:
    """The nodes between the start and the end of a loop, which run once for every step.

    `result` is where the end takes a step's result from, `sides` are the previews and saves that hang on the body.
    """

    start: str
    end: str
    nodes: tuple[str, ...]
    result: Link
    sides: tuple[str, ...]


@dataclass
class Copy:
    """A copy of a body for one step: nodes by their new ids, the result, the old ids by the new ones, and the outputs
    of the start that are taken from the node that stands for it."""

    nodes: dict[str, dict[str, Any]]
    result: Link
    origin: dict[str, str] = field(default_factory=dict)
    through: set[str] = field(default_factory=set)


def is_link(value: Any) -> TypeGuard[list[Any]]:
    """Is the value of an input a link, as the host sees it?"""
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int | float)
        and not isinstance(value[1], bool)
    )


def links(node: Node) -> Iterator[tuple[str, str, int]]:
    """The linked inputs of a node: name, id of the node behind, slot."""
    for name, value in node["inputs"].items():
        if is_link(value):
            yield name, value[0], int(value[1])


def find_loops(graph: Graph) -> dict[str, str]:
    """The end of every loop, by the id of its start."""
    found: dict[str, str] = {}
    for node_id in graph.ids():
        node = graph.node(node_id)
        loop = node["inputs"].get(LOOP) if node["class_type"] == END else None
        if is_link(loop):
            if loop[0] in found:
                raise KSGenError("Two 'Step Loop End' hang on one 'Step Loop Start'. Give each its own start.")
            found[loop[0]] = node_id
    return found


def find_body(graph: Graph, start: str, end: str) -> Body:
    """The body of the loop from `start` to `end`.

    Raises `KSGenError` if nothing is connected as the result, if the result uses nothing of a step, so that all would
    be the same, or if a loop inside is not whole.
    """
    result = graph.node(end)["inputs"].get(RESULT)
    if not is_link(result):
        raise KSGenError("'Step Loop End' has no result. Connect what your nodes make of a step.")
    users: dict[str, list[str]] = {}
    for node_id in graph.ids():
        for _, source, _ in links(graph.node(node_id)):
            users.setdefault(source, []).append(node_id)
    after = _reach(end, users) | {end}
    inside = _reach(start, users) - after
    sides = tuple(one for one in graph.ids() if one in inside and graph.is_output(graph.node(one)["class_type"]))
    wanted: set[str] = set()
    waiting = [result[0], *sides]
    while waiting:
        node_id = waiting.pop()
        if node_id in inside and node_id not in wanted:
            wanted.add(node_id)
            waiting += [source for _, source, _ in links(graph.node(node_id))]
    body = Body(start, end, tuple(one for one in graph.ids() if one in wanted), (result[0], int(result[1])), sides)
    if used_outputs(graph, body, sides=False) <= SAME_FOR_ALL:
        raise KSGenError(
            "The loop's result uses nothing of a step, so that every step would be the same. Connect outputs of "
            "'Step Loop Start' to your nodes, e.g. text and key image."
        )
    for one in body.nodes:
        node = graph.node(one)
        if node["class_type"] == START and not any(
            other in wanted and graph.node(other)["inputs"].get(LOOP) == [one, 0] for other in body.nodes
        ):
            raise KSGenError("A 'Step Loop Start' inside the loop has no 'Step Loop End' inside it. Connect its loop.")
        if node["class_type"] == END and node["inputs"].get(LOOP, [None])[0] not in wanted:
            raise KSGenError("A 'Step Loop End' inside the loop belongs to a start outside it. Loops must be nested.")
    return body


def _reach(start: str, users: Mapping[str, list[str]]) -> set[str]:
    """Everything that depends on a node."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        for user in users.get(waiting.pop(), ()):
            if user not in found:
                found.add(user)
                waiting.append(user)
    return found


def used_outputs(graph: Graph, body: Body, sides: bool = True) -> set[str]:
    """The outputs of the start that the body uses, for its result alone or for previews and saves as well."""
    seen: set[Link] = set()
    waiting = [body.result, *((one, 0) for one in (body.sides if sides else ()))]
    while waiting:
        link = waiting.pop()
        if link not in seen:
            seen.add(link)
            if link[0] in body.nodes:
                waiting += [(source, slot) for _, source, slot in links(graph.node(link[0]))]
    return {OUTPUTS[slot] for node_id, slot in seen if node_id == body.start}


class Absent(KSGenError):
    """A step lacks a picture that the loop's result needs."""


def copy_body(
    graph: Graph, body: Body, prefix: str, stand_in: str, constants: Mapping[str, Any], pictures: Set[str], step: int
) -> Copy:
    """The body for one step (number from 0), its ids behind `prefix`.

    In place of the links to its start stand constants, by the name of the output, or links to the node `stand_in`.
    What is neither a constant nor one of the `pictures` this step has not: an optional input stays empty, a node that
    needs it is left out, and so on behind it; an input that is asked for only when wanted gets nothing then. Raises
    `Absent` if that comes to the result itself.
    """
    inside = set(body.nodes)
    copy = Copy({}, body.result, {prefix + one: one for one in body.nodes})

    def value(link: Any, takes: bool) -> Any:
        if link[0] != body.start:
            return [prefix + link[0], link[1]] if link[0] in inside else link
        name = OUTPUTS[int(link[1])]
        if name in constants and takes:
            return constants[name]
        if name not in constants and name not in pictures:
            return _NOTHING
        return [stand_in, int(link[1])]

    for one in body.nodes:
        node = graph.node(one)
        inputs = {
            name: value(given, graph.takes(node, name)) if is_link(given) else given
            for name, given in node["inputs"].items()
        }
        copy.nodes[prefix + one] = {"class_type": node["class_type"], "inputs": inputs}
    left_out: set[str] = set()
    while missing := _missing(copy, left_out):
        for one, names in missing.items():
            original = graph.node(copy.origin[one])
            asked = set() if original["class_type"] == END else graph.lazy(original) & names
            if graph.required(original) & names - asked:
                del copy.nodes[one], copy.origin[one]
                left_out.add(one)
                continue
            for name in names - asked:
                del copy.nodes[one]["inputs"][name]
            for name in asked:
                copy.nodes[one]["inputs"][name] = [stand_in, OUTPUTS.index(LOOP)]
    result = value(list(body.result), takes=False)
    if result is _NOTHING or result[0] in left_out:
        raise Absent(_absent_words(graph, body, constants, pictures, step))
    copy.result = (result[0], int(result[1]))
    linked = [copy.result, *((source, slot) for node in copy.nodes.values() for _, source, slot in links(node))]
    copy.through = {OUTPUTS[slot] for source, slot in linked if source == stand_in}
    return copy


_NOTHING = object()


def _missing(copy: Copy, left_out: Set[str]) -> dict[str, set[str]]:
    """The inputs, by node, that nothing fills in the copy."""
    found: dict[str, set[str]] = {}
    for one, node in copy.nodes.items():
        for name, given in node["inputs"].items():
            if given is _NOTHING or (is_link(given) and given[0] in left_out):
                found.setdefault(one, set()).add(name)
    return found


def _absent_words(graph: Graph, body: Body, constants: Mapping[str, Any], pictures: Set[str], step: int) -> str:
    known = constants.keys() | pictures
    lacking = sorted(one for one in used_outputs(graph, body, sides=False) if one not in known)
    words = f"Step {step + 1} has no {' and no '.join(lacking).replace('_', ' ')}, which the loop's result needs. "
    if lacking == ["next_key_image"]:
        return words + (
            "The last step never has one: connect it to an input that may stay empty, switch by 'is last', or leave "
            "the step out with 'steps' of 'Step Loop Start'."
        )
    return words + "Connect it to 'Step Loop Start', or let your nodes do without."


def frame_rule(graph: Graph, body: Body) -> FrameRule:
    """The frame counts that the nodes take which the start's frame count goes to directly: of the most exacting one."""
    rules = [FrameRule(least, distance) for _, _, (least, _, distance) in _frame_inputs(graph, body)]
    return max(rules, key=lambda rule: rule.distance, default=ANY_COUNT)


def check_frames(graph: Graph, body: Body, frames: Mapping[int, int]) -> None:
    """Raise `KSGenError` if a node of the body cannot make the frame count of a step (number from 0)."""
    for class_type, name, (least, most, distance) in _frame_inputs(graph, body):
        for step, count in frames.items():
            if not least <= count <= most or (count - least) % distance:
                raise KSGenError(
                    f"{class_type} takes {least}, {least + distance}, {least + 2 * distance} and so on, at most "
                    f"{most}, as its {name}, but step {step + 1} would have {count} frames. Set frame step of 'Step "
                    "Loop Start' to 0, which goes by what the nodes take, or change the seconds or the fps."
                )


def _frame_inputs(graph: Graph, body: Body) -> Iterator[tuple[str, str, tuple[int, int, int]]]:
    """Where the start's frame count goes to: class of the node, name of the input, which numbers it takes."""
    for one in body.nodes:
        node = graph.node(one)
        for name, source, slot in links(node):
            if source == body.start and OUTPUTS[slot] == "frames" and (taken := graph.steps_of(node, name)):
                yield node["class_type"], name, taken
