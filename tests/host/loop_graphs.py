"""Graphs with a step loop, and how often their nodes ran, as the server itself tells it."""

from __future__ import annotations

import uuid
from collections import Counter
from typing import Any

from comfy_server import NodeFailed, Server
from test_run import Prompt, node

TEXTS6 = ["wash", "peel", "cut", "boil", "season", "serve"]


def plan_text(texts: list[str], **changed: str) -> str:
    """Lines for 'Plan from Text'; `changed` puts something behind the line of a text."""
    return "\n".join(text + changed.get(text, "") for text in texts)


def loop(texts: list[str] | str = TEXTS6, carry: bool = False, **changes: dict[str, Any]) -> Prompt:
    """A plan through a loop whose body draws each step's text and a noise of its seed on a picture."""
    lines = texts if isinstance(texts, str) else plan_text(texts)
    prompt = {
        "plan": node("KSGenPlanFromText", goal="cook potatoes", text=lines),
        "picture": node("EmptyImage", width=64, height=48, batch_size=1, color=0x336699),
        "start": start(plan=["plan", 0], image=["picture", 0]),
        "draw": node(
            "TextOverlay",
            images=["start", 8 if carry else 7],
            text=["start", 1],
            font_size=20.0,
            color="#ffffff",
            position="top",
            align="left",
            outline=False,
        ),
        "frames": node("RepeatImageBatch", image=["draw", 0], amount=["start", 12]),
        "gate": node("TestGate", image=["frames", 0], text=["start", 1]),
        "noise": node("ImageAddNoise", image=["gate", 0], seed=["start", 10], strength=0.1),
        "end": node("KSGenStepLoopEnd", loop=["start", 0], result=["noise", 0]),
        "show": node("PreviewAny", source=["end", 4]),
        "firsts": node("KSGenClipFrames", clips=["end", 0], number=0, which="first frame"),
        "pictures": node("PreviewImage", images=["firsts", 0]),
    }
    for name, inputs in changes.items():
        prompt[name] = node(prompt[name]["class_type"], **{**prompt[name]["inputs"], **inputs})
    return prompt


def start(**inputs: Any) -> dict:
    """'Step Loop Start' with small clips."""
    settings = {
        "makes": "clips",
        "name": "",
        "seed": 1,
        "seeds": "the same for every step",
        "seconds": 0.6,
        "fps": 8.0,
        "frame_step": 0,
        "steps": "",
    }
    return node("KSGenStepLoopStart", **{**settings, **inputs})


class Ran:
    """A prompt that has ended: how often each of its nodes was executed, what blocked some, its outputs, messages."""

    def __init__(self, counts: Counter[str], blocked: list[str], entry: dict[str, Any]) -> None:
        self.counts = counts
        self.blocked = blocked
        self.outputs = entry["outputs"]
        self.messages = entry["status"]["messages"]

    @property
    def report(self) -> str:
        return self.outputs["show"]["text"][0]


def run_counting(server: Server, prompt: Prompt, on_message=None) -> Ran:
    """Run a prompt to its end, however it ends. Counts are of the server's `executing` messages, by the node that the
    front end would show them on."""
    client, counts, blocked = uuid.uuid4().hex, Counter(), []
    with server.listen(client) as messages:
        prompt_id = server.queue(prompt, client)
        while True:
            message = messages.next()
            if isinstance(message, bytes):
                continue
            data = message["data"]
            if data.get("prompt_id") != prompt_id:
                continue
            if message["type"] == "executing" and data["node"] is not None:
                counts[data["display_node"]] += 1
            if on_message is not None:
                on_message(message)
            if data.get("exception_type") == "ExecutionBlocked":  # the rest of the prompt goes on
                blocked.append(data["exception_message"])
            elif message["type"] in ("execution_success", "execution_error", "execution_interrupted"):
                break
    return Ran(counts, blocked, server.wait(prompt_id))


def run_well(server: Server, prompt: Prompt) -> Ran:
    """Run a prompt that must not fail."""
    ran = run_counting(server, prompt)
    for kind, details in ran.messages:
        if kind == "execution_error":
            raise NodeFailed(details)
    return ran
