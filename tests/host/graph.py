"""A workflow in the front end's graph format -> a prompt in the API format, as the front end would queue it.

Knows what our templates use: links, widgets in order, the choice behind a seed, nodes without outputs that count.
The browser tests check the same templates with the real front end.
"""

from __future__ import annotations

from typing import Any

NOTES = {"MarkdownNote", "Note"}
# What the front end adds of its own: a button, and what happens to a seed after each run.
UPLOAD = "image"
AFTER_SEED = {"fixed", "increment", "decrement", "randomize"}
DYNAMIC = "COMFY_DYNAMICCOMBO_V3"
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", DYNAMIC}


def prompt_of(graph: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """The prompt. Raises `KeyError` for a node that the server does not know."""
    links = {link[0]: [str(link[1]), link[2]] for link in graph["links"]}
    prompt = {}
    for node in graph["nodes"]:
        if node["type"] in NOTES:
            continue
        inputs = widget_values(declared_inputs(object_info[node["type"]]), list(node.get("widgets_values") or []))
        for socket in node["inputs"]:
            if socket["link"] is not None:
                inputs[socket["name"]] = links[socket["link"]]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def declared_inputs(info: dict[str, Any]) -> dict[str, Any]:
    """Name -> (type, options) of everything that a node, or a choice of a dynamic widget, takes."""
    inputs = info.get("input", info)
    return {**inputs.get("required", {}), **inputs.get("optional", {})}


def is_widget(kind: Any, options: dict[str, Any]) -> bool:
    """Does the front end show the input as a widget? `kind` is a type, or a list of choices."""
    if options.get("forceInput"):
        return False
    return isinstance(kind, list) or kind in WIDGETS or options.get("widgetType") in WIDGETS


def widget_values(declared: dict[str, Any], values: list[Any]) -> dict[str, Any]:
    """The widgets' values by input name; they stand in the order of the declared inputs and are taken from `values`."""
    named = {}
    for name, (kind, *rest) in declared.items():
        options = rest[0] if rest else {}
        if not is_widget(kind, options) or not values:
            continue
        named[name] = values.pop(0)
        if kind == DYNAMIC:
            chosen = next(one["inputs"] for one in options["options"] if one["key"] == named[name])
            inside = widget_values(declared_inputs(chosen), values)
            named |= {f"{name}.{inner}": value for inner, value in inside.items()}
        if values and kind == "INT" and values[0] in AFTER_SEED and options.get("control_after_generate"):
            values.pop(0)
    return named
