"""The reader of event streams: the same events however the bytes are cut, and no crash on any bytes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ksgen_core.errors import KSGenError
from ksgen_core.planning.chat_reply import EventReader, Piece, ServerFault, error_words, read_chunk, read_whole

LINE_ENDS = st.sampled_from(["\n", "\r\n", "\r"])
LINES = st.one_of(
    st.text(st.characters(blacklist_characters="\r\n", blacklist_categories=["Cs"]), max_size=12).map("data:{}".format),
    st.sampled_from(["", "data", "data: [DONE]", ": comment", "event: x", "id:1", "retry: 3", "other", "data:  two"]),
)


def events(data: bytes, cuts: list[int]) -> list[str]:
    reader, found = EventReader(), []
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        found += reader.feed(data[start:end])
    return found + reader.end()


def by_the_standard(lines: list[str]) -> list[str]:
    """The events of whole lines, written down a second time from the HTML standard, 9.2.6."""
    found, data = [], []
    for line in [*lines, ""]:
        name, _, value = line.partition(":")
        if line and name == "data" and ":" in line:
            data.append(value[1:] if value.startswith(" ") else value)
        if not line and data:
            found.append("\n".join(data))
            data = []
    return found


@settings(deadline=None)
@given(st.lists(st.tuples(LINES, LINE_ENDS), max_size=20), st.data())
def test_events_are_the_same_however_the_bytes_are_cut(parts, data):
    lines = [line for line, _ in parts]
    raw = "".join(line + end for line, end in parts).encode()
    # A bare carriage return before a bare line feed is one line end, and takes the blank line between them away.
    if b"\r\n" in raw.replace(b"\r\n", b"") or any(
        a[1] == "\r" and b == ("", "\n") for a, b in zip(parts, parts[1:], strict=False)
    ):
        lines = raw.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n")[:-1]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=10)))
    assert events(raw, cuts) == by_the_standard(lines)
    assert events(raw, list(range(1, len(raw)))) == by_the_standard(lines)


def test_a_byte_order_mark_is_no_part_of_the_first_field():
    assert events("\ufeffdata: a\n\ndata: \ufeffb\n\n".encode(), [1, 2]) == ["a", "\ufeffb"]


@settings(deadline=None)
@given(st.binary(max_size=200), st.data())
def test_no_bytes_crash_the_reader(raw, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=10)))
    results = []
    for where in (cuts, []):
        try:
            results.append(events(raw, where))
        except KSGenError as error:
            results.append(str(error))
    assert results[0] == results[1]
    if "not UTF-8" not in str(results[0]):
        raw.decode()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "delta", "message", "content", "error", "code", "finish_reason", "refusal"]),
            inner,
        )
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(JSON)
def test_no_document_crashes_the_reader(document):
    text = json.dumps(document)
    for read, data in ((read_chunk, text), (read_whole, text.encode())):
        try:
            piece = read(data)
            assert isinstance(piece, Piece) and isinstance(piece.text, str) and isinstance(piece.finish, str)
        except ServerFault as fault:
            assert isinstance(fault.code, int) and isinstance(fault.words, str)
        except KSGenError:
            pass
    assert isinstance(error_words(text.encode()), str)


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_no_refusal_crashes_the_reader(raw):
    assert isinstance(error_words(raw), str)


@pytest.mark.parametrize(
    "body, words",
    [
        (b'{"error": {"message": "too long", "code": "x"}}', "too long"),
        (b'{"error": "model not found"}', "model not found"),
        (b'{"detail": "Not Found"}', "Not Found"),
        (b'{"detail": [{"loc": ["body"]}]}', '[{"loc": ["body"]}]'),
        (b'{"object": "error", "message": "vLLM says so"}', "vLLM says so"),
        (b"Bad Gateway", "Bad Gateway"),
        (b"[1]", "[1]"),
        (b"\xff", "\ufffd"),
    ],
)
def test_the_words_of_servers_refusals_are_found(body, words):
    assert error_words(body) == words
