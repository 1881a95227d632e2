"""The vectors of a library are kept by content, through changes, damage and two processes at once."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tiny_bert import WORDS, make_folder

from ksgen_core.retrieval import index
from ksgen_core.retrieval.embed import Embedding
from ksgen_core.retrieval.index import VectorIndex

DOCUMENTS = [(f"make {a} {b}", f"{b} with {a}") if a < b else (f"make {a} {b}",) for a in WORDS for b in WORDS]


class Counting:
    """An embedding that keeps what it was asked; `stop_after` texts it is interrupted."""

    def __init__(self, embedding: Embedding, stop_after: int | None = None) -> None:
        self.embedding, self.id, self.width = embedding, embedding.id, embedding.width
        self.asked: list[str] = []
        self.stop_after = stop_after

    def __call__(self, texts: Sequence[str], kind: str = "document") -> np.ndarray:
        if self.stop_after is not None and len(self.asked) + len(texts) > self.stop_after:
            raise KeyboardInterrupt
        self.asked += texts
        return self.embedding(texts, kind)


@pytest.fixture(scope="module")
def embedding(tmp_path_factory) -> Embedding:
    return Embedding(make_folder(tmp_path_factory.mktemp("bert")))


@pytest.fixture
def counting(embedding) -> Counting:
    return Counting(embedding)


def test_a_document_points_where_its_texts_do_on_the_average(embedding):
    got = VectorIndex(embedding).of_library(DOCUMENTS)
    for document, vector in list(zip(DOCUMENTS, got, strict=True))[:40]:
        mean = embedding(document).mean(0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=2e-6)


def test_only_what_is_new_or_changed_is_embedded_again(counting, tmp_path):
    first = VectorIndex(counting, tmp_path).of_library(DOCUMENTS)
    assert len(counting.asked) == sum(map(len, DOCUMENTS))
    counting.asked.clear()

    again = VectorIndex(counting, tmp_path).of_library(DOCUMENTS[::-1])
    np.testing.assert_array_equal(again, first[::-1])
    assert counting.asked == []

    changed = [("pour tea",), *DOCUMENTS[1:], ("cut egg", "cut the egg"), ("cut egg", "cut the egg")]
    got = VectorIndex(counting, tmp_path).of_library(changed)
    assert counting.asked == ["pour tea", "cut egg", "cut the egg"]
    np.testing.assert_array_equal(got[1:-2], first[1:])
    assert len(list(tmp_path.iterdir())) == 1


def test_another_embedding_has_a_file_of_its_own(counting, tmp_path):
    other = Counting(Embedding(make_folder(tmp_path / "other", seed=9)))
    mine = VectorIndex(counting, tmp_path / "index").of_library(DOCUMENTS[:5])
    theirs = VectorIndex(other, tmp_path / "index").of_library(DOCUMENTS[:5])
    assert len(list((tmp_path / "index").iterdir())) == 2 and not np.allclose(mine, theirs, atol=0.01)


def test_queries_are_not_kept_and_without_a_folder_nothing_is(counting, tmp_path):
    kept, loose = VectorIndex(counting, tmp_path), VectorIndex(counting)
    np.testing.assert_array_equal(kept.of_query("make tea"), counting.embedding(["make tea"])[0])
    assert list(tmp_path.iterdir()) == []
    loose.of_library(DOCUMENTS[:3])
    loose.of_library(DOCUMENTS[:3])
    assert loose.path is None and len(counting.asked) == 1 + 2 * sum(map(len, DOCUMENTS[:3]))


def test_an_empty_library_has_no_vectors(counting, tmp_path):
    assert VectorIndex(counting, tmp_path).of_library([]).shape == (0, 12)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]


def of_another_kind(data: bytes) -> bytes:
    return data.replace(b"ksgen.vectors/1", b"ksgen.vectors/9")


@pytest.mark.parametrize("damage", [cut, flipped, of_another_kind, lambda _: b"", lambda _: b"\x80\x04 a pickle"])
def test_a_broken_index_is_built_again_with_a_warning(counting, tmp_path, caplog, damage):
    first = VectorIndex(counting, tmp_path)
    wanted = first.of_library(DOCUMENTS)
    path = first.path
    assert path is not None
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING, "ksgen"):
        got = VectorIndex(counting, tmp_path).of_library(DOCUMENTS)
    np.testing.assert_allclose(got, wanted, atol=2e-6)
    assert str(path) in caplog.text and "built again" in caplog.text
    caplog.clear()
    counting.asked.clear()
    np.testing.assert_array_equal(VectorIndex(counting, tmp_path).of_library(DOCUMENTS), got)
    assert not caplog.text and not counting.asked


def test_an_index_that_cannot_be_written_costs_a_warning_and_nothing_else(counting, tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    blocked = VectorIndex(counting, tmp_path / "file")
    np.testing.assert_array_equal(blocked.of_library(DOCUMENTS[:4]), VectorIndex(counting).of_library(DOCUMENTS[:4]))
    assert "not kept" in caplog.text


def test_what_was_embedded_before_a_stop_is_kept(embedding, tmp_path, monkeypatch):
    monkeypatch.setattr(index, "CHUNK", 10)
    stopped = Counting(embedding, stop_after=60)
    with pytest.raises(KeyboardInterrupt):
        VectorIndex(stopped, tmp_path).of_library(DOCUMENTS)
    resumed = Counting(embedding)
    got = VectorIndex(resumed, tmp_path).of_library(DOCUMENTS)
    assert 0 < len(stopped.asked) and len(stopped.asked) + len(resumed.asked) == sum(map(len, DOCUMENTS))
    np.testing.assert_allclose(got, VectorIndex(embedding).of_library(DOCUMENTS), atol=2e-6)


def test_the_file_does_not_grow_for_ever(counting, tmp_path, monkeypatch):
    monkeypatch.setattr(index, "MOST_KEPT", 30)
    keep = VectorIndex(counting, tmp_path)
    keep.of_library(DOCUMENTS[:25])
    keep.of_library(DOCUMENTS[20:40])
    counting.asked.clear()
    keep.of_library(DOCUMENTS[20:40])
    assert counting.asked == [], "those of the last library are kept"
    keep.of_library(DOCUMENTS[:1])
    assert counting.asked == list(DOCUMENTS[0])


CHILD = """
import json, sys
root, bert, folder = sys.argv[1:4]
sys.path.insert(0, root)
import torch
torch.set_num_threads(1)
from ksgen_core.retrieval import index
from ksgen_core.retrieval.embed import Embedding
index.CHUNK = 16
embedding, part = Embedding(bert), json.load(sys.stdin)
for end in range(8, len(part), 8):
    index.VectorIndex(embedding, folder).of_library(part[:end])
"""


def test_two_processes_leave_a_whole_index(embedding, tmp_path, caplog):
    """Both write some twenty times, as fast as they can; no reader may ever see a broken file."""
    command = [sys.executable, "-c", CHILD, Path(__file__).parent.parent, embedding.folder, tmp_path]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    both = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for n, process in enumerate(both):
        assert process.stdin is not None
        process.stdin.write(json.dumps(DOCUMENTS[n::2]))
        process.stdin.close()
    outputs = [process.stdout.read() for process in both if process.stdout]
    for process in both:
        process.wait()
    assert [process.returncode for process in both] == [0, 0], outputs
    assert "broken" not in "".join(outputs)
    counting = Counting(embedding)
    got = VectorIndex(counting, tmp_path).of_library(DOCUMENTS)
    np.testing.assert_allclose(got, VectorIndex(embedding).of_library(DOCUMENTS), atol=2e-6)
    assert len(counting.asked) < sum(map(len, DOCUMENTS)), "nothing of what they embedded was kept"
    assert not caplog.text and len(list(tmp_path.iterdir())) == 1


def test_unlike_goals_are_the_embeddings_zero(embedding):
    vectors = embedding(index.UNLIKE)
    pairs = [a @ b for n, a in enumerate(vectors) for b in vectors[:n]]
    assert VectorIndex(embedding).unlike == pytest.approx(np.mean(pairs), abs=1e-5)
