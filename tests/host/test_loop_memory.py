"""The memory of the server does not grow with the number of steps, in the host's default cache mode."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from shutil import copy

import pytest
from comfy_server import Server, new_base_folder
from loop_graphs import loop, run_well
from test_run import node

HERE = Path(__file__).parent
WIDTH, HEIGHT, FRAMES = 320, 240, 96
CLIP = WIDTH * HEIGHT * FRAMES * 12
"""Bytes of a clip in memory."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    base = new_base_folder(tmp_path / "base")
    copy(HERE / "gate_node.py", base / "custom_nodes")
    server = Server(base)
    yield server
    server.stop()


def peak(server: Server, count: int, expanding: bool) -> int:
    """The highest resident memory, in bytes, while a loop makes so many steps."""
    texts = [f"step {number} of {count}" for number in range(count)]
    prompt = loop(texts, start={"seconds": FRAMES / 8, "seeds": "seed + step number"})
    prompt["picture"]["inputs"] |= {"width": WIDTH, "height": HEIGHT}
    if expanding:
        prompt["frames"] = node("TestRepeatByExpanding", image=["draw", 0], amount=["start", 12])
    del prompt["firsts"], prompt["pictures"]
    folder = Path(f"/proc/{server.process.pid}")
    (folder / "clear_refs").write_text("5")  # proc(5): the peak begins anew
    assert run_well(server, prompt).counts["noise"] == count
    return int((folder / "status").read_text().split("VmHWM:")[1].split()[0]) * 1024


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of a process is read from /proc")
@pytest.mark.parametrize("expanding", [False, True], ids=["plain", "nodes that add nodes"])
def test_eight_steps_need_the_memory_of_two(server: Server, expanding: bool):
    peak(server, 1, expanding)
    few, many = peak(server, 2, expanding), peak(server, 8, expanding)
    assert many - few < CLIP, (
        f"{few / 1e6:.0f} MB for 2 steps, {many / 1e6:.0f} MB for 8, a clip has {CLIP / 1e6:.0f} MB"
    )
