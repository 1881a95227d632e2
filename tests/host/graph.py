"""A workflow in the front end's graph format -> a prompt in the API format, as the front end would queue it.

Knows what our templates use: links, widgets in order, the choice behind a seed, nodes without outputs that count.
The browser tests check the same templates with the real front end.
"""

from __future__ import annotations

from typing import Any

# What the front end adds of its own: a button, and what happens to a seed after each run.
NOT_INPUTS = {"upload"}
AFTER_SEED = {"fixed", "increment", "decrement", "randomize"}


def prompt_of(graph: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """The prompt. Raises `KeyError` for a node that the server does not know."""
    links = {link[0]: [str(link[1]), link[2]] for link in graph["links"]}
    prompt = {}
    for node in graph["nodes"]:
        if node["type"] in ("MarkdownNote", "Note"):
            continue
        info = object_info[node["type"]]["input"]
        declared = {**info.get("required", {}), **info.get("optional", {})}
        inputs = widget_values(declared, list(node.get("widgets_values") or []))
        for socket in node["inputs"]:
            if socket["link"] is not None:
                inputs[socket["name"]] = links[socket["link"]]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def widget_values(declared: dict[str, Any], values: list[Any]) -> dict[str, Any]:
    """The widgets' values by input name; they stand in the order of the declared inputs and are taken from `values`."""
    named = {}
    for name, (kind, *options) in declared.items():
        is_widget = isinstance(kind, list) or kind in (
            "INT",
            "FLOAT",
            "STRING",
            "BOOLEAN",
            "COMBO",
            "COMFY_DYNAMICCOMBO_V3",
        )
        if not is_widget or not values or (options and options[0].get("forceInput")):
            continue
        named[name] = values.pop(0)
        if kind == "COMFY_DYNAMICCOMBO_V3":
            chosen = next(one["inputs"] for one in options[0]["options"] if one["key"] == named[name])
            inside = {**chosen.get("required", {}), **chosen.get("optional", {})}
            named |= {f"{name}.{inner}": value for inner, value in widget_values(inside, values).items()}
        if values and kind == "INT" and values[0] in AFTER_SEED and options[0].get("control_after_generate"):
            values.pop(0)
    return named
