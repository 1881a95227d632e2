"""The step loop in a real server: which nodes run, and how often, told by the server's own messages."""

from __future__ import annotations

from pathlib import Path
from shutil import copy

import pytest
from comfy_server import Server, new_base_folder
from loop_graphs import loop, run_well

HERE = Path(__file__).parent


@pytest.fixture(scope="module", params=["default", "classic"])
def looping(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A server in the host's default cache mode, and one that keeps outputs as the host once did."""
    base = new_base_folder(tmp_path_factory.mktemp("loop") / "base")
    copy(HERE / "gate_node.py", base / "custom_nodes")
    server = Server(base, ("--cache-classic",) if request.param == "classic" else ())
    yield server
    server.stop()


def test_every_step_runs_once_and_then_nothing(looping: Server):
    first = run_well(looping, loop())
    assert first.counts["noise"] == 6 and first.report == "6 steps: 0 remembered, 6 made."
    assert len(first.outputs["pictures"]["images"]) == 6
    again = run_well(looping, loop())
    assert again.counts["noise"] == 0
