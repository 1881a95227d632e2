"""What is wrong with a workflow in the front end's graph format, judged by what the server says of its nodes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from graph import AFTER_SEED, DYNAMIC, NOTES, UPLOAD, declared_inputs, is_widget

HUB = "https://huggingface.co/"
BUTTON = "IMAGEUPLOAD"
"""The type of a socket that the front end has of its own."""
GROWING = "COMFY_AUTOGROW_V3"
SOCKET = object()


def problems_of(graph: dict[str, Any], object_info: dict[str, Any], folders: list[str]) -> list[str]:
    """One line for each problem. `folders` are the server's model folders."""
    notes = [node["widgets_values"][0] for node in graph["nodes"] if node["type"] == "MarkdownNote"]
    found = [] if notes else ["there is no note"]
    for node in graph["nodes"]:
        if node["type"] in NOTES:
            continue
        if node["type"] not in object_info:
            found.append(f"{place(node)}: the server has no such node")
            continue
        found += [f"{place(node)}: {line}" for line in node_problems(node, object_info[node["type"]])]
        found += [f"{place(node)}: {line}" for line in model_problems(node, folders, "\n".join(notes))]
    return [*found, *link_problems(graph)]


def place(node: dict[str, Any]) -> str:
    return f"{node['type']} {node['id']}"


def node_problems(node: dict[str, Any], info: dict[str, Any]) -> Iterator[str]:
    """Sockets that are not declared, required ones without a link, widgets with a value that is not allowed."""
    values = list(node.get("widgets_values") or [])
    offered = {model["name"] for model in node["properties"].get("models", [])}
    links = {socket["name"]: socket["link"] for socket in node["inputs"]}
    kinds = {}
    for name, kind, options, value, required in inputs_of(info["input"], values):
        kinds[name] = "COMBO" if isinstance(kind, list) else kind
        if value is not SOCKET:
            yield from (f"{name}: {line}" for line in value_problems(kind, options, value, offered))
        elif required and links.get(name) is None:
            yield f"{name}: nothing is connected"
    if values:
        yield f"{len(values)} widget values too many: {values}"
    for socket in node["inputs"]:
        name, kind = socket["name"], socket["type"]
        if kind != BUTTON and name not in kinds:
            yield f"{name}: the server has no such input"
        elif kind != BUTTON and kind != kinds[name]:
            yield f"{name}: a {kind} here, a {kinds[name]} there"
    for slot, (own, kind) in enumerate(zip_longest((out["type"] for out in node["outputs"]), info["output"])):
        if own != kind:
            yield f"output {slot}: a {own} here, a {kind} there"


def inputs_of(inputs: dict[str, Any], values: list[Any]) -> Iterator[tuple[str, Any, dict[str, Any], Any, bool]]:
    """Name, type, options, value and whether it is required, of every input that the node has with its choices.

    Takes the widgets' values out of `values`. What has none is `...`, and `SOCKET` what is no widget.
    """
    for name, (kind, *rest) in declared_inputs(inputs).items():
        options, required = rest[0] if rest else {}, name in inputs.get("required", {})
        if kind == GROWING:
            (one,) = declared_inputs(options["template"]["input"]).values()
            names = options["template"]["names"]
            yield from (
                (f"{name}.{n}", one[0], {}, SOCKET, k < options["template"]["min"]) for k, n in enumerate(names)
            )
            continue
        if not is_widget(kind, options):
            yield name, kind, options, SOCKET, required
            continue
        value = values.pop(0) if values else ...
        yield name, kind, options, value, required
        for one in options["options"] if kind == DYNAMIC else ():
            if one["key"] == value:
                yield from ((f"{name}.{inner}", *others) for inner, *others in inputs_of(one["inputs"], values))
        if options.get("control_after_generate"):
            after = values.pop(0) if values else ...
            yield f"{name}, after a run", "COMBO", {"options": sorted(AFTER_SEED)}, after, False
        if options.get("image_upload"):
            yield f"{name}, upload", "COMBO", {"options": [UPLOAD]}, values.pop(0) if values else ..., False


def value_problems(kind: Any, options: dict[str, Any], value: Any, models: set[str]) -> Iterator[str]:
    """`models` are the files that the node offers to load from the net: they need not be there yet."""
    choices = kind if isinstance(kind, list) else options.get("options")
    if value is ...:
        yield "a widget value too few"
    elif kind == DYNAMIC:
        if value not in [one["key"] for one in choices]:
            yield f"{value!r} is no choice"
    elif choices is not None:
        if value not in choices and value not in models:
            yield f"{value!r} is no choice and no file that the node offers to load from the net"
    elif kind in ("STRING", "BOOLEAN"):
        if not isinstance(value, {"STRING": str, "BOOLEAN": bool}[kind]):
            yield f"{value!r} is no {kind}"
    elif isinstance(value, bool) or not isinstance(value, int if kind == "INT" else (int, float)):
        yield f"{value!r} is no {kind}"
    else:
        least, most = options.get("min", value), options.get("max", value)
        if not least <= value <= most:
            yield f"{value} is not within {least} and {most}"
        # The front end counts whole numbers from the least one, others from 0.
        step = options.get("step") or (1 if kind == "INT" else 1e-6)
        away = (value - (least if kind == "INT" else 0)) / step
        if abs(away - round(away)) > 1e-3:
            yield f"{value} is none of the steps of {step}"


def model_problems(node: dict[str, Any], folders: list[str], note: str) -> Iterator[str]:
    """Files to load from the net that the node does not use, or whose link, folder or note is not right."""
    for model in node["properties"].get("models", []):
        name, url, folder = model["name"], model["url"], model["directory"]
        if name not in (node.get("widgets_values") or []):
            yield f"{name}: no widget has this file"
        if not url.startswith(HUB) or "/resolve/" not in url or url.rsplit("/", 1)[1] != name:
            yield f"{name}: {url} is no link to this file"
        if folder not in folders:
            yield f"{name}: the server has no model folder {folder}"
        if f"`models/{folder}`" not in note and f"`ComfyUI/models/{folder}`" not in note:
            yield f"{name}: the note does not name its folder"
        if f"[{name}]({url})" not in note:
            yield f"{name}: the note has no link to it"


def link_problems(graph: dict[str, Any]) -> Iterator[str]:
    """Links whose ends do not know of them, or whose types do not fit, and ends with a link that is not there."""
    nodes = {node["id"]: node for node in graph["nodes"]}
    taken, given = [], []
    for number, source, slot, target, socket, kind in graph["links"]:
        line = f"link {number} from {source} to {target}"
        if source not in nodes or target not in nodes:
            yield f"{line}: there is no such node"
            continue
        outputs, inputs = nodes[source]["outputs"], nodes[target]["inputs"]
        taken.append(number)
        if slot >= len(outputs) or number not in (outputs[slot]["links"] or []):
            yield f"{line}: the output does not know of it"
        elif kind != outputs[slot]["type"]:
            yield f"{line}: a {kind}, but the output gives {outputs[slot]['type']}"
        if socket >= len(inputs) or inputs[socket]["link"] != number:
            yield f"{line}: the input does not know of it"
        elif not fits(kind, inputs[socket]["type"]):
            yield f"{line}: a {kind} does not fit {inputs[socket]['name']}, which takes {inputs[socket]['type']}"
    for node in nodes.values():
        given += [socket["link"] for socket in node["inputs"] if socket["link"] is not None]
        given += [link for output in node["outputs"] for link in output["links"] or []]
    for number in set(given) - set(taken):
        yield f"link {number}: its ends know of it, the graph does not"
    for number in {number for number in taken if taken.count(number) > 1}:
        yield f"link {number}: there are several"


def fits(given: str, wanted: str) -> bool:
    """As the host judges when a prompt is queued (comfy_execution/validation.py): one kind in common, or any at all."""
    anything = {"*", "COMFY_MATCHTYPE_V3"}
    one, other = ({part.strip() for part in kinds.split(",")} for kinds in (given, wanted))
    return bool(one & other) or bool(anything & (one | other))
