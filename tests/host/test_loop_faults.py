"""Damaged results, a full disk, two servers on one folder of results: no wrong result is ever served."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import copy
from threading import Barrier

import numpy as np
import pytest
from comfy_server import Server, new_base_folder
from loop_graphs import Ran, loop, run_counting, run_well
from test_run import read_pictures

HERE = Path(__file__).parent


@pytest.fixture
def seed() -> int:
    return uuid.uuid4().int % 2**40


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, results: Path) -> Iterator[list[Server]]:
    """Two servers with folders of their own and one folder of results."""
    servers = []
    os.environ["KSGEN_CACHE"] = str(results)
    try:
        for name in ("one", "other"):
            base = new_base_folder(tmp_path_factory.mktemp(name) / "base")
            copy(HERE / "gate_node.py", base / "custom_nodes")
            servers.append(Server(base))
    finally:
        del os.environ["KSGEN_CACHE"]
    yield servers
    for server in servers:
        server.stop()


def clips_of(results: Path) -> set[Path]:
    return set(results.glob("*/*/clip.mkv"))


def again(prompt: dict, name: str) -> dict:
    """The same loop under another name, so that the host looks at the results on disk."""
    prompt["start"]["inputs"]["name"] = name
    return prompt


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "emptied"])
def test_a_damaged_result_is_made_again(two: list[Server], results: Path, seed: int, damage: str):
    before = clips_of(results)
    first = run_well(two[0], loop(start={"seed": seed}))
    path = sorted(clips_of(results) - before)[2]
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "changed":
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"")
    ran = run_well(two[0], again(loop(start={"seed": seed}), damage))
    assert ran.counts["noise"] == 1 and ran.report == "6 steps: 5 remembered, 1 made."
    pictures = [read_pictures(two[0], one.outputs["pictures"]["images"]) for one in (first, ran)]
    assert np.array_equal(*pictures)


def test_two_servers_at_once_make_whole_results(two: list[Server], seed: int):
    """Both are in the first step at once, so that both write it; each may then find what the other made."""
    waits = [server.base / "input" / "wait.txt" for server in two]
    for wait in waits:
        wait.write_text("wash")
    at_gate = Barrier(2, action=lambda: [wait.write_text("") for wait in waits])

    def run(server: Server) -> Ran:
        gates = []

        def meet(message: dict) -> None:
            if message["type"] == "executing" and message["data"]["display_node"] == "gate":
                gates.append(message)
                if len(gates) == 1:
                    at_gate.wait(60)

        return run_counting(server, loop(start={"seed": seed}), meet)

    with ThreadPoolExecutor(2) as threads:
        ran = list(threads.map(run, two))
    assert all(one.messages[-1][0] == "execution_success" for one in ran)
    # The first step ran twice.
    assert 7 <= sum(one.counts["noise"] for one in ran) <= 12
    pictures = [read_pictures(server, one.outputs["pictures"]["images"]) for server, one in zip(two, ran, strict=True)]
    assert len(pictures[0]) == 6 and np.array_equal(*pictures)
    # What one has made the other remembers.
    assert run_well(two[1], again(loop(start={"seed": seed}), "again")).counts["noise"] == 0


def test_results_that_were_cleared_are_made_again_though_the_host_remembers_the_loop(
    two: list[Server], results: Path, seed: int
):
    from ksgen_core.cache import ResultCache

    run_well(two[0], loop(start={"seed": seed}))
    assert run_counting(two[0], loop(start={"seed": seed})).counts["noise"] == 0
    ResultCache(results).clear()
    ran = run_well(two[0], loop(start={"seed": seed}))
    assert ran.report == "6 steps: 0 remembered, 6 made." and len(clips_of(results)) == 6


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk_stops_the_loop_and_keeps_what_is_made(tmp_path: Path, seed: int):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=192k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    server = None
    try:
        base = new_base_folder(tmp_path / "base")
        copy(HERE / "gate_node.py", base / "custom_nodes")
        os.environ["KSGEN_CACHE"] = str(disk)
        try:
            server = Server(base)
        finally:
            del os.environ["KSGEN_CACHE"]
        ran = run_counting(server, loop(start={"seed": seed}))
        (error,) = [details for kind, details in ran.messages if kind == "execution_error"]
        assert "cannot be written" in error["exception_message"] and str(disk) in error["exception_message"]
        made = len(clips_of(disk))
        assert 1 <= made < 6
        subprocess.run(["mount", "-o", "remount,size=10m", str(disk)], check=True)
        ran = run_well(server, loop(start={"seed": seed}))
        assert ran.report == f"6 steps: {made} remembered, {6 - made} made."
    finally:
        if server is not None:
            server.stop()
        subprocess.run(["umount", str(disk)], check=True)
