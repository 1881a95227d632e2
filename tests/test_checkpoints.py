"""Weights files say what they are, and bad ones are refused by name."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ksgen_core.checkpoints import (
    load_weights,
    read_metadata,
    read_tensors,
    rename_weights,
    save_weights,
    write_atomically,
    write_folder,
)
from ksgen_core.checkpoints_diffusers import check_folder
from ksgen_core.errors import KSGenError

KIND = "ksgen.test/1"
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "deep" / "w.safetensors"
    shared = torch.rand(3, 4)
    save_weights(path, {"a": shared, "b": shared.t(), "c": torch.rand(2).half()}, KIND, {"width": 4, "names": ["x"]})
    return path


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path):
    tensors = {"a": torch.rand(3, 4), "b": torch.rand(5).bfloat16(), "n": torch.arange(3)}
    save_weights(tmp_path / "w.safetensors", tensors, KIND, {"width": 4})
    loaded, config = load_weights(tmp_path / "w.safetensors", KIND)
    assert config == {"width": 4} and loaded.keys() == tensors.keys()
    assert all(loaded[name].dtype == t.dtype and loaded[name].equal(t) for name, t in tensors.items())
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_tied_and_transposed_tensors_are_written_whole(weights):
    loaded, config = load_weights(weights, KIND)
    assert loaded["b"].equal(loaded["a"].t()) and config["names"] == ["x"]


def refused(path, says, kind=KIND):
    with pytest.raises(KSGenError, match=says) as error:
        load_weights(path, kind)
    assert str(path) in str(error.value)


def test_bad_files_are_refused_by_name(weights, tmp_path):
    refused(tmp_path / "no.safetensors", "missing")
    refused(tmp_path, "missing")
    refused(weights, "holds ksgen.test/1, wanted ksgen.other/1", kind="ksgen.other/1")

    plain = tmp_path / "plain.safetensors"
    save_file({"a": torch.rand(2)}, plain)
    refused(plain, "no kind")
    for count in (0, 5, 40, weights.stat().st_size - 1):
        (tmp_path / "cut.safetensors").write_bytes(weights.read_bytes()[:count])
        refused(tmp_path / "cut.safetensors", "cut off")
    (tmp_path / "pickle.safetensors").write_bytes(pickle.dumps({"a": 1}))
    refused(tmp_path / "pickle.safetensors", "not a safetensors")
    torch.save({"a": torch.rand(2)}, tmp_path / "torch.safetensors")
    refused(tmp_path / "torch.safetensors", "not a safetensors")
    (tmp_path / "list.safetensors").write_bytes((2).to_bytes(8, "little") + b"[]")
    refused(tmp_path / "list.safetensors", "not a safetensors")


F32 = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
READERS = (
    lambda path: load_weights(path, KIND),
    read_tensors,
    read_metadata,
    lambda path: rename_weights([path], path.with_name("out.safetensors"), lambda names: {n: n for n in names}, {}),
)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("header", "count"),
    [
        ({"a": F32}, 24),
        ({"a": F32}, 8),
        ({}, 8),
        ({"a": {"dtype": "F32", "shape": [4]}}, 16),
        ({"a": {**F32, "data_offsets": [16]}}, 16),
        ({"a": {**F32, "data_offsets": [4, 20]}}, 20),
        ({"a": {**F32, "shape": [3]}}, 16),
        ({"a": {**F32, "dtype": "F33"}}, 16),
        ({"a": 5}, 16),
        ({"a": F32, "__metadata__": {"kind": {}}}, 16),
    ],
)
def test_a_header_that_does_not_fit_its_file_is_refused_by_every_reader(tmp_path, header, count, read):
    text = json.dumps({"__metadata__": {"kind": KIND}, **header}).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(count))
    with pytest.raises(KSGenError, match="w.safetensors is cut off or damaged .* bytes: .* Get the file again"):
        read(path)
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]


@pytest.mark.parametrize("read", READERS[1:])
def test_a_file_without_metadata_or_tensors_is_a_file(tmp_path, read):
    text = b'{"__metadata__":null}   '
    (tmp_path / "w.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    assert not read(tmp_path / "w.safetensors")


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "deep" / "models"

    def fill(text, error=None):
        def write(new):
            assert new.name == "models" and not list(new.iterdir())
            (new / "a.txt").write_text(text)
            if error:
                raise error

        return write

    with pytest.raises(KSGenError, match="models cannot be written .*No space left"):
        write_folder(folder, fill("half", OSError(28, "No space left on device")))
    assert list(folder.parent.iterdir()) == []
    write_folder(folder, fill("first"))
    write_folder(folder, fill("second"))
    assert (folder / "a.txt").read_text() == "first"
    for error, shown in (
        (OSError(28, "No space left on device"), KSGenError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ):
        with pytest.raises(shown):
            write_folder(folder, fill("third", error), replace=True)
        assert (folder / "a.txt").read_text() == "first"
    write_folder(folder, fill("fourth"), replace=True)
    assert (folder / "a.txt").read_text() == "fourth"
    assert [path.name for path in folder.parent.iterdir()] == ["models"]


def test_a_failed_write_leaves_the_former_file(weights):
    before = weights.read_bytes()

    def fail(temporary):
        Path(temporary).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(KSGenError, match="No space left"):
        write_atomically(weights, fail)
    assert weights.read_bytes() == before
    assert [path.name for path in weights.parent.iterdir()] == [weights.name]


def test_an_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(KSGenError, match="cannot be written"):
        save_weights(tmp_path / "file" / "w.safetensors", {"a": torch.rand(2)}, KIND)


@pytest.mark.skipif(os.name != "posix", reason="limits on the size of files are POSIX's")
def test_a_full_disk_is_reported_and_leaves_nothing_behind(tmp_path):
    """A limit on the size of files stands in for the full disk: the writer fails in the middle as it would there."""
    code = (
        "import resource, signal, sys, torch\n"
        "from ksgen_core.checkpoints import save_weights\n"
        "from ksgen_core.errors import KSGenError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try:\n"
        f"    save_weights({str(tmp_path / 'w.safetensors')!r}, {{'a': torch.rand(100_000)}}, 'k/1')\n"
        "except KSGenError as error:\n"
        "    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "cannot be written" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["", ".fp16"])
def test_weights_in_several_files_are_all_there_and_whole(tmp_path, kind):
    part = tmp_path / "unet"
    part.mkdir()
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "A"}))
    names = [f"model{kind}-{n:05}-of-00002.safetensors" for n in (1, 2)]
    for n, name in enumerate(names):
        save_file({f"w{n}": torch.rand(8)}, part / name)
    index = part / f"model.safetensors.index{kind}.json"
    named = json.dumps({"weight_map": {f"w{n}": name for n, name in enumerate(names)}})

    def says(words):
        with pytest.raises(KSGenError, match=words):
            check_folder(tmp_path, "a folder", (), ("unet",))

    says(r"unet lacks the file \*.safetensors.index")
    for broken in ("{", "{}", '{"weight_map": []}'):
        index.write_text(broken)
        says(f"{index.name} (cannot be read|names no weights)")
    index.write_text(named)
    assert check_folder(tmp_path, "a folder", (), ("unet",)) == "A"
    content = (part / names[1]).read_bytes()
    (part / names[1]).write_bytes(content[:-4])
    says(f"{names[1]} is cut off")
    (part / names[1]).unlink()
    says(f"{names[1]} is missing, which {index.name} names")
    if kind:  # an index of other files is not what is read
        (part / names[1]).write_bytes(content)
        (part / "model.safetensors.index.json").write_text(named.replace(kind, ""))
        assert check_folder(tmp_path, "a folder", (), ("unet",)) == "A"
