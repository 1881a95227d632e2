"""The planner that asks a server, against a real server on loopback that behaves well and badly."""

from __future__ import annotations

import base64
import io
import json
import logging
import socket
import threading

import openai_server as peer
import pytest
import torch
from openai_server import PLAN, Server
from PIL import Image

from ksgen_core.errors import KSGenError
from ksgen_core.pipeline import Planned, Writing
from ksgen_core.planning import endpoint_talk
from ksgen_core.planning.endpoint import (
    PICTURE_SIDE,
    EndpointSettings,
    Refused,
    Unreachable,
    ask_endpoint,
    data_url,
    write_plan,
)
from ksgen_core.planning.http_post import TICK
from ksgen_core.planning.reply import ReplyError, reply_schema
from ksgen_core.planning.wording import system_text, user_text
from ksgen_core.types import Example, KeyStep, Plan, Query

QUERY = Query(torch.full((40, 60, 3), 0.5), "make a cup of tea")
EXAMPLE = Example(Plan("make coffee", (KeyStep("grind the beans"), KeyStep("pour the water"))), "library 7", 1.0)


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for name in ("OPENAI_API_KEY", "KSGEN_API_KEY", "KSGEN_API_HOST", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)


def settings(server: Server | str, **changes) -> EndpointSettings:
    url = server if isinstance(server, str) else server.url
    return EndpointSettings(url, "tea-1", **{"backoff_seconds": 0.01, "timeout_seconds": 20.0, **changes})


def plan_of(server: Server | str, examples=(), **changes) -> Plan:
    *writings, last = ask_endpoint(settings(server, **changes))(QUERY, examples)
    assert isinstance(last, Planned) and all(isinstance(w, Writing) for w in writings)
    return last.plan


def test_a_stream_becomes_the_plan_and_is_seen_growing():
    with Server(peer.stream()) as server:
        *writings, last = write_plan(QUERY, [EXAMPLE], settings(server, max_tokens=64))
    assert isinstance(last, Planned)
    assert [step.text for step in last.plan.steps] == ["fill the kettle", "pour the tea"]
    assert last.plan.steps[1].after == "The cup is full."
    assert (last.plan.goal, last.plan.sources, last.plan.planner) == (QUERY.goal, ("library 7",), "endpoint tea-1")
    grown = [w for w in writings if w.text]
    assert all(PLAN.startswith(w.text) and 0 < w.number <= w.total == 64 for w in grown)
    assert all(w == Writing("", 0, 0) for w in writings if not w.text)


def test_what_is_asked():
    with Server(peer.stream()) as server:
        plan_of(server, [EXAMPLE], fewest=2, most=4, done=("boil water",), seed=7, temperature=0.5, max_tokens=99)
    ((path, headers, asked),) = server.requests
    assert path == "/v1/chat/completions" and headers["Content-Type"] == "application/json"
    assert "Authorization" not in headers
    system, user = asked["messages"]
    assert system == {"role": "system", "content": system_text(2, 4, True)}
    picture, words = user["content"]
    assert words["text"] == user_text(QUERY.goal, [EXAMPLE], ("boil water",))
    assert picture["image_url"]["url"] == data_url(QUERY.image)
    assert asked["response_format"]["json_schema"]["schema"] == reply_schema(2, 4, patterns=False)
    assert (asked["model"], asked["stream"], asked["seed"]) == ("tea-1", True, 7)
    assert (asked["temperature"], asked["max_tokens"]) == (0.5, 99)


def test_without_a_picture_and_what_is_left_to_the_server():
    with Server(peer.stream()) as server:
        plan_of(server, picture=False, temperature=None)
    asked = server.requests[0][2]
    assert asked["messages"][0]["content"] == system_text(2, 7, False)
    assert asked["messages"][1]["content"] == user_text(QUERY.goal)
    assert "temperature" not in asked and "seed" not in asked


def test_the_picture_is_a_jpeg_of_bounded_size_without_metadata():
    picture = torch.rand(700, 2000, 3)
    before = picture.clone()
    head, _, body = data_url(picture).partition(",")
    image = Image.open(io.BytesIO(base64.b64decode(body)))
    assert head == "data:image/jpeg;base64" and image.format == "JPEG"
    assert max(image.size) == PICTURE_SIDE and not image.getexif()
    assert abs(image.width / image.height - 2000 / 700) < 0.01
    assert picture.equal(before)


def test_the_query_of_a_url_is_sent_and_not_shown():
    with Server(peer.refuse(418)) as server, pytest.raises(Refused) as error:
        asked = settings(f"{server.url}?api-version=s3cret")
        list(write_plan(QUERY, (), asked))
    assert server.requests[0][0] == "/v1/chat/completions?api-version=s3cret"
    assert "s3cret" not in str(error.value) + repr(asked) + repr(asked.completions)


@pytest.mark.parametrize("name", ["key", "api_key", "Token", "client_secret"])
def test_a_key_in_the_url_is_refused_since_the_url_is_saved_with_graphs(name):
    with pytest.raises(KSGenError, match="seems to hold a key") as error:
        settings(f"https://a.example/v1?{name}=s3cret")
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize("host", ["a..b", f"{'a' * 64}.example", "-a.example", "a-.example"])
def test_a_host_that_no_name_server_takes_is_refused(host):
    with pytest.raises(KSGenError, match="no proper host"):
        settings(f"http://{host}/v1")


def test_a_server_that_answers_with_one_document_is_read_as_such():
    with Server(peer.whole()) as server:
        assert len(plan_of(server).steps) == 2


@pytest.mark.parametrize("done, finish", [(True, None), (False, "stop"), (True, "stop")])
def test_either_mark_of_the_end_ends_a_stream(done, finish):
    with Server(peer.stream(done=done, finish=finish)) as server:
        assert len(plan_of(server).steps) == 2


def test_the_last_event_needs_no_blank_line_behind_it():
    with Server(peer.raw(*peer.tokens(PLAN), b"data: [DONE]")) as server:
        assert len(plan_of(server).steps) == 2


def test_comments_thinking_counts_and_other_fields_are_passed_over():
    first = (
        b": PROCESSING\n\nevent: x\nid: 3\n\n" + peer.event(None, reasoning_content="hm") + b'data: {"choices":[]}\n\n'
    )
    with Server(peer.stream(first=first)) as server:
        assert len(plan_of(server).steps) == 2


def test_any_other_type_of_answer_is_refused():
    with Server(peer.raw(b"<html>", kind="text/html")) as server, pytest.raises(KSGenError, match="text/html.*/v1"):
        plan_of(server)
    with Server(peer.raw(b"\x1f\x8b", Content_Encoding="gzip")) as server, pytest.raises(KSGenError, match="gzip"):
        plan_of(server)


@pytest.mark.parametrize(
    "data, said",
    [
        (b"data: {\n\n", "no JSON"),
        (b"data: [1]\n\n", "no JSON object"),
        (b"data: {}\n\n", "choices"),
        (b"data: " + b"[" * 100_000 + b"\n\n", "no JSON"),
        (b"data: " + b"9" * 10_000 + b"\n\n", "no JSON"),
        (b'data: {"choices": [3]}\n\ndata: [DONE]\n\n', "reply is no plan"),
        (b'data: {"choices": [{"delta": 3}]}\n\n', "no text"),
        (b'data: {"choices": [{"delta": {"content": [1]}}]}\n\n', "no text"),
        (b'data: {"choices": [{"delta": {"content": "\xff"}}]}\n\n', "UTF-8"),
        (b'data: {"choices": [{"delta": {"content": "\\ud83d"}}]}\n\ndata: [DONE]\n\n', "half a character"),
        (b'data: {"choices": [{"delta": {"refusal": "I will not"}}]}\n\n', "I will not"),
    ],
)
def test_what_is_no_stream_of_chat_is_refused_with_a_reason(data, said):
    with Server(peer.raw(data)) as server, pytest.raises(KSGenError, match=said):
        plan_of(server)
    assert len(server.requests) == 1


def test_halves_of_a_character_in_two_events_are_put_together():
    reply = '{"steps": [{"text": "pour \U0001f375"}, {"text": "drink"}]}'
    left, right = reply.split("\U0001f375")
    pieces = [peer.event(left), peer.event("\ud83c"), peer.event("\udf75"), peer.event(right, "stop")]
    with Server(peer.raw(*pieces)) as server:
        assert plan_of(server).steps[0].text == "pour \U0001f375"


def test_a_reply_that_is_no_plan_travels_in_the_error():
    with Server(peer.stream("I would rather not.")) as server, pytest.raises(ReplyError) as error:
        plan_of(server)
    assert error.value.raw == "I would rather not." and len(server.requests) == 1


def test_a_reply_that_was_cut_off_says_so():
    with Server(peer.stream(PLAN[:40], finish="length")) as server, pytest.raises(ReplyError, match="max_tokens"):
        plan_of(server)


def test_a_draft_before_the_place_where_a_reply_was_cut_off_is_no_plan():
    draft = f"First idea: {PLAN} but that leaves out the kettle, so I should"
    with Server(peer.stream(draft, finish="length")) as server, pytest.raises(ReplyError, match="draft") as error:
        plan_of(server)
    assert error.value.raw == draft
    with Server(peer.stream(f"```json\n{PLAN}\n```", finish="length")) as server:
        assert len(plan_of(server).steps) == 2


def test_a_server_that_does_not_know_schemas_is_asked_once_more_without(caplog):
    with Server(peer.schema_refused) as server, caplog.at_level(logging.WARNING, "ksgen"):
        assert len(plan_of(server, retries=0).steps) == 2
    assert ["response_format" in asked for _, _, asked in server.requests] == [True, False]
    assert "without the JSON schema" in caplog.text


def test_a_second_400_is_the_answer():
    with Server(peer.refuse(400, "no pictures here")) as server, pytest.raises(Refused, match="no pictures here.*off"):
        plan_of(server)
    assert len(server.requests) == 2


def test_a_stream_in_chunks():
    with Server(peer.chunked()) as server:
        assert len(plan_of(server).steps) == 2


def test_an_answer_before_the_request_is_read():
    # More than the system holds ready for a server that does not read.
    long = Query(QUERY.image, "make tea " * 1_500_000)
    with Server(peer.too_large) as server, pytest.raises(Refused, match="too large") as error:
        list(write_plan(long, (), settings(server, picture=False)))
    assert error.value.status == 413 and len(server.requests) == 1


def test_a_document_that_is_cut_off_is_asked_for_again():
    cut = peer.raw(b'{"choices": [', kind="application/json", Content_Length="100")
    with Server(cut, peer.whole()) as server:
        assert len(plan_of(server).steps) == 2
    assert len(server.requests) == 2


def test_a_server_may_think_for_longer_than_it_may_take_to_connect(monkeypatch):
    monkeypatch.setattr(endpoint_talk, "CONNECT_SECONDS", 0.3)

    def think(handler: peer.Handler) -> None:
        threading.Event().wait(0.9)
        peer.stream()(handler)

    with Server(think) as server:
        assert len(plan_of(server, retries=0).steps) == 2


@pytest.mark.parametrize(
    "first", [peer.refuse(429), peer.refuse(503), peer.hang_up, peer.break_off(), peer.chunked(whole=False)]
)
def test_what_may_pass_is_tried_again(first):
    with Server(first, peer.stream()) as server:
        assert len(plan_of(server).steps) == 2
    assert len(server.requests) == 2


@pytest.mark.parametrize("answer, kind", [(peer.refuse(500), Refused), (peer.hang_up, Unreachable)])
def test_tries_are_bounded(answer, kind):
    with Server(answer) as server, pytest.raises(kind):
        plan_of(server, retries=3)
    assert len(server.requests) == 4


@pytest.mark.parametrize("status", [204, 303, 401, 403, 404, 413, 418])
def test_what_will_not_pass_is_not_tried_again(status):
    with Server(peer.refuse(status)) as server, pytest.raises(Refused, match=str(status)) as error:
        plan_of(server)
    assert len(server.requests) == 1 and error.value.status == status


def test_a_refusal_is_heard_though_it_breaks_off_or_never_ends():
    with Server(peer.refuse(418, "no tea", Content_Length="9999")) as server, pytest.raises(Refused, match="no tea"):
        plan_of(server)

    def scold(handler: peer.Handler) -> None:
        handler.begin(418, "text/plain")
        while True:
            handler.write(b"no tea for you " * 4000)

    with Server(scold) as server, pytest.raises(Refused, match="no tea") as error:
        plan_of(server)
    assert len(str(error.value)) < 500


def test_an_error_inside_a_stream_counts_by_its_code():
    fault = b'data: {"error": {"code": 502, "message": "upstream"}}\n\n'
    with Server(peer.raw(peer.event("{"), fault), peer.stream()) as server:
        assert len(plan_of(server).steps) == 2
    with Server(peer.raw(fault.replace(b"502", b'"bad"'))) as server, pytest.raises(Refused, match="upstream"):
        plan_of(server)
    assert len(server.requests) == 1


def test_the_server_says_how_long_to_wait(monkeypatch):
    waits = []
    monkeypatch.setattr(endpoint_talk, "_pause", lambda seconds: waits.append(seconds) or iter(()))
    with Server(peer.refuse(429, Retry_After="7"), peer.refuse(503), peer.refuse(503), peer.stream()) as server:
        plan_of(server, retries=3, backoff_seconds=1)
    assert waits == [7, 2, 4]
    # A wait that is too long as such, and one that goes beyond all the time there is.
    for header, total in (("61", 900), ("30", 20)):
        with Server(peer.refuse(429, "later", Retry_After=header)) as server, pytest.raises(Refused, match="later"):
            plan_of(server, total_seconds=total)
        assert len(server.requests) == 1 and len(waits) == 3


@pytest.mark.parametrize(
    "header, low, high",
    [("12", 12, 12), ("", 0, 0), ("soon", 0, 0), ("-3", 0, 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0)]
    + [("Wed, 21 Oct 2115 07:28:00 GMT", 1e9, 4e9), ("9" * 400, float("inf"), float("inf"))],
)
def test_retry_after_is_seconds_or_a_date(header, low, high):
    assert low <= endpoint_talk._seconds(header) <= high


def test_a_pause_can_be_cancelled_all_along():
    assert len(list(endpoint_talk._pause(3 * TICK))) >= 3


def test_waiting_is_heard_before_each_try():
    with Server(peer.refuse(503), peer.stream()) as server:
        events = write_plan(QUERY, (), settings(server, backoff_seconds=60))
        for event in events:
            assert event == Writing("", 0, 0)
            if server.requests:
                break
        assert next(events) == Writing("", 0, 0)
        events.close()  # in the middle of a pause of a minute
    assert len(server.requests) == 1


@pytest.mark.parametrize("answer", [peer.stall, peer.stall_within()])
def test_closing_the_planner_closes_the_connection(answer):
    with Server(answer) as server:
        events = write_plan(QUERY, (), settings(server))
        text = "{" if answer is not peer.stall else ""
        while (event := next(events)).text != text or not server.requests:
            assert isinstance(event, Writing)
        assert not server.gone.is_set()
        events.close()
        assert server.gone.wait(20)
    assert len(server.requests) == 1


@pytest.mark.parametrize("answer", [peer.stall, peer.stall_within()])
def test_silence_is_an_error_and_not_tried_again(answer):
    with Server(answer) as server, pytest.raises(KSGenError, match="silent for 0.3 seconds"):
        plan_of(server, timeout_seconds=0.3)
    assert len(server.requests) == 1


def test_a_server_that_dribbles_is_stopped_by_the_whole_time():
    def dribble(handler: peer.Handler) -> None:
        handler.begin()
        while not threading.Event().wait(0.02):
            handler.write(b": still here\n\n")

    with Server(dribble) as server, pytest.raises(KSGenError, match="in time"):
        plan_of(server, total_seconds=0.5)


def test_a_server_that_never_ends_is_stopped_by_the_size():
    def flood(handler: peer.Handler) -> None:
        handler.begin()
        while True:
            handler.write(b": " + b"x" * 65_000 + b"\n\n")

    with Server(flood) as server, pytest.raises(KSGenError, match="more than 4000000 bytes"):
        plan_of(server)


def test_the_size_is_bounded_while_nobody_listens():
    sent = [0]

    def flood(handler: peer.Handler) -> None:
        handler.begin()
        try:
            while True:
                handler.write(b": " + b"x" * 65_000 + b"\n\n")
                sent[0] += 65_000
        finally:
            handler.server.gone.set()

    with Server(flood) as server:
        events = write_plan(QUERY, (), settings(server))
        next(events)
        assert server.gone.wait(60)
    # What the system itself holds ready, on both sides, comes on top.
    assert sent[0] < 40_000_000


def test_a_text_that_never_ends_is_stopped_by_its_length():
    def babble(handler: peer.Handler) -> None:
        handler.begin()
        while True:
            handler.write(peer.event("tea " * 5000))

    with Server(babble) as server, pytest.raises(ReplyError, match="longer than"):
        plan_of(server)


def test_nobody_there():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(Unreachable, match="Is the server running"):
            plan_of(f"http://127.0.0.1:{unused.getsockname()[1]}/v1", retries=1)
    with pytest.raises(Unreachable, match="no host of this name"):
        plan_of("http://nobody.invalid/v1", retries=0)


def test_something_else_there():
    with socket.create_server(("127.0.0.1", 0)) as other:

        def greet() -> None:
            connection, _ = other.accept()
            with connection:
                connection.sendall(b"220 mail.example ESMTP\r\n")
                connection.recv(1_000_000)

        threading.Thread(target=greet, daemon=True).start()
        with pytest.raises(KSGenError, match="does not speak HTTP"):
            plan_of(f"http://127.0.0.1:{other.getsockname()[1]}/v1")


def test_proxies_of_the_environment_are_not_used(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with Server(peer.stream()) as server:
        assert len(plan_of(server).steps) == 2


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_on_the_same_host_is_followed_with_the_same_request(status):
    with Server(peer.redirect("/other/chat", status), peer.stream()) as server:
        assert len(plan_of(server).steps) == 2
    (_, _, first), (path, _, second) = server.requests
    assert path == "/other/chat" and first == second


def test_redirects_to_another_host_are_refused():
    with Server(peer.stream()) as other, Server(peer.redirect(f"{other.url}/x")) as server:
        with pytest.raises(KSGenError, match="not followed"):
            plan_of(server)
        assert not other.requests
    for location in ("http://localhost/v1", "https://127.0.0.1/v1", "file:///etc/passwd", "http://a:b@127.0.0.1/"):
        with Server(peer.redirect(location)) as server, pytest.raises(KSGenError, match="redirects to"):
            plan_of(server)
        assert len(server.requests) == 1


def test_redirects_are_few():
    with Server(peer.redirect("")) as server, pytest.raises(KSGenError, match="more than 3 times"):
        plan_of(server)
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"url": "ftp://127.0.0.1/v1"}, "http"),
        ({"url": ""}, "empty"),
        ({"url": "http://127.0.0.1/v1/chat/completions"}, "without /chat/completions"),
        ({"model": " "}, "model"),
        ({"model": "a\nb"}, "model"),
        ({"fewest": 0}, "fewest"),
        ({"fewest": 5, "most": 4}, "fewest"),
        ({"most": 1000}, "most"),
        ({"done": "boil"}, "done"),
        ({"done": ("",)}, "done"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"seed": True}, "seed"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"timeout_seconds": 0}, "timeout_seconds"),
        ({"total_seconds": float("inf")}, "total_seconds"),
        ({"retries": 11}, "retries"),
        ({"backoff_seconds": -1}, "backoff_seconds"),
    ],
)
def test_nonsense_is_refused_before_anything_is_sent(changes, said):
    with pytest.raises(KSGenError, match=said):
        EndpointSettings(**{"url": "http://127.0.0.1:1/v1", "model": "m", **changes})


def test_settings_survive_equality_and_openais_own_host_is_asked_in_its_words():
    asked = EndpointSettings("https://api.openai.com/v1/", "gpt")
    assert asked == EndpointSettings("https://api.openai.com/v1/", "gpt")
    assert asked.completions.shown == "https://api.openai.com/v1/chat/completions"
    from ksgen_core.planning.endpoint import _request

    assert "max_completion_tokens" in json.dumps(_request(QUERY, (), asked))
