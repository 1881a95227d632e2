"""The step loop in a real server: which nodes run, and how often, told by the server's own messages."""

from __future__ import annotations

import uuid
from pathlib import Path
from shutil import copy

import numpy as np
import pytest
from comfy_server import Server, new_base_folder
from loop_graphs import TEXTS6, Ran, loop, plan_text, run_counting, run_well
from PIL import Image
from test_run import node, read_pictures

HERE = Path(__file__).parent


@pytest.fixture(scope="module", params=["default", "classic"])
def looping(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A server in the host's default cache mode, and one that keeps outputs as the host once did."""
    base = new_base_folder(tmp_path_factory.mktemp("loop") / "base")
    copy(HERE / "gate_node.py", base / "custom_nodes")
    server = Server(base, ("--cache-classic",) if request.param == "classic" else ())
    yield server
    server.stop()


@pytest.fixture
def seed() -> int:
    """A seed that no other test has, so that nothing is remembered at first."""
    return uuid.uuid4().int % 2**40


def gate(server: Server, file: str, *texts: str) -> None:
    """Let the test's gate node fail or wait at these texts from now on."""
    (server.base / "input" / file).write_text("\n".join(texts))


def bodies(ran: Ran) -> int:
    """How often the body ran; all of its nodes ran as often."""
    counts = {name: ran.counts[name] for name in ("draw", "frames", "gate", "noise")}
    assert len(set(counts.values())) == 1, counts
    return counts["noise"]


def test_what_is_made_is_not_made_again(looping: Server, seed: int):
    first = run_well(looping, loop(start={"seed": seed}))
    assert bodies(first) == 6 and first.report == "6 steps: 0 remembered, 6 made."
    assert bodies(run_well(looping, loop(start={"seed": seed}))) == 0
    # The name is no part of what makes a result, but the host looks at the loop again.
    ran = run_well(looping, loop(start={"seed": seed, "name": "tea"}))
    assert bodies(ran) == 0 and ran.report == "6 steps: 6 remembered, 0 made."
    assert len(ran.outputs["pictures"]["images"]) == 6


@pytest.mark.parametrize(("carry", "count"), [(False, 1), (True, 3)])
def test_an_edited_step_runs_alone_or_with_those_that_carry_from_it(
    looping: Server, seed: int, carry: bool, count: int
):
    assert bodies(run_well(looping, loop(carry=carry, start={"seed": seed}))) == 6
    texts = [*TEXTS6[:3], "fry", *TEXTS6[4:]]
    assert bodies(run_well(looping, loop(texts, carry=carry, start={"seed": seed}))) == count
    # And back: nothing was lost.
    assert bodies(run_well(looping, loop(carry=carry, start={"seed": seed}))) == 0


@pytest.mark.parametrize("carry", [False, True])
def test_appended_moved_and_deleted_steps(looping: Server, seed: int, carry: bool):
    run_well(looping, loop(carry=carry, start={"seed": seed}))
    assert bodies(run_well(looping, loop([*TEXTS6, "eat"], carry=carry, start={"seed": seed}))) == 1
    assert bodies(run_well(looping, loop(TEXTS6[::-1], carry=carry, start={"seed": seed}))) == (6 if carry else 0)
    assert bodies(run_well(looping, loop(TEXTS6[:2] + TEXTS6[3:], carry=carry, start={"seed": seed}))) == 3 * carry


def test_a_failure_costs_only_what_was_not_made(looping: Server, seed: int):
    gate(looping, "fail.txt", "season")
    ran = run_counting(looping, loop(start={"seed": seed}))
    (error,) = [details for kind, details in ran.messages if kind == "execution_error"]
    assert error["exception_message"].startswith("gate closed at season") and ran.counts["noise"] == 4
    gate(looping, "fail.txt")
    again = run_well(looping, loop(start={"seed": seed}))
    assert again.counts["noise"] == 2 and again.report == "6 steps: 4 remembered, 2 made."


def test_cancelling_costs_only_what_was_not_made(looping: Server, seed: int):
    gate(looping, "wait.txt", "boil")
    gates = []

    def cancel(message: dict) -> None:
        if message["type"] == "executing" and message["data"]["display_node"] == "gate":
            gates.append(message)
            if len(gates) == 4:
                looping.post("/interrupt", {})

    ran = run_counting(looping, loop(start={"seed": seed}), cancel)
    assert ran.messages[-1][0] == "execution_interrupted" and ran.counts["noise"] == 3
    gate(looping, "wait.txt")
    assert run_well(looping, loop(start={"seed": seed})).counts["noise"] == 3


def test_another_workflow_in_between_costs_nothing(looping: Server, seed: int):
    run_well(looping, loop(start={"seed": seed}))
    other = {"picture": node("EmptyImage", width=64, height=64, batch_size=1, color=seed % 2**24)}
    other["save"] = node("PreviewImage", images=["picture", 0])
    looping.run(other)
    assert bodies(run_well(looping, loop(start={"seed": seed}))) == 0


def test_a_changed_body_makes_every_step_anew(looping: Server, seed: int):
    run_well(looping, loop(start={"seed": seed}))
    stronger = run_well(looping, loop(start={"seed": seed}, noise={"strength": 0.2}))
    assert stronger.counts["noise"] == 6  # the host may remember what is before it
    assert run_well(looping, loop(start={"seed": seed + 1})).counts["noise"] == 6


def test_a_changed_file_behind_a_loader_makes_anew_what_uses_it(looping: Server, seed: int):
    path = looping.base / "input" / "paper.png"

    def paint(grey: int) -> None:
        Image.new("RGB", (64, 48), (grey, grey, grey)).save(path)

    def graph() -> dict:
        prompt = loop(start={"seed": seed}, draw={"images": ["paper", 0]})
        return {**prompt, "paper": node("LoadImage", image="paper.png")}

    paint(40)
    assert bodies(run_well(looping, graph())) == 6
    paint(90)
    assert bodies(run_well(looping, graph())) == 6
    paint(40)
    assert bodies(run_well(looping, graph())) == 0


def test_one_step_is_made_anew_with_a_seed_of_its_own(looping: Server, seed: int):
    first = run_well(looping, loop(start={"seed": seed}))
    text = plan_text(TEXTS6, cut=f" | seed {seed + 7}")
    second = run_well(looping, loop(text, start={"seed": seed}))
    assert bodies(second) == 1
    before, after = (read_pictures(looping, ran.outputs["pictures"]["images"]) for ran in (first, second))
    differ = [k for k in range(6) if not np.array_equal(before[k], after[k])]
    assert differ == [2]


def test_a_locked_step_is_kept_whatever_changes(looping: Server, seed: int):
    run_well(looping, loop(start={"seed": seed}))
    text = plan_text(TEXTS6, cut=" | lock")
    ran = run_well(looping, loop(text, start={"seed": seed}, noise={"strength": 0.3}))
    assert bodies(ran) == 5 and ran.report == "6 steps: 1 remembered, 5 made."
    text = plan_text(TEXTS6, peel=" | lock", cut=" | lock").replace("peel", "scrape")
    ran = run_well(looping, loop(text, start={"seed": seed}, noise={"strength": 0.3}))
    assert ran.report == "6 steps: 5 remembered, 1 made. Locked, but without a result before: 2."


def test_chosen_steps_are_made_and_the_others_left_out_or_remembered(looping: Server, seed: int):
    some = run_well(looping, loop(start={"seed": seed, "steps": "2, 4-5"}))
    assert bodies(some) == 3 and some.report == "6 steps: 0 remembered, 3 made, 3 left out."
    assert len(some.outputs["pictures"]["images"]) == 3
    more = run_well(looping, loop(start={"seed": seed, "steps": "6"}))
    assert bodies(more) == 1 and more.report == "6 steps: 3 remembered, 1 made, 2 left out."


def test_steps_that_are_alike_are_made_once(looping: Server, seed: int):
    ran = run_well(looping, loop(["stir", "wait", "stir"], start={"seed": seed}))
    assert bodies(ran) == 2 and len(ran.outputs["pictures"]["images"]) == 3
