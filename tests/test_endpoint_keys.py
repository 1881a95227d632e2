"""Keys: where they come from, where they go, and that they are found nowhere else, whatever server or file does."""

from __future__ import annotations

import json
import logging
import shutil
import ssl
import subprocess
import traceback
from pathlib import Path

import openai_server as peer
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from openai_server import PLAN, Server

from ksgen_core.errors import KSGenError
from ksgen_core.pipeline import Planned
from ksgen_core.planning.address import read_address
from ksgen_core.planning.endpoint import EndpointSettings, Refused, write_plan
from ksgen_core.planning.endpoint_keys import MOST_BYTES, PIECE, Key, holds, key_for, scrub
from ksgen_core.planning.endpoint_talk import redirected
from ksgen_core.types import Query

KEY = "sk-Zq7Wv2Lm9Xt4Rb6Ny8Hc3Jd5"
QUERY = Query(torch.zeros(16, 16, 3), "make a cup of tea")
OPENAI = read_address("https://api.openai.com/v1")


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for name in ("OPENAI_API_KEY", "KSGEN_API_KEY", "KSGEN_API_HOST"):
        monkeypatch.delenv(name, raising=False)


def keys_file(folder: Path, entries: object) -> Path:
    path = folder / "keys.json"
    path.write_text(entries if isinstance(entries, str) else json.dumps(entries), encoding="utf-8")
    return path


def asked(server: Server, folder: Path, **changes) -> EndpointSettings:
    file = keys_file(folder, {server.place: KEY})
    common = {"picture": False, "backoff_seconds": 0.01, "timeout_seconds": 20.0, "retries": 1, "keys_file": file}
    return EndpointSettings(**{"url": server.url, "model": "tea-1", **common, **changes})


def all_of(error: BaseException | None) -> str:
    """Everything that an error and what it is chained to carry, shown or not."""
    parts = []
    while error is not None:
        parts += [*traceback.format_exception(error), repr(error), repr(error.args), repr(vars(error))]
        # A JSON or Unicode error keeps the text it has failed on.
        parts += [repr(getattr(error, name, "")) for name in ("doc", "object", "line", "reason", "filename")]
        error = error.__cause__ or error.__context__
    return "\n".join(parts)


def has_none_of(text: str, key: str = KEY) -> bool:
    return not any(key[i : i + PIECE] in text for i in range(len(key) - PIECE + 1))


# Where keys come from, and where they go


def test_the_key_goes_to_its_server_and_into_nothing_that_comes_back(tmp_path, caplog):
    with Server(peer.refuse(503), peer.stream()) as server, caplog.at_level(logging.DEBUG):
        settings = asked(server, tmp_path)
        events = list(write_plan(QUERY, (), settings))
    assert [headers["Authorization"] for _, headers, _ in server.requests] == [f"Bearer {KEY}"] * 2
    assert has_none_of(json.dumps([body for *_, body in server.requests]))
    assert "503" in caplog.text
    assert isinstance(events[-1], Planned)
    assert has_none_of(f"{events} {events[-1].plan.to_json()} {settings} {caplog.text}")


def test_no_key_goes_to_another_port(tmp_path):
    with Server(peer.stream()) as server, Server(peer.stream()) as other:
        list(write_plan(QUERY, (), asked(server, tmp_path, url=other.url)))
    assert "Authorization" not in other.requests[0][1]


@pytest.mark.parametrize(
    "entry, url, found",
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000/v1", True),
        ("127.0.0.1", "http://127.0.0.1/v1", True),
        ("127.0.0.1", "http://127.0.0.1:8000/v1", False),
        ("127.0.0.1:8000", "http://127.0.0.1/v1", False),
        ("Tea.Example", "https://TEA.example/v1", True),
        ("tea.example:443", "https://tea.example/v1", True),
        ("tea.example", "https://tea.example:443/v1", True),
        ("tea.example", "https://tea.example:8443/v1", False),
        ("tea.example:80", "https://tea.example/v1", False),
        ("tea.example", "https://tea.example.evil.example/v1", False),
        ("tea.example", "https://sub.tea.example/v1", False),
        ("tea.example", "https://evil.example/tea.example", False),
        ("tea.example", "https://evil.example/?tea.example", False),
        ("[::1]:8000", "http://[::1]:8000/v1", True),
        ("[0:0:0:0:0:0:0:1]:8000", "http://[::1]:8000/v1", True),
        ("localhost:1", "http://localhost:1", True),
    ],
)
def test_an_entry_is_for_one_host_and_port(tmp_path, entry, url, found):
    key = key_for(read_address(url), keys_file(tmp_path, {"other.example": "x" * 20, entry: KEY}), {})
    assert (key is not None and key.value == KEY) is found


def test_the_more_exact_entry_and_the_file_come_first(tmp_path):
    file = keys_file(tmp_path, {"api.openai.com": "general", "api.openai.com:443": "exact"})
    environment = {"OPENAI_API_KEY": KEY, "KSGEN_API_KEY": "own", "KSGEN_API_HOST": "api.openai.com"}
    for path, value in ((file, "exact"), (tmp_path / "none.json", KEY), (None, KEY)):
        key = key_for(OPENAI, path, environment)
        assert key is not None and key.value == value


@pytest.mark.parametrize(
    "url",
    [
        "http://api.openai.com/v1",
        "https://api.openai.com:8443/v1",
        "https://api.openai.com.evil.example/v1",
        "https://evil.example/api.openai.com",
        "https://eu.api.openai.com/v1",
        "https://openrouter.ai/api/v1",
        "http://127.0.0.1:8000/v1",
    ],
)
def test_openais_key_goes_to_openai_over_https_alone(url):
    key = key_for(OPENAI, None, {"OPENAI_API_KEY": KEY})
    assert key is not None and (key.value, key.source) == (KEY, "OPENAI_API_KEY")
    assert key_for(read_address(url), None, {"OPENAI_API_KEY": KEY}) is None


def test_the_packs_own_variables_name_key_and_host_together():
    address = read_address("https://openrouter.ai/api/v1")
    both = {"KSGEN_API_KEY": KEY, "KSGEN_API_HOST": "openrouter.ai"}
    key = key_for(address, None, both)
    assert key is not None and key.value == KEY
    for name in both:
        assert key_for(address, None, {name: both[name]}) is None
    assert key_for(OPENAI, None, both) is None
    with pytest.raises(KSGenError, match="KSGEN_API_HOST must be") as error:
        key_for(address, None, {"KSGEN_API_KEY": "openrouter.ai", "KSGEN_API_HOST": f"https://{KEY}"})
    assert has_none_of(all_of(error.value))


def test_the_environment_is_read_when_the_planner_is_asked(tmp_path, monkeypatch):
    with Server(peer.stream()) as server:
        settings = asked(server, tmp_path, keys_file=None)
        monkeypatch.setenv("KSGEN_API_KEY", KEY)
        monkeypatch.setenv("KSGEN_API_HOST", server.place)
        list(write_plan(QUERY, (), settings))
    assert server.requests[0][1]["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("url", ["http://tea.example/v1", "http://192.168.1.7/v1", "http://0.0.0.0/v1"])
def test_a_key_does_not_travel_readable(tmp_path, url):
    address = read_address(url)
    with pytest.raises(KSGenError, match="would travel over http") as error:
        key_for(address, keys_file(tmp_path, {address.place: KEY}), {})
    assert has_none_of(all_of(error.value))
    with pytest.raises(KSGenError, match="would travel over http"):
        key_for(address, None, {"KSGEN_API_KEY": KEY, "KSGEN_API_HOST": address.place})
    assert key_for(address, None, {}) is None


@pytest.mark.parametrize("url", ["http://127.0.0.1/v1", "http://127.8.0.1/", "http://[::1]/", "http://localhost/v1"])
def test_a_machine_may_tell_itself(tmp_path, url):
    address = read_address(url)
    assert key_for(address, keys_file(tmp_path, {address.place: KEY}), {}) is not None


@pytest.mark.parametrize("value", ["", f"{KEY}\nX-Other: 1", f" {KEY}", f"{KEY}\u00e9", f"{KEY} "])
def test_a_key_that_fits_no_header_is_refused(tmp_path, value):
    with pytest.raises(KSGenError, match="Copy it again") as error:
        key_for(OPENAI, keys_file(tmp_path, {"api.openai.com": value}), {})
    assert has_none_of(all_of(error.value))


# Broken keys files


@pytest.mark.parametrize(
    "content, said",
    [
        (f'{{\n "a.example": "{KEY}"\n "b.example": "x"}}', "line 3"),
        (f'{{"a.example": "{KEY}', "line 1"),
        (f'\n\n{{"a.example": "{KEY}"}} {KEY}', "line 3"),
        ("", "line 1"),
        ("[" * 100_000, "line 1"),
        (f'["{KEY}"]', "one JSON object"),
        (f'"{KEY}"', "one JSON object"),
        (f'{{"a.example": {{"key": "{KEY}"}}}}', "entry 1: the key must be a text"),
        (f'{{"a.example": "x", "{KEY}/": "b.example"}}', "entry 2: the name must be"),
        (f'{{"https://a.example": "{KEY}"}}', "entry 1: the name must be"),
        (f'{{"a.example": "{KEY}", "a.example": "{KEY}"}}', "entry 2: this name is there twice"),
        ("x" * (MOST_BYTES + 1), "bytes"),
    ],
)
def test_a_broken_keys_file_is_named_and_not_repeated(tmp_path, content, said):
    file = keys_file(tmp_path, content)
    with pytest.raises(KSGenError, match=said) as error:
        key_for(OPENAI, file, {})
    assert str(file) in str(error.value) and has_none_of(all_of(error.value))


def test_keys_files_of_other_encodings(tmp_path):
    file = tmp_path / "keys.json"
    file.write_bytes(b'\xef\xbb\xbf{"api.openai.com": "%b"}' % KEY.encode())
    assert key_for(OPENAI, file, {}) is not None
    file.write_bytes(b'{\n"api.openai.com": "%b\xff"}' % KEY.encode())
    with pytest.raises(KSGenError, match="line 2") as error:
        key_for(OPENAI, file, {})
    assert has_none_of(all_of(error.value))


def test_a_keys_file_that_cannot_be_read(tmp_path):
    with pytest.raises(KSGenError, match="cannot be read"):
        key_for(OPENAI, tmp_path, {})


# URLs


@pytest.mark.parametrize(
    "url",
    [
        f"https://{KEY}@api.openai.com/v1",
        f"https://user:{KEY}@api.openai.com/v1",
        f"https://api.openai.com\\@{KEY}/v1",
        f"https://api.openai.com:{KEY}/v1",
        f"https://api.openai.com/v1#{KEY}",
        f"https://api.openai.com/v1 {KEY}",
        f"https://api.openai.com/v1\r\nX: {KEY}",
        f"https:/{KEY}",
        f"https://{KEY}%2e/v1",
        f"{KEY}://x/v1",
        f"https://\u24d0pi.openai.com/{KEY}",
        f"https://[{KEY}]/v1",
        f"https://a..:70000/{KEY}",
        "https:///v1",
        "https://-a.example/v1",
    ],
)
def test_urls_that_hide_something_are_refused_and_not_repeated(url):
    with pytest.raises(KSGenError) as error:
        EndpointSettings(url, "m")
    assert has_none_of(all_of(error.value))


def test_a_password_in_a_url_is_told_where_it_belongs():
    with pytest.raises(KSGenError, match="a user or a password.*keys file") as error:
        EndpointSettings(f"https://user:{KEY}@127.0.0.1/v1", "m")
    assert has_none_of(all_of(error.value))


# Servers that give keys away


@pytest.mark.parametrize(
    "answer",
    [
        peer.echo_key(401),
        peer.echo_key(400),
        peer.echo_key(503),
        peer.echo_key(401, "x" * 290 + "{}"),
        peer.echo_key(401, "{} {}"),
        peer.raw(KEY.encode(), status=403, kind="text/plain"),
        peer.raw(KEY[:20].encode(), status=403, kind="text/plain"),
        peer.raw(f"...{KEY[9:]} is wrong".encode(), status=403, kind="text/plain"),
        peer.raw(b"x", kind=KEY),
        peer.raw(b"x", Content_Encoding=KEY),
        peer.raw(status=302, Location=f"/{KEY}/chat"),
        peer.raw(status=302, Location=f"https://{KEY}.evil.example/"),
        peer.raw(status=302, Location=f"https://a:{KEY}@evil.example/"),
        peer.raw(status=429, Retry_After=KEY),
        peer.raw(f'data: {{"error": {{"message": "{KEY}", "code": 500}}}}\n\n'.encode()),
        peer.raw(f'data: {{"error": "{KEY}"}}\n\n'.encode()),
        peer.raw(f"data: {KEY}\n\n".encode()),
        peer.raw(f"data: {KEY}".encode() + b"\xff\n\n"),
        peer.raw(KEY.encode(), kind="application/json"),
        peer.stream(KEY),
        peer.stream(f"Your key is {KEY}!"),
        peer.stream(f"{'Words before it. ' * 20}{KEY}"),
        peer.stream(PLAN.replace("fill the kettle", f"write {KEY}")),
        peer.stream(PLAN.replace("fill the kettle", "".join(f"\\u{ord(c):04x}" for c in KEY))),
        peer.stream(json.dumps({"".join(KEY): 1})),
        peer.stream(f'{{"steps": [{{"text": "\\u0073{KEY[1:]}", "x": 1}}]}}'),
        peer.whole(PLAN.replace("fill the kettle", f"write {KEY}")),
    ],
)
def test_a_server_that_repeats_the_key_is_not_repeated(tmp_path, caplog, answer):
    with Server(answer) as server, caplog.at_level(logging.DEBUG):
        events = []
        with pytest.raises(KSGenError) as error:
            for event in write_plan(QUERY, (), asked(server, tmp_path)):
                events.append(event)
    assert server.requests[0][1]["Authorization"] == f"Bearer {KEY}"
    assert has_none_of(str(error.value)) and has_none_of(all_of(error.value))
    assert has_none_of(caplog.text) and has_none_of(repr(events))


def test_a_status_line_that_repeats_the_key(tmp_path):
    def answer(handler: peer.Handler) -> None:
        handler.write(f"{KEY} 200 OK\r\n\r\n".encode())

    with Server(answer) as server, pytest.raises(KSGenError, match="does not speak HTTP") as error:
        list(write_plan(QUERY, (), asked(server, tmp_path)))
    assert has_none_of(all_of(error.value))


def test_who_is_refused_hears_which_key_was_meant(tmp_path):
    with Server(peer.refuse(401)) as server:
        settings = asked(server, tmp_path)
        with pytest.raises(Refused, match=r"The key came from the keys file .*keys\.json"):
            list(write_plan(QUERY, (), settings))
        keys_file(tmp_path, {})
        with pytest.raises(Refused, match=r"No key was sent.*keys\.json under '127\.0\.0\.1:\d+'"):
            list(write_plan(QUERY, (), settings))


def test_a_short_key_is_a_word_that_replies_may_hold(tmp_path):
    with Server(peer.stream(PLAN.replace("the kettle", "none"))) as server:
        keys_file(tmp_path, {server.place: "none"})
        settings = EndpointSettings(server.url, "m", picture=False, keys_file=tmp_path / "keys.json")
        assert isinstance(list(write_plan(QUERY, (), settings))[-1], Planned)


def test_reprs_hold_no_key():
    key = Key(KEY, "somewhere")
    assert has_none_of(f"{key} {key!r} {[key]} {EndpointSettings(f'http://a.example/?v={KEY}', 'm')}")
    assert key == Key(KEY, "somewhere") != Key("other", "somewhere")


@hypothesis_settings(deadline=None)
@given(
    st.text("abc123-_", min_size=1, max_size=40), st.text("abc123-_ ", max_size=30), st.text("abc123-_ ", max_size=30)
)
def test_scrubbing_leaves_no_piece_of_a_key_and_the_rest_alone(key, before, after):
    scrubbed = scrub(f"{before} {key} {after}", Key(key, ""))
    size = min(PIECE, len(key))
    # Not within the words put in its place.
    for part in scrubbed.split("[key]"):
        assert not any(key[i : i + size] in part for i in range(len(key) - size + 1))
    assert scrub("[({?+*", Key(key, "")) == "[({?+*" and scrub(before, None) == before
    assert holds(before + key, Key(key, "")) is (len(key) >= PIECE)


# Redirects: a key is looked up anew for each address


def led(url: str, location: str) -> str:
    there = redirected(read_address(url), location, None)
    return f"{there.scheme}://{there.place}{there.target}"


def test_a_redirect_may_lead_to_tls_on_the_same_host():
    assert led("http://tea.example/v1", "https://tea.example/v2?x=1") == "https://tea.example/v2?x=1"
    assert led("https://tea.example:8443/v1/chat", "models") == "https://tea.example:8443/v1/models"


@pytest.mark.parametrize(
    "url, location",
    [
        ("https://tea.example/v1", "http://tea.example/v1"),
        ("https://tea.example/v1", "https://tea.example:8443/v1"),
        ("http://tea.example:8000/v1", "https://tea.example/v1"),
        ("http://tea.example/v1", "https://evil.example/v1"),
        ("https://tea.example/v1", "//evil.example/v1"),
        ("https://tea.example/v1", "https://tea.example@evil.example/v1"),
        ("https://tea.example/v1", "\\\\evil.example/v1#x"),
        ("https://tea.example/v1", "https://[bad/"),
    ],
)
def test_a_redirect_leads_to_no_other_host_port_or_lesser_scheme(url, location):
    with pytest.raises(KSGenError, match="redirects to"):
        led(url, location)


def test_no_key_and_no_request_reaches_where_a_redirect_leads(tmp_path):
    with Server(peer.stream()) as other, Server(peer.redirect(f"{other.url}/chat/completions")) as server:
        file = keys_file(tmp_path, {server.place: KEY, other.place: "another-key-of-the-other"})
        with pytest.raises(KSGenError, match="not followed"):
            list(write_plan(QUERY, (), asked(server, tmp_path, keys_file=file)))
    assert not other.requests


def test_a_redirect_to_a_url_that_holds_the_key_is_not_followed(tmp_path):
    answers = (peer.redirect(f"/{KEY}/chat"), peer.refuse(418))
    with Server(*answers) as server, pytest.raises(KSGenError, match="holds the key") as error:
        list(write_plan(QUERY, (), asked(server, tmp_path)))
    assert len(server.requests) == 1 and has_none_of(all_of(error.value))


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    openssl = shutil.which("openssl")
    if not openssl:
        pytest.skip("needs the program openssl")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        + ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
        + ["-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        check=True,
        capture_output=True,
    )
    return folder


@pytest.fixture
def tls(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    return context


def test_a_certificate_that_is_not_trusted_gets_no_request(tmp_path, tls):
    with Server(peer.stream(), tls=tls) as server, pytest.raises(KSGenError, match="certificate is not trusted"):
        list(write_plan(QUERY, (), asked(server, tmp_path)))
    assert not server.requests


def test_a_trusted_certificate_and_the_key_over_it(tmp_path, tls, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
    with Server(peer.stream(), tls=tls) as server:
        assert isinstance(list(write_plan(QUERY, (), asked(server, tmp_path)))[-1], Planned)
    assert server.requests[0][1]["Authorization"] == f"Bearer {KEY}"


def test_closing_the_planner_closes_a_tls_connection(tmp_path, tls, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
    with Server(peer.stall_within(), tls=tls) as server:
        events = write_plan(QUERY, (), asked(server, tmp_path))
        next(event for event in events if getattr(event, "text", ""))
        events.close()
        assert server.gone.wait(20)


def test_a_server_without_tls_is_said_to_be_one(tmp_path):
    with Server(peer.stream()) as server, pytest.raises(KSGenError, match="TLS"):
        list(write_plan(QUERY, (), asked(server, tmp_path, url=server.url.replace("http", "https"))))
    assert not server.requests
