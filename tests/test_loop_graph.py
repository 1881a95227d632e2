"""The body of a loop: what belongs to it, its copies with a step's values, and what is left out where a picture is
missing. Neither torch nor a host is needed for it."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from small_graph import SmallGraph, loop_graph, node, out

from ksgen_core.errors import KSGenError
from ksgen_core.loop.graph import (
    END,
    LOOP,
    OUTPUTS,
    PICTURES,
    START,
    Absent,
    Body,
    Copy,
    check_frames,
    copy_body,
    find_body,
    find_loops,
    frame_rule,
    is_link,
    used_outputs,
)
from ksgen_core.loop.settings import ANY_COUNT, FrameRule

VALUES: dict[str, Any] = {name: f"<{name}>" for name in OUTPUTS if name not in {LOOP, *PICTURES}}
VALUES |= {"seed": 7, "frames": 17, "is_first": False}


def body_of(graph: SmallGraph) -> Body:
    return find_body(graph, "start", "end")


def copied(graph: SmallGraph, *absent: str, step: int = 0) -> Copy:
    """The copy for a step that has everything but the absent pictures."""
    return copy_body(graph, body_of(graph), "end.1.", "step", VALUES, set(PICTURES) - set(absent), step)


def given(name: str) -> list[Any]:
    """A link to an output of the node that stands for the start in a copy."""
    return out(name, "step")


CHAIN = {
    "paint": node("Paint", image=out("image"), text=out("text"), strength=0.5),
    "frames": node("Repeat", image=["paint", 0], amount=out("frames")),
}


# --- what belongs to the body ---------------------------------------------------------------------------------------


def test_a_chain_is_the_body_and_nothing_before_the_start_or_after_the_end():
    body = body_of(loop_graph(CHAIN, ["frames", 0], model=node("Model", name="m")))
    assert body == Body("start", "end", ("paint", "frames"), ("frames", 0), ())


def test_a_diamond_is_in_the_body_once():
    graph = loop_graph(
        {
            "left": node("Paint", image=["top", 0]),
            "bottom": node("Blend", a=["left", 0], b=["right", 0]),
            "right": node("Tint", image=["top", 0]),
            "top": node("Paint", image=out("key_image")),
        },
        ["bottom", 0],
    )
    assert body_of(graph).nodes == ("left", "bottom", "right", "top")


def test_loaders_stay_outside_however_many_nodes_share_them():
    graph = loop_graph(
        {
            "one": node("Paint", image=out("image"), text=out("text"), model=["model", 0]),
            "two": node("Paint", image=["one", 0], model=["model", 0]),
        },
        ["two", 0],
        model=node("Model", name="m"),
    )
    graph.nodes["elsewhere"] = node("Paint", image=["picture", 0], model=["model", 0])
    graph.nodes["picture"] = node("Picture", shade=0.5)
    assert body_of(graph).nodes == ("one", "two")


def test_previews_and_saves_run_with_the_body_and_bring_what_is_before_them():
    sides = {
        "bright": node("Tint", image=["paint", 0]),
        "show": node("Save", images=["bright", 0]),
        "unused": node("Tint", image=["paint", 0]),
    }
    body = body_of(loop_graph({**CHAIN, **sides}, ["frames", 0]))
    assert body.nodes == ("paint", "frames", "bright", "show") and body.sides == ("show",)


def test_what_hangs_on_the_start_and_on_the_end_is_behind_the_loop():
    graph = loop_graph(CHAIN, ["frames", 0])
    graph.nodes["both"] = node("Blend", a=["end", 1], b=out("image"))
    graph.nodes["save"] = node("Save", images=["both", 0])
    assert body_of(graph).nodes == ("paint", "frames")


def test_the_start_alone_can_be_the_result():
    body = body_of(loop_graph({}, out("key_image")))
    assert body.nodes == () and used_outputs(SmallGraph({}), body) == {"key_image"}
    copy = copied(loop_graph({}, out("key_image")))
    assert copy == Copy({}, ("step", OUTPUTS.index("key_image")), {}, {"key_image"})


def test_used_outputs_are_those_of_the_result_and_of_the_sides():
    graph = loop_graph({**CHAIN, "show": node("Save", images=out("next_key_image"))}, ["frames", 0])
    assert used_outputs(graph, body_of(graph)) == {"image", "text", "frames", "next_key_image"}
    assert used_outputs(graph, body_of(graph), sides=False) == {"image", "text", "frames"}


def test_an_output_that_nodes_of_the_result_use_more_than_once_is_found_behind_any_slot():
    body = {
        "both": node("Blend", a=["paint", 1], b=["paint", 0]),
        "paint": node("Paint", image=out("key_image"), text=out("text")),
        "show": node("Save", images=["paint", 3], before=out("before")),
    }
    graph = loop_graph(body, ["both", 2])
    assert used_outputs(graph, body_of(graph), sides=False) == {"key_image", "text"}
    assert used_outputs(graph, body_of(graph)) == {"key_image", "text", "before"}


def test_what_an_inner_loop_uses_of_a_step_is_used():
    assert used_outputs(nested(), body_of(nested()), sides=False) == {"image", "seed", "key_image"}


@pytest.mark.parametrize("link", [out("image"), out("fps"), out("count"), ["picture", 0]], ids=str)
def test_a_result_that_is_the_same_for_every_step_is_refused(link):
    graph = loop_graph({"paint": node("Paint", image=link)}, ["paint", 0], picture=node("Picture", shade=0.5))
    graph.nodes["show"] = node("Save", images=out("key_image"))  # a preview that does use the step changes nothing
    with pytest.raises(KSGenError, match="uses nothing of a step"):
        body_of(graph)


@pytest.mark.parametrize("name", sorted(set(OUTPUTS) - {"loop", "image", "fps", "count"}))
def test_any_other_output_makes_a_body(name):
    assert body_of(loop_graph({"paint": node("Paint", image=out(name))}, ["paint", 0])).nodes == ("paint",)


@pytest.mark.parametrize("result", [None, "frames", 3, ["frames"]])
def test_an_end_without_a_result_is_refused(result):
    graph = loop_graph(CHAIN, ["frames", 0])
    graph.nodes["end"] = node(END, loop=out("loop"), **({} if result is None else {"result": result}))
    with pytest.raises(KSGenError, match="has no result"):
        body_of(graph)


def test_a_chain_of_thousands_is_found_and_copied():
    links = {f"n{i}": node("Paint", image=[f"n{i - 1}", 0] if i else out("text")) for i in range(3000)}
    copy = copied(loop_graph(links, ["n2999", 0]))
    assert len(copy.nodes) == 3000 and copy.result == ("end.1.n2999", 0)


# --- several loops --------------------------------------------------------------------------------------------------


def two_loops(**changes: dict[str, Any]) -> SmallGraph:
    """A loop that makes key images, then one that makes clips of them."""
    nodes = {
        "plan": node("Plan"),
        "draw": node(START, plan=["plan", 0]),
        "paint": node("Paint", image=out("previous", "draw"), text=out("text", "draw")),
        "drawn": node(END, loop=["draw", 0], result=["paint", 0]),
        "start": node(START, plan=["drawn", 2], key_images=["drawn", 1]),
        "frames": node("Repeat", image=out("key_image"), amount=out("frames")),
        "end": node(END, loop=["start", 0], result=["frames", 0]),
    }
    return SmallGraph(nodes | changes)


def test_two_loops_one_after_the_other_each_have_their_own_body():
    graph = two_loops()
    assert find_loops(graph) == {"draw": "drawn", "start": "end"}
    assert find_body(graph, "draw", "drawn").nodes == ("paint",) and body_of(graph).nodes == ("frames",)


def test_two_ends_on_one_start_are_refused():
    with pytest.raises(KSGenError, match="own start"):
        find_loops(two_loops(other=node(END, loop=["start", 0], result=["frames", 0])))


def test_an_end_without_a_loop_is_no_loop():
    assert find_loops(SmallGraph({"end": node(END, result=["x", 0])})) == {}


def nested(**changes: dict[str, Any]) -> SmallGraph:
    """A loop inside another one's body."""
    return loop_graph(
        {
            "inner": node(START, plan=["plan", 0], image=out("image")),
            "draw": node("Paint", image=out("previous", "inner"), text=out("text", "inner"), seed=out("seed")),
            "drawn": node(END, loop=["inner", 0], result=["draw", 0]),
            "frames": node("Blend", a=["drawn", 1], b=out("key_image")),
            **changes,
        },
        ["frames", 0],
    )


def test_a_whole_loop_inside_the_body_is_copied_with_it_and_is_a_loop_in_the_copy():
    graph = nested()
    assert body_of(graph).nodes == ("inner", "draw", "drawn", "frames")
    assert find_body(graph, "inner", "drawn").nodes == ("draw",)
    copy = copied(graph)
    assert copy.nodes["end.1.drawn"] == node(END, loop=["end.1.inner", 0], result=["end.1.draw", 0])
    both = SmallGraph({**graph.nodes, **copy.nodes})
    assert find_loops(both) == {"start": "end", "inner": "drawn", "end.1.inner": "end.1.drawn"}
    assert find_body(both, "end.1.inner", "end.1.drawn").nodes == ("end.1.draw",)


def test_a_loop_that_is_not_whole_inside_the_body_is_refused():
    with pytest.raises(KSGenError, match="has no 'Step Loop End' inside"):
        body_of(nested(frames=node("Blend", a=["draw", 0], b=out("key_image")), drawn=node("Save", images=["draw", 0])))
    with pytest.raises(KSGenError, match="belongs to a start outside"):
        body_of(nested(inner=node(START, plan=["plan", 0])))


def test_loops_that_cross_are_refused():
    crossed = two_loops(
        start=node(START, plan=["plan", 0]),
        frames=node("Repeat", image=out("text", "draw"), amount=out("frames")),
    )
    with pytest.raises(KSGenError, match="belongs to a start outside"):
        find_body(crossed, "draw", "drawn")


# --- copies ---------------------------------------------------------------------------------------------------------


def test_the_copy_for_a_step_exactly():
    body = {
        "paint": node(
            "Paint", image=out("key_image"), text=out("text"), seed=out("seed"), strength=0.5, model=["m", 1]
        ),
        "frames": node("Repeat", image=["paint", 2], amount=out("frames"), many=[1, 2, 3], text="['paint', 0]"),
        "show": node("Save", images=["paint", 0], first=out("is_first")),
    }
    copy = copied(loop_graph(body, ["frames", 1], m=node("Model", name="m")))
    assert copy == Copy(
        {
            "end.1.paint": node(
                "Paint", image=given("key_image"), text="<text>", seed=7, strength=0.5, model=["m", 1]
            ),
            "end.1.frames": node("Repeat", image=["end.1.paint", 2], amount=17, many=[1, 2, 3], text="['paint', 0]"),
            "end.1.show": node("Save", images=["end.1.paint", 0], first=False),
        },
        ("end.1.frames", 1),
        {"end.1.paint": "paint", "end.1.frames": "frames", "end.1.show": "show"},
        {"key_image"},
    )  # fmt: skip


def test_copying_leaves_the_graph_as_it_was():
    body = {**CHAIN, "blend": node("Blend", a=["frames", 0], b=out("next_key_image"))}
    graph, same = loop_graph(body, ["blend", 0]), deepcopy(loop_graph(body, ["blend", 0]))
    copied(graph)
    copied(graph, "next_key_image")
    assert graph == same


def test_an_optional_input_without_its_picture_stays_empty():
    graph = loop_graph({"blend": node("Blend", a=out("key_image"), b=out("next_key_image"))}, ["blend", 0])
    assert copied(graph).nodes == {"end.1.blend": node("Blend", a=given("key_image"), b=given("next_key_image"))}
    assert copied(graph, "next_key_image").nodes == {"end.1.blend": node("Blend", a=given("key_image"))}


def test_a_node_that_needs_the_picture_is_left_out_with_all_that_needs_it():
    graph = loop_graph(
        {
            "blend": node("Blend", a=out("key_image"), b=["third", 0]),
            "third": node("Tint", image=["second", 0]),
            "second": node("Tint", image=["first", 0], text=out("text")),
            "first": node("Paint", image=out("next_key_image")),
            "show": node("Save", images=["second", 0]),
        },
        ["blend", 0],
    )
    assert len(copied(graph).nodes) == 5
    copy = copied(graph, "next_key_image")
    assert copy.nodes == {"end.1.blend": node("Blend", a=given("key_image"))} and copy.origin == {
        "end.1.blend": "blend"
    }


@pytest.mark.parametrize("class_type, left", [("Blend", True), ("Paint", False)])
def test_whether_a_node_goes_depends_on_the_input_that_is_missing(class_type, left):
    """Paint needs its image; a text that is missing it can do without. So does Blend with b, but not with a."""
    inputs = {"a": out("key_image"), "b": out("next_key_image")}
    if class_type == "Paint":
        inputs = {"image": out("next_key_image"), "text": out("key_image")}
    graph = loop_graph({"x": node(class_type, **inputs), "y": node("Blend", a=out("image"), b=["x", 0])}, ["y", 0])
    graph.nodes["y"]["inputs"]["more"] = out("text")
    copy = copied(graph, "next_key_image")
    assert ("end.1.x" in copy.nodes) == left and ("b" in copy.nodes["end.1.y"]["inputs"]) == left


def test_a_constant_that_is_none_was_never_a_picture():
    graph = loop_graph({"paint": node("Paint", image=out("key_image"), text=None)}, ["paint", 0])
    assert copied(graph, "next_key_image").nodes["end.1.paint"]["inputs"] == {"image": given("key_image"), "text": None}


def test_an_input_that_a_class_does_not_declare_gets_its_value_by_a_link():
    """The host gives constants to declared inputs only; a node with `**kwargs` would miss it."""
    body = {"any": node("Any", image=out("key_image"), text=out("text"), seed=out("seed"), model=["m", 0], more=5)}
    copy = copied(loop_graph(body, ["any", 0], m=node("Model", name="m")))
    inputs = {"image": given("key_image"), "text": given("text"), "seed": given("seed"), "model": ["m", 0], "more": 5}
    assert copy.nodes == {"end.1.any": node("Any", **inputs)} and copy.through == {"key_image", "text", "seed"}


def test_a_value_that_is_the_result_itself_comes_from_the_node_that_stands_for_the_start():
    copy = copied(loop_graph({}, out("text")))
    assert copy.result == ("step", OUTPUTS.index("text")) and copy.through == {"text"}


def test_only_what_is_linked_to_goes_through_the_node_that_stands_for_the_start():
    """Frames of the step before, say, are not read for a node that was left out."""
    body = {
        "blend": node("Blend", a=out("key_image"), b=["lost", 0]),
        "lost": node("Repeat", image=out("next_key_image"), amount=2, more=out("previous_frames")),
    }
    assert copied(loop_graph(body, ["blend", 0])).through == {"key_image", "next_key_image", "previous_frames"}
    assert copied(loop_graph(body, ["blend", 0]), "next_key_image").through == {"key_image"}


# --- inputs that are asked for only when they are wanted ------------------------------------------------------------

SWITCH = node("Switch", switch=out("is_last"), on_true=out("key_image"), on_false=out("next_key_image"))


def test_a_lazy_input_without_its_picture_gets_nothing_and_the_node_stays():
    """Whether it is wanted is only known when the node runs."""
    graph = loop_graph({"switch": SWITCH, "paint": node("Paint", image=["switch", 0])}, ["paint", 0])
    copy = copied(graph, "next_key_image")
    inputs = {"switch": "<is_last>", "on_true": given("key_image"), "on_false": given(LOOP)}
    assert copy.nodes["end.1.switch"]["inputs"] == inputs and "end.1.paint" in copy.nodes
    assert copy.through == {LOOP, "key_image"}
    assert copied(graph).nodes["end.1.switch"]["inputs"] == inputs | {"on_false": given("next_key_image")}


def test_a_lazy_input_behind_nodes_that_were_left_out_gets_nothing():
    body = {
        "switch": node("Switch", switch=out("is_last"), on_true=out("key_image"), on_false=["second", 0]),
        "first": node("Tint", image=out("next_key_image")),
        "second": node("Tint", image=["first", 0]),
    }
    copy = copied(loop_graph(body, ["switch", 0]), "next_key_image")
    assert set(copy.nodes) == {"end.1.switch"}
    assert copy.nodes["end.1.switch"]["inputs"]["on_false"] == given(LOOP)


def test_a_lazy_node_is_left_out_if_it_lacks_what_it_always_needs():
    body = {"switch": node("Switch", switch=out("next_key_image"), on_true=out("key_image"), on_false=out("image"))}
    graph = loop_graph(body | {"blend": node("Blend", a=out("key_image"), b=["switch", 0])}, ["blend", 0])
    assert set(copied(graph, "next_key_image").nodes) == {"end.1.blend"}


def test_an_inner_loop_goes_if_its_result_cannot_be_made_and_stays_if_only_its_picture_lacks():
    """An end asks for its result never, a start for its pictures if they are connected."""
    lost = nested(draw=node("Blend", a=out("next_key_image"), b=out("text", "inner")))
    lost.nodes["frames"] = node("Blend", a=out("key_image"), b=["drawn", 1])
    copy = copied(lost, "next_key_image")
    assert "end.1.drawn" not in copy.nodes and copy.nodes["end.1.frames"]["inputs"] == {"a": given("key_image")}
    pictured = nested(inner=node(START, plan=["plan", 0], key_images=out("next_key_image"), image=out("image")))
    copy = copied(pictured, "next_key_image")
    inner = {"plan": ["plan", 0], "key_images": given(LOOP), "image": given("image")}
    assert copy.nodes["end.1.inner"]["inputs"] == inner and "end.1.drawn" in copy.nodes


# --- results that cannot be made ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", [0, 1, 40])
def test_a_result_that_cannot_be_made_says_what_the_step_lacks(tail):
    links = {f"n{i}": node("Tint", image=[f"n{i - 1}", 0]) for i in range(1, tail + 1)}
    body = {"n0": node("Paint", image=out("next_key_image")), **links}
    with pytest.raises(Absent, match=r"^Step 3 has no next key image, which .* switch by 'is last'"):
        copied(loop_graph(body, [f"n{tail}", 0]), "next_key_image", step=2)


def test_a_result_that_is_the_missing_picture_itself_says_so():
    with pytest.raises(Absent, match="Step 1 has no key image, which .* Connect it to 'Step Loop Start'"):
        copied(loop_graph({}, out("key_image")), "key_image", "next_key_image")


def test_what_a_preview_lacks_is_not_said_to_be_what_the_result_needs():
    body = {"paint": node("Paint", image=out("clip_frames")), "show": node("Save", images=out("next_key_image"))}
    with pytest.raises(Absent, match="^Step 1 has no clip frames, which"):
        copied(loop_graph(body, ["paint", 0]), "clip_frames", "next_key_image")


def test_the_sides_may_go_where_the_result_stays():
    graph = loop_graph({**CHAIN, "show": node("Save", images=out("next_key_image"))}, ["frames", 0])
    assert set(copied(graph, "next_key_image").nodes) == {"end.1.paint", "end.1.frames"}


# --- frame counts ---------------------------------------------------------------------------------------------------


def test_frame_counts_that_a_node_cannot_make_are_refused_and_say_which_it_takes():
    graph = loop_graph({"clip": node("Film", image=out("key_image"), amount=out("frames"))}, ["clip", 0])
    check_frames(graph, body_of(graph), {0: 1, 1: 5, 4: 81})
    with pytest.raises(KSGenError, match=r"^Film takes 1, 5, 9 and so on, at most 81, as its amount, but step 3 would"):
        check_frames(graph, body_of(graph), {0: 5, 2: 8})
    with pytest.raises(KSGenError, match="step 1 would have 85 frames"):
        check_frames(graph, body_of(graph), {0: 85})


def test_the_most_exacting_node_says_which_frame_counts_are_made():
    body = {
        "clip": node("Film", image=out("key_image"), amount=out("frames")),
        "more": node("Repeat", image=["clip", 0], amount=out("frames")),
    }
    graph = loop_graph(body, ["more", 0])
    assert frame_rule(graph, body_of(graph)) == FrameRule(1, 4)
    graph = loop_graph({"clip": node("Film", image=out("key_image"), amount=5)}, ["clip", 0])
    assert frame_rule(graph, body_of(graph)) == ANY_COUNT


def test_frame_counts_of_nodes_that_take_any_or_a_constant_are_not_looked_at():
    for body in (
        {"clip": node("Repeat", image=out("key_image"), amount=out("frames"))},
        {"clip": node("Film", image=out("key_image"), amount=5)},
        {"clip": node("Film", image=out("key_image"), amount=out("number"))},
    ):
        graph = loop_graph(body, ["clip", 0])
        check_frames(graph, body_of(graph), {0: 8})


@pytest.mark.parametrize(
    "value, link",
    [
        (["a", 0], True),
        (["a", 1.0], True),
        (["a", "b"], False),
        ([1, 0], False),
        (["a", 0, 0], False),
        (["a"], False),
        (("a", 0), False),
        ({"a": 0}, False),
        ("a", False),
        (None, False),
    ],
)
def test_links_are_what_the_host_takes_for_one(value, link):
    assert is_link(value) == link
