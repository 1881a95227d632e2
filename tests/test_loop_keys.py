"""The names of results: the same for what makes the same, another one for whatever makes a difference."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from small_graph import SmallGraph, loop_graph, node, out

from ksgen_core.errors import KSGenError
from ksgen_core.loop.graph import END, LOOP, OUTPUTS, PICTURES, START, STEP, Copy, copy_body, find_body, is_link
from ksgen_core.loop.keys import Signatures, constant, content, digest, picture_digest

VALUES: dict[str, Any] = {name: f"<{name}>" for name in OUTPUTS if name not in {LOOP, *PICTURES}}
VALUES |= {"seed": 7, "frames": 17, "number": 2, "is_first": False}
CONTENTS = {name: f"content of {name}" for name in PICTURES}


def signatures(graph: SmallGraph) -> Signatures:
    return Signatures(graph, lambda: "once")


def key(graph: SmallGraph, contents: Mapping[str, str] | None = None, by: Signatures | None = None, **changed) -> str:
    """The key of the step whose pictures have these contents and whose constants differ so from `VALUES`."""
    return (by or signatures(graph)).of(step_copy(graph, "e.2.", CONTENTS if contents is None else contents, **changed))


def step_copy(
    graph: SmallGraph, prefix: str, contents: Mapping[str, str] = CONTENTS, of: tuple[str, str] = ("start", "end"),
    **changed: Any,
) -> Copy:  # fmt: skip
    """The copy of a loop's body for a step, with the node that stands for the start."""
    stand_in, values = f"{prefix}step", VALUES | changed
    copy = copy_body(graph, find_body(graph, *of), prefix, stand_in, values, contents.keys(), 1)
    known = {name: content(contents[name]) if name in contents else constant(values.get(name)) for name in copy.through}
    copy.nodes[stand_in] = node(STEP, loop=[of[0], 0], number=1, carried="", known=json.dumps(known))
    return copy


def small() -> SmallGraph:
    """A body with a loader and a model outside of it, a picture of the step, a preview, and a branch nobody uses."""
    graph = loop_graph(
        {
            "paint": node("Paint", image=out("key_image"), text=out("text"), model=["model", 0], strength=0.5),
            "frames": node("Repeat", image=["blend", 0], amount=out("frames")),
            "blend": node("Blend", a=["paint", 0], b=["tinted", 0]),
            "tinted": node("Tint", image=["loaded", 0], text="warm"),
            "show": node("Save", images=["shown", 0]),
            "shown": node("Tint", image=["paint", 0], text=out("after")),
        },
        ["frames", 0],
        model=node("Model", name="a.safetensors"),
        loaded=node("LoadPicture", name="a.png"),
    )
    graph.read, graph.models = {"a.png": "1234"}, {"a.safetensors": [100, 1]}
    return graph


CHANGES = {
    "class": lambda g: g.changed("paint", "Tint"),
    "class of an ancestor outside": lambda g: g.changed("loaded", "Picture"),
    "constant": lambda g: g.changed("paint", strength=0.6),
    "constant of an ancestor outside": lambda g: g.changed("model", name="b.safetensors"),
    "constant of an ancestor inside": lambda g: g.changed("tinted", text="cold"),
    "one constant more": lambda g: g.changed("paint", seed=0),
    "slot of a link": lambda g: g.changed("blend", a=["paint", 1]),
    "slot of a link to outside": lambda g: g.changed("paint", model=["model", 1]),
    "slot of a picture of the step": lambda g: g.changed("paint", image=out("next_key_image")),
    "another output of the start": lambda g: g.changed("paint", text=out("before")),
    "links exchanged": lambda g: g.changed("blend", a=["tinted", 0], b=["paint", 0]),
    "input of another name": lambda g: SmallGraph(
        {**g.nodes, "blend": node("Blend", a=["paint", 0], c=["tinted", 0])}, g.read, g.models
    ),
    "result from another slot": lambda g: g.changed("end", result=["frames", 1]),
    "file read": lambda g: SmallGraph(g.nodes, {"a.png": "5678"}, g.models),
    "file read no more": lambda g: SmallGraph(g.nodes, {}, g.models),
    "model file": lambda g: SmallGraph(g.nodes, g.read, {"a.safetensors": [100, 2]}),
    "model file gone": lambda g: SmallGraph(g.nodes, g.read, {}),
}


def test_the_key_is_a_digest_and_stays():
    assert key(small()) == key(small()) and len(bytes.fromhex(key(small()))) == 32


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_that_makes_another_result_gives_another_key(name):
    assert key(CHANGES[name](small())) != key(small())


def test_all_changes_give_different_keys():
    assert len({key(change(small())) for change in CHANGES.values()} | {key(small())}) == len(CHANGES) + 1


UNCHANGED = {
    "side preview": lambda g: g.changed("shown", text="other"),
    "side preview's class": lambda g: g.changed("shown", "Paint"),
    "no side preview": lambda g: SmallGraph(
        {name: one for name, one in g.nodes.items() if name not in ("show", "shown")}, g.read, g.models
    ),
    "what is behind the loop": lambda g: g.changed("film", clips=["end", 0], fade=0.5),
    "another file": lambda g: SmallGraph(g.nodes, {**g.read, "b.png": "9"}, {**g.models, "b.safetensors": [1, 1]}),
    "settings of the start": lambda g: g.changed("start", seconds=3.0),
}


@pytest.mark.parametrize("name", UNCHANGED)
def test_a_change_elsewhere_keeps_the_key(name):
    assert UNCHANGED[name](small()).nodes != small().nodes or name == "another file"
    assert key(UNCHANGED[name](small())) == key(small())


def test_values_of_the_step_count_if_they_are_used():
    assert key(small(), text="other") != key(small(), frames=21) != key(small())
    assert key(small(), after="other", seed=8, number=3, count=9) == key(small())


def test_pictures_of_the_step_count_by_their_content_if_they_are_used():
    assert key(small(), {**CONTENTS, "key_image": "another"}) != key(small())
    assert key(small(), {**CONTENTS, "previous": "another", "image": "another"}) == key(small())


# --- ids ------------------------------------------------------------------------------------------------------------


def renamed(graph: SmallGraph, names: Mapping[str, str]) -> SmallGraph:
    def value(given: Any) -> Any:
        return [names.get(given[0], given[0]), given[1]] if is_link(given) else given

    nodes = {
        names.get(name, name): node(one["class_type"], **{k: value(v) for k, v in one["inputs"].items()})
        for name, one in reversed(graph.nodes.items())
    }
    return SmallGraph(nodes, graph.read, graph.models)


def test_ids_and_the_order_of_nodes_and_inputs_do_not_count():
    graph = small()
    names = {name: f"{number}:9" for number, name in enumerate(graph.nodes) if name not in ("start", "end")}
    assert key(renamed(graph, names)) == key(graph)
    turned = {n: node(one["class_type"], **dict(reversed(one["inputs"].items()))) for n, one in graph.nodes.items()}
    assert key(SmallGraph(turned, graph.read, graph.models)) == key(graph)


def test_a_body_added_to_the_graph_at_other_ids_has_the_same_key():
    """A loop inside a loop: its body is a copy, which the outer loop's end added."""
    graph = small()
    copy = step_copy(graph, "outer.7.")
    assert signatures(graph).of(copy) == key(graph)
    lying = graph.with_copy(copy)
    assert signatures(lying).of(step_copy(lying, "other.")) == key(graph)


@pytest.mark.parametrize("class_type, counts", [("Stamp", True), ("Paint", False)])
def test_the_id_of_a_node_that_knows_it_counts_and_is_that_of_the_users_node(class_type, counts):
    def stamped(name: str, prefix: str = "e.2.") -> str:
        graph = loop_graph({name: node(class_type, image=out("key_image"), text=out("text"))}, [name, 0])
        return signatures(graph).of(step_copy(graph, prefix))

    assert stamped("7") == stamped("7", "e.3."), "a step's place in the loop is no part of it"
    assert (stamped("7") != stamped("8")) == counts


def test_a_node_outside_that_knows_its_id_counts_with_it():
    def stamped(name: str) -> str:
        body = {"x": node("Paint", image=[name, 0], text=out("text"))}
        return key(loop_graph(body, ["x", 0], **{name: node("Stamp", image=["plan", 0])}))

    assert stamped("7") == stamped("7") != stamped("8")


def nested(inner: str = "Stamp", name: str = "7", **more: Any) -> SmallGraph:
    """A loop inside the body of another one, with a node that knows its id in both."""
    body = {
        "inner": node(START, plan=["plan", 0], image=out("key_image"), **more),
        name: node(inner, image=out("previous", "inner"), text=out("text", "inner")),
        "drawn": node(END, loop=["inner", 0], result=[name, 0]),
        "after": node("Stamp", image=["drawn", 1], text=out("text")),
    }
    return loop_graph(body, ["after", 0])


def inner_key(graph: SmallGraph, outer_prefix: str, prefix: str = "x.") -> str:
    """The key of a step of the inner loop, whose body is a copy that the outer loop's end added."""
    lying = graph.with_copy(step_copy(graph, outer_prefix))
    loop = (f"{outer_prefix}inner", f"{outer_prefix}drawn")
    return signatures(lying).of(step_copy(lying, f"{loop[1]}.{prefix}", of=loop))


@pytest.mark.parametrize("class_type, counts", [("Stamp", True), ("Paint", False)])
def test_the_id_that_counts_in_an_inner_loop_is_that_of_the_users_node(class_type, counts):
    graph, other = nested(class_type), nested(class_type, name="8")
    assert inner_key(graph, "end.1.") == inner_key(graph, "end.4.", "y."), "whichever step of the outer loop it is in"
    assert (inner_key(graph, "end.1.") != inner_key(other, "end.1.")) == counts


def test_an_inner_loop_counts_with_its_body_and_its_settings_but_not_with_what_its_ends_say_of_themselves():
    """They say where results lie; that changes whenever any result is removed."""
    assert SmallGraph({}).fingerprint("e", node(END)) != SmallGraph({}).fingerprint("e", node(END))
    assert key(nested()) == key(nested())
    assert len({key(nested()), key(nested("Paint")), key(nested(seconds=3.0)), key(nested(name="8"))}) == 4


def test_a_loop_before_this_one_counts_with_its_body_and_its_settings():
    def behind(**inputs: Any) -> str:
        outside = {
            "draw": node(START, plan=["plan", 0], **inputs),
            "paint": node("Paint", image=out("previous", "draw"), text=out("text", "draw")),
            "drawn": node(END, loop=["draw", 0], result=["paint", 0]),
        }
        return key(loop_graph({"x": node("Blend", a=["drawn", 1], b=out("text"))}, ["x", 0], **outside))

    assert behind(seed=1) == behind(seed=1) != behind(seed=2)


# --- values by a link -----------------------------------------------------------------------------------------------


def test_a_value_counts_the_same_by_a_link_and_by_a_constant():
    """So results stay when another version of a pack declares its inputs, or no longer does."""
    body = {"x": node("Paint", image=out("key_image"), text=out("text"), seed=out("seed"))}
    graph = loop_graph(body, ["x", 0])
    linked = step_copy(graph, "e.2.")
    linked.nodes["e.2.x"]["inputs"] |= {"text": out("text", "e.2.step"), "seed": out("seed", "e.2.step")}
    known = json.loads(linked.nodes["e.2.step"]["inputs"]["known"])
    known |= {"text": constant("<text>"), "seed": constant(7)}
    linked.nodes["e.2.step"]["inputs"]["known"] = json.dumps(known)
    assert signatures(graph).of(linked) == key(graph)


def test_values_by_a_link_count():
    graph = loop_graph({"x": node("Any", image=out("key_image"), text=out("text"), seed=out("seed"))}, ["x", 0])
    assert len({key(graph), key(graph, text="other"), key(graph, seed=8), key(graph, seed="7")}) == 4
    assert key(graph, before="other") == key(graph)
    assert key(loop_graph({}, out("text"))) != key(loop_graph({}, out("text")), text="other")


def test_a_file_counts_that_a_value_by_a_link_names():
    graph = loop_graph({"x": node("Any", image=out("key_image"), text=out("text"))}, ["x", 0])
    names = [key(replace(graph, models={"<text>": [100, time]})) for time in (1, 2)]
    assert len({key(graph), *names}) == 3


def test_a_value_is_no_picture_of_the_same_digest():
    graph = loop_graph({"x": node("Any", image=out("text"), text=out("text"))}, ["x", 0])
    other = loop_graph({"x": node("Any", image=out("key_image"), text=out("key_image"))}, ["x", 0])
    assert key(graph, text="abc") != key(other, {"key_image": "abc"})


def test_a_lazy_input_without_its_picture_counts_as_nothing_and_not_as_the_picture():
    body = {"x": node("Switch", switch=out("is_last"), on_true=out("key_image"), on_false=out("next_key_image"))}
    graph = loop_graph(body, ["x", 0])
    lacking = {name: digits for name, digits in CONTENTS.items() if name != "next_key_image"}
    assert key(graph, lacking) == key(graph, lacking) != key(graph)
    assert key(graph, lacking) != key(loop_graph({"x": SWITCH_TO_NOTHING}, ["x", 0]))


SWITCH_TO_NOTHING = node("Switch", switch=out("is_last"), on_true=out("key_image"))


# --- nodes that always change ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["paint", "loaded", "shown"])
def test_a_node_that_always_changes_makes_every_runs_key_differ(where):
    graph, texts = small().changed(where, "Dice"), iter("abcdef")
    first, second = (Signatures(graph, lambda: next(texts)) for _ in range(2))
    differs = where != "shown"
    assert (key(graph, by=first) != key(graph, by=second)) == differs
    assert first.always == second.always == ({"Dice"} if differs else set())


def test_within_a_run_what_always_changes_outside_is_the_same_for_every_step():
    """It runs once for all of them."""
    texts = iter("abcdef")
    outside = Signatures(graph := small().changed("loaded", "Dice"), lambda: next(texts))
    assert key(graph, by=outside) == key(graph, by=outside)
    inside = Signatures(graph := small().changed("paint", "Dice"), lambda: next(texts))
    assert key(graph, by=inside) != key(graph, by=inside)


# --- constants ------------------------------------------------------------------------------------------------------

CONSTANTS = [
    1, 1.0, True, "1", 0, False, 0.0, None, "", "None", [], {}, [1], [[1]], [1, 2], [2, 1], "[1, 2]", ["a"],
    ["a", "b"], ["a", 0, 0], ["m", None], {"a": 1}, {"a": 1.0}, {"a": True}, {"a": None}, {"b": 1}, [{"a": 1}],
    {"a": ["m", 0]}, [["m", 0]], "m", ["constant", "m"], ["node", "x", 0], "ä", "a\u0308", "\ud800", 1e300,
    float("nan"), float("inf"), 2**64,
]  # fmt: skip


def with_constant(value: Any, **models: Any) -> str:
    body = {"x": node("Paint", image=out("key_image"), text=out("text"), value=value)}
    graph = loop_graph(body, ["x", 0], m=node("Model", name="m"))
    graph.models = models
    return key(graph)


def test_all_constants_differ_and_each_equals_itself():
    keys = [with_constant(value) for value in CONSTANTS]
    assert len(set(keys)) == len(CONSTANTS)
    assert keys == [with_constant(value) for value in CONSTANTS]


def test_the_order_of_fields_in_a_constant_does_not_count_but_that_of_a_list_does():
    assert with_constant({"a": 1, "b": [2]}) == with_constant({"b": [2], "a": 1})
    assert with_constant([1, 2]) != with_constant([2, 1])


def test_a_list_that_only_resembles_a_link_is_no_link():
    """The host takes `[text, number]` for a link and nothing else; no node of that name needs to be there."""
    assert with_constant(["nowhere", 0, 0]) != with_constant([["nowhere", 0]]) != with_constant({"x": ["nowhere", 0]})


@pytest.mark.parametrize(
    "value", ["a.st", {"on": True, "lora": "a.st"}, [1, ["a.st"]], {"x": [{"y": "a.st"}]}], ids=str
)
def test_model_files_count_wherever_a_constant_names_them(value):
    """Some LoRA loaders give their rows as one object each."""
    old, new = with_constant(value, **{"a.st": [100, 1]}), with_constant(value, **{"a.st": [100, 2]})
    assert len({old, new, with_constant(value), with_constant(value, **{"b.st": [100, 1]})}) == 3


def test_an_object_that_json_cannot_say_never_equals_itself():
    """Other packs' loops put tensors and models into the nodes that they add to a graph."""
    graph, texts = small().changed("tinted", text=object()), iter("abcd")
    first, second = (Signatures(graph, lambda: next(texts)) for _ in range(2))
    assert key(graph, by=first) != key(graph, by=second) and first.always == {"Tint"}


# --- shape ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outside", [False, True])
def test_a_chain_of_thousands_has_a_key_and_its_far_end_counts(outside):
    def chained(first: str) -> str:
        links = {f"n{i}": node("Paint", image=[f"n{i - 1}", 0]) for i in range(1, 3000)}
        links["n0"] = node("Paint", image=["plan", 0] if outside else out("key_image"), text=first)
        body = {"x": node("Blend", a=["n2999", 0], b=out("text"))}
        return key(loop_graph(body, ["x", 0], **links) if outside else loop_graph(links | body, ["x", 0]))

    assert chained("a") == chained("a") != chained("b")


def test_a_ladder_of_diamonds_is_gone_through_once():
    """2**60 ways lead through it."""
    rungs = {f"n{i}": node("Blend", a=[f"n{i - 1}", 0], b=[f"n{i - 1}", 0]) for i in range(1, 60)}
    graph = loop_graph({**rungs, "n0": node("Paint", image=out("key_image"))}, ["n59", 0])
    assert key(graph) != key(graph.changed("n0", text="x"))


def test_nodes_that_wait_for_each_other_are_refused():
    """The host does not look into the body, since nothing there is run as it stands."""
    graph = loop_graph(
        {"a": node("Blend", a=["b", 0], b=out("key_image")), "b": node("Blend", a=["a", 0])},
        ["b", 0],
    )
    with pytest.raises(KSGenError, match="circle"):
        key(graph)
    with pytest.raises(KSGenError, match="circle"):
        key(loop_graph({"a": node("Blend", a=["a", 0], b=out("key_image"))}, ["a", 0]))


@st.composite
def graphs(draw: st.DrawFn) -> SmallGraph:
    """A random body whose nodes all use the step, with some nodes outside; every node has a constant of its own."""
    nodes: dict[str, dict[str, Any]] = {"x0": node("Model", name="m0"), "x1": node("LoadPicture", name="f1")}
    nodes["x2"] = node("Blend", a=["x0", 0], b=["x1", 0])
    ids = ["n0"]
    body = {"n0": node("Paint", image=out("key_image"), text=out("text"), own=0)}
    for number in range(1, draw(st.integers(1, 9))):
        slot = st.integers(0, 2)
        inputs: dict[str, Any] = {"a": [draw(st.sampled_from(ids)), draw(slot)], "own": number}
        others = st.sampled_from([*ids, "x0", "x1", "x2"])
        inputs["b"] = draw(st.one_of(st.none(), st.tuples(others, slot).map(list), st.sampled_from([out("seed")])))
        inputs["file"] = f"file of {number}"
        body[f"n{number}"] = node(draw(st.sampled_from(["Blend", "Join", "Model"])), **inputs)
        ids.append(f"n{number}")
    graph = loop_graph(body, [draw(st.sampled_from(ids)), draw(st.integers(0, 1))], **nodes)
    graph.models = {f"file of {number}": number for number in range(9)} | {"m0": 0}
    graph.read = {"f1": "1"}
    return graph


def ancestry(graph: SmallGraph) -> set[str]:
    """The nodes that the result of the loop depends on, the start and what is before it excepted."""
    found: set[str] = set()
    waiting = [graph.nodes["end"]["inputs"]["result"][0]]
    while waiting:
        if (one := waiting.pop()) not in found | {"start"}:
            found.add(one)
            waiting += [given[0] for given in graph.nodes[one]["inputs"].values() if is_link(given)]
    return found


def mutated(graph: SmallGraph, place: str, how: str) -> SmallGraph:
    inputs = graph.nodes[place]["inputs"]
    if how == "class":
        return graph.changed(place, "Tint" if graph.nodes[place]["class_type"] != "Tint" else "Paint")
    if how == "constant":
        return graph.changed(place, added="x")
    if how == "id in a constant":
        return graph.changed(place, own=f"{inputs.get('own')}")
    if how == "slot":
        linked = sorted(name for name, given in inputs.items() if is_link(given) and given[0] != "start")
        assume(linked)
        source, slot = inputs[linked[-1]]
        return graph.changed(place, None, **{linked[-1]: [source, slot + 1]})
    files = [inputs[name] for name in ("file", "name") if name in inputs]
    assume(files)
    known = graph.models | {files[0]: "another"} if files[0] in graph.models else graph.models
    read = graph.read | {files[0]: "another"} if files[0] in graph.read else graph.read
    return SmallGraph(graph.nodes, read, known)


@settings(max_examples=300, deadline=None)
@given(graphs(), st.data())
def test_a_key_changes_if_and_only_if_something_before_the_result_changes(graph, data):
    place = data.draw(st.sampled_from([name for name in graph.nodes if name[0] in "nx"]))
    how = data.draw(st.sampled_from(["class", "constant", "id in a constant", "slot", "file"]))
    assert (key(graph) != key(mutated(graph, place, how))) == (place in ancestry(graph))


@settings(max_examples=100, deadline=None)
@given(graphs(), st.randoms(use_true_random=False))
def test_a_key_does_not_depend_on_ids_or_order(graph, rng: random.Random):
    names = [name for name in graph.nodes if name[0] in "nx"]
    others = [str(number) for number in range(len(names))]
    rng.shuffle(others)
    assert key(renamed(graph, dict(zip(names, others, strict=True)))) == key(graph)


# --- contents -------------------------------------------------------------------------------------------------------


def test_a_picture_counts_by_its_values_its_type_and_its_shape():
    one = torch.linspace(0, 1, 48).reshape(1, 4, 4, 3)
    other = one.clone()
    other[0, 3, 3, 2] = torch.nextafter(other[0, 3, 3, 2], torch.tensor(0.0))
    variants = [one, other, one.reshape(1, 2, 8, 3), one.reshape(4, 4, 3), one.double(), one.half(), one.bfloat16()]
    variants += [torch.zeros(0), torch.zeros(0, 4, 4, 3), torch.zeros(1, dtype=torch.bool), torch.zeros(())]
    assert len({picture_digest(variant) for variant in variants}) == len(variants)


def test_a_picture_counts_the_same_however_it_lies_in_memory():
    one = torch.rand(2, 5, 7, 3, generator=torch.Generator().manual_seed(0))
    turned = one.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    assert not turned.is_contiguous() and picture_digest(turned) == picture_digest(one)
    assert picture_digest(one[1:]) == picture_digest(one[1:].clone()) != picture_digest(one[:1])
    assert picture_digest(one.requires_grad_()) == picture_digest(one.detach())


def test_digests_do_not_change_from_version_to_version():
    """Otherwise every result on every disk would be made again; a new `FORMAT` says so openly."""
    assert digest([]) == "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"
    assert digest({"b": 1.0, "a": "ä"}) == digest({"a": "\u00e4", "b": 1.0}) != digest({"a": "ä", "b": 1})
