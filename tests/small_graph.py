"""A small graph that is no host's: nodes in a dict, a table of made-up classes that really make pictures.

`SmallGraph` tells the loop of its nodes as a host would, `run_loop` runs what a loop asks for, in order, and keeps it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ksgen_core.cache import ResultCache
from ksgen_core.loop import results
from ksgen_core.loop.graph import ALWAYS, END, OUTPUTS, PICTURES, START, STEP, Copy, Node, find_body
from ksgen_core.loop.run import Loop, StepRun, look_up
from ksgen_core.loop.settings import KEY_IMAGES, LoopSettings
from ksgen_core.types import KeyStep, Plan


def colour(*made_from: Any) -> Any:
    """A colour `[3]` that stands for what it is made from."""
    import torch

    return torch.tensor(list(hashlib.sha256(json.dumps(made_from).encode()).digest()[:3])) / 255


def paint(image: Any, text: str = "", seed: int = 0, strength: float = 0.5, model: Any = "", **more: Any) -> Any:
    """Pictures `[F, H, W, 3]` with a tint of everything that was said."""
    return image * (1 - strength) + strength * colour(text, seed, model, sorted(more.items()))


def blend(a: Any, b: Any = None) -> Any:
    return a if b is None else (a[-1:] + b[-1:]) / 2


def repeat(image: Any, amount: int) -> Any:
    """`amount` frames that grow darker."""
    import torch

    return image[-1:] * torch.linspace(1, 0.5, amount)[:, None, None, None]


def choose(switch: bool, on_true: Any, on_false: Any) -> Any:
    return on_true if switch else on_false


def picture(shade: float, side: int = 16) -> Any:
    import torch

    return torch.linspace(0, shade, side * side * 3).reshape(1, side, side, 3)


@dataclass(frozen=True)
class NodeClass:
    """What a node of a class needs, what it says of itself, and what it does.

    `reads` is the input that names a file whose content is the node's fingerprint, `counts` are the whole numbers that
    inputs take: least, greatest, distance. `declares` are the inputs that it says it has, or None if any; `lazy` are
    those that it asks for only when it wants them.
    """

    does: Callable[..., Any] = lambda **inputs: None
    required: frozenset[str] = frozenset()
    output: bool = False
    reads: str = ""
    counts: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    changes: bool = False
    knows_its_id: bool = False
    declares: frozenset[str] | None = None
    lazy: frozenset[str] = frozenset()


def needs(*names: str) -> frozenset[str]:
    return frozenset(names)


CLASSES = {
    START: NodeClass(required=needs("plan"), lazy=needs("plan", "image", "key_images", "clips")),
    END: NodeClass(required=needs("loop", "result"), output=True, lazy=needs("result")),
    STEP: NodeClass(),
    "Plan": NodeClass(),
    "Picture": NodeClass(picture, needs("shade")),
    "Model": NodeClass(lambda name: f"model {name}", needs("name")),
    "Paint": NodeClass(paint, needs("image")),
    "Tint": NodeClass(paint, needs("image")),
    "Blend": NodeClass(blend, needs("a")),
    "Repeat": NodeClass(repeat, needs("image", "amount")),
    "Film": NodeClass(repeat, needs("image", "amount"), counts={"amount": (1, 81, 4)}),
    "LoadPicture": NodeClass(picture, needs("name"), reads="name"),
    "Dice": NodeClass(paint, needs("image"), changes=True),
    "Stamp": NodeClass(paint, needs("image"), knows_its_id=True),
    # As nodes with `**kwargs` are: such an input reaches them by a link alone.
    "Any": NodeClass(paint, needs("image"), declares=needs("image")),
    "Switch": NodeClass(
        choose,
        needs("switch", "on_true", "on_false"),
        lazy=needs("on_true", "on_false"),
    ),
    "Save": NodeClass(required=needs("images"), output=True),
    "Join": NodeClass(required=needs("clips")),
}


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def out(name: str, start: str = "start") -> list[Any]:
    """A link to an output of the start of a loop."""
    return [start, OUTPUTS.index(name)]


@dataclass
class SmallGraph:
    """Nodes by id; `read` are the contents of files that nodes read, `models` the identities of model files, `shown`
    the ids of the nodes that copies were made of."""

    nodes: dict[str, dict[str, Any]]
    read: dict[str, Any] = field(default_factory=dict)
    models: dict[str, Any] = field(default_factory=dict)
    shown: dict[str, str] = field(default_factory=dict)

    def ids(self) -> Iterable[str]:
        return list(self.nodes)

    def node(self, node_id: str) -> Node:
        return self.nodes[node_id]

    def is_output(self, class_type: str) -> bool:
        return CLASSES[class_type].output

    def takes(self, node: Node, name: str) -> bool:
        declares = CLASSES[node["class_type"]].declares
        return declares is None or name in declares

    def required(self, node: Node) -> set[str]:
        return set(CLASSES[node["class_type"]].required)

    def lazy(self, node: Node) -> set[str]:
        return set(CLASSES[node["class_type"]].lazy)

    def steps_of(self, node: Node, name: str) -> tuple[int, int, int] | None:
        return CLASSES[node["class_type"]].counts.get(name)

    def fingerprint(self, node_id: str, node: Node) -> Any:
        if node["class_type"] in (START, END):  # where results lie, which may have changed since
            return f"asked {next(_asked)}"
        kind = CLASSES[node["class_type"]]
        return ALWAYS if kind.changes else self.read.get(node["inputs"].get(kind.reads))

    def files(self, text: str) -> list[Any]:
        return [self.models[text]] if text in self.models else []

    def name_that_counts(self, node_id: str, class_type: str) -> str | None:
        while node_id in self.shown:
            node_id = self.shown[node_id]
        return node_id if CLASSES[class_type].knows_its_id else None

    def with_copy(self, copy: Copy) -> SmallGraph:
        """The graph after a loop's end has added a copy of its body."""
        return SmallGraph({**self.nodes, **copy.nodes}, self.read, self.models, {**self.shown, **copy.origin})

    def changed(self, node_id: str, class_type: str | None = None, **inputs: Any) -> SmallGraph:
        """The same graph with another class or other inputs for one node."""
        old = self.nodes[node_id]
        new = node(class_type or old["class_type"], **{**old["inputs"], **inputs})
        return replace(self, nodes={**self.nodes, node_id: new})


def loop_graph(body: Mapping[str, dict[str, Any]], result: list[Any], **outside: dict[str, Any]) -> SmallGraph:
    """A graph with one loop of that body; nodes outside may be given in addition."""
    return SmallGraph(
        {
            "plan": node("Plan"),
            "start": node(START, plan=["plan", 0]),
            **outside,
            **body,
            "end": node(END, loop=out("loop"), result=result),
            "film": node("Join", clips=["end", 0]),
        }
    )


TEXTS = ["wash", "peel", "cut", "boil", "season", "serve"]
PLAN = Plan("cook potatoes", tuple(map(KeyStep, TEXTS)))
SHORT = LoopSettings(seconds=0.5, fps=8.0, seed=3)
"""Clips of 4 frames."""
ALL = [1, 2, 3, 4, 5, 6]


def graph_of(carry: bool = False, **changes: Any) -> SmallGraph:
    """A body that paints each step's text and seed on the initial picture, or on what the step before left."""
    inputs = {"image": out("previous" if carry else "image"), "text": out("text"), "seed": out("seed"), **changes}
    body = {
        "paint": node("Paint", **inputs),
        "frames": node("Repeat", image=["paint", 0], amount=out("frames")),
    }
    return loop_graph(body, ["frames", 0])


def loop_of(
    plan: Plan = PLAN,
    settings: LoopSettings = SHORT,
    image: Any = 0.5,
    key_images: Any = None,
    clips: Any = None,
    **more,
) -> Loop:
    given = picture(image) if isinstance(image, float) else image
    return Loop.of(plan, replace(settings, **more), given, key_images, clips)


def edited(plan: Plan, number: int, **changed: Any) -> Plan:
    """The plan with something else in step `number` (from 1)."""
    steps = list(plan.steps)
    steps[number - 1] = replace(steps[number - 1], **changed)
    return replace(plan, steps=tuple(steps))


def planned(*texts: str) -> Plan:
    return Plan("cook potatoes", tuple(map(KeyStep, texts)))


def run_node(nodes: Mapping[str, Node], graph: SmallGraph, link: list[Any], step: Callable[[Node], list[Any]]) -> Any:
    """What comes out of a node, everything before it run first. `step` gives the values of a step."""
    made = nodes[link[0]] if link[0] in nodes else graph.node(link[0])
    if made["class_type"] == STEP:
        return step(made)[link[1]]
    linked = {k: v for k, v in made["inputs"].items() if isinstance(v, list)}
    taken = {k: v for k, v in made["inputs"].items() if k not in linked and graph.takes(made, k)}
    inputs = {**taken, **{k: run_node(nodes, graph, v, step) for k, v in linked.items()}}
    if made["class_type"] == "LoadPicture":
        inputs = {"shade": graph.read[inputs["name"]]}
    return CLASSES[made["class_type"]].does(**inputs)


_once, _asked = itertools.count(), itertools.count()


def look(graph: SmallGraph, loop: Loop, cache: ResultCache) -> list[StepRun]:
    """Every step of the only loop of a graph."""
    return look_up(graph, find_body(graph, "start", "end"), loop, cache, lambda: f"run {next(_once)}")[0]


def run_loop(graph: SmallGraph, loop: Loop, cache: ResultCache, stop_after: int = 99) -> tuple[list[int], list[Any]]:
    """Run the steps whose result is missing, at most `stop_after`.

    Gives the numbers (from 1) of the steps that ran, and the frames of every step, or None where there are none.
    """

    def step_values(inputs: Mapping[str, Any]) -> list[Any]:
        known, number, carried = json.loads(inputs["known"]), inputs["number"], inputs["carried"]
        given = {name: loop.picture(name, number) if name in PICTURES else said for name, (_, said) in known.items()}
        if carried and known.keys() & {"previous", "previous_frames"}:
            kept = cache.find(carried)
            assert kept is not None, "the step before must have been kept"
            frames = results.frames_of(kept)
            given |= {"previous": frames[-1:], "previous_frames": frames}
        return [given[name] if name in known else None for name in OUTPUTS]

    runs, ran = look(graph, loop, cache), []
    for run in runs:
        if run.there or not run.wanted or len(ran) == stop_after:
            continue
        step = loop.plan.steps[run.number]
        if cache.find(run.key):  # an equal step was made just now
            cache.remember(run.address, run.key, step.lock)
            continue
        made = run_node(run.copy.nodes, graph, list(run.copy.result), lambda found: step_values(found["inputs"]))

        def write(folder: Any, made: Any = made) -> dict[str, Any]:
            if loop.settings.makes == KEY_IMAGES:
                return results.write_picture(folder, made[0])
            return results.write_frames(folder, made, loop.settings.fps)

        cache.keep(run.key, write, {"step": run.number + 1, "text": step.text})
        cache.remember(run.address, run.key, step.lock)
        ran.append(run.number + 1)
    found = [cache.find(run.key) if run.key else None for run in runs]
    return ran, [run.given if one is None else results.frames_of(one) for run, one in zip(runs, found, strict=True)]


def ran(
    cache: ResultCache, plan: Plan = PLAN, carry: bool = False, graph: SmallGraph | None = None, **more
) -> list[int]:
    """The steps (from 1) that ran."""
    return run_loop(graph or graph_of(carry), loop_of(plan, **more), cache)[0]
