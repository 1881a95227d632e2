"""Folders of language models: what is missing or of the wrong kind is named, with what to do."""

from __future__ import annotations

import json
import pickle
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_mllm import KINDS, folder, mllm, query

from ksgen_core.errors import KSGenError
from ksgen_core.pipeline import Planned
from ksgen_core.planning import mllm_files
from ksgen_core.planning.mllm_files import find_folder, look_over
from ksgen_core.planning.mllm_transformers import Mllm, WritingSettings, write_plan


@pytest.fixture
def copy(tmp_path):
    """A copy of a tiny model's folder, to be broken."""

    def make(kind="llama"):
        return shutil.copytree(folder(kind), tmp_path / kind)

    return make


def change(path, **changes):
    """Set entries of a JSON file; None takes one out."""
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def without(path, *names):
    for name in names:
        for file in path.glob(name):
            file.unlink()
    return path


class Bomb:
    """Unpickled, it says so."""

    def __reduce__(self):
        return (sys.exit, ("a pickle was read",))


@pytest.mark.parametrize("kind, sees", zip(KINDS, (False, True, True), strict=True))
def test_the_config_says_whether_the_model_sees(kind, sees):
    assert look_over(folder(kind)) is sees is mllm(kind).sees


def test_a_text_model_of_a_family_that_has_both_is_told_by_its_architecture(copy):
    """Llama 4 has one model type for the whole and for its language half."""
    path = copy("gemma3")
    for architecture, sees in (("Llama4ForConditionalGeneration", True), ("Llama4ForCausalLM", False)):
        change(path / "config.json", model_type="llama4", architectures=[architecture])
        assert look_over(path) is sees


def test_a_missing_model_names_the_folder_that_was_looked_in(tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KSGenError, match="folder is missing") as caught:
        Mllm.load(tmp_path / "models" / "qwen")
    assert str(tmp_path / "models" / "qwen") in str(caught.value)
    with pytest.raises(KSGenError, match="the hub says") as caught:
        Mllm.load("somebody/some-model")
    assert str(tmp_path / "somebody" / "some-model") in str(caught.value)
    assert str(tmp_path / "cache") in str(caught.value)


def test_a_hub_id_that_is_a_folder_here_is_the_folder(tmp_path, monkeypatch):
    (tmp_path / "owner").mkdir()
    shutil.copytree(folder("llama"), tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)
    assert Mllm.load("owner/name").sees is False


def test_the_hub_is_never_asked_for_code_or_pickles(tmp_path, monkeypatch):
    import fnmatch

    import huggingface_hub

    def snapshot(name, *, allow_patterns, ignore_patterns):
        def wanted(file):
            fits = [any(fnmatch.fnmatch(file, pattern) for pattern in p) for p in (allow_patterns, ignore_patterns)]
            return fits[0] and not fits[1]

        never = ["modeling.py", "pytorch_model.bin", "model.gguf", "original/consolidated.00.pth", "onnx/model.onnx"]
        never += ["consolidated.safetensors", "original/params.json", "unet/weights.safetensors"]
        always = ["config.json", "model-00001-of-00002.safetensors", "tokenizer.model", "chat_template.jinja"]
        assert not any(map(wanted, never)) and all(map(wanted, always))
        return str(folder("llama"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert find_folder("owner/name") == folder("llama")


@pytest.mark.parametrize(
    "files, words",
    [
        ({}, "config.json is missing"),
        ({"model.Q4_K_M.gguf": b"GGUF"}, "holds a GGUF file"),
        ({"model_index.json": b"{}"}, "folder of diffusers"),
        ({"config.json": b"{"}, "config.json cannot be read"),
        ({"config.json": b"[]"}, "must hold a JSON object"),
        ({"config.json": b"{}"}, "knows no such language model"),
        ({"config.json": b'{"model_type": "clip"}'}, "'clip', cannot plan"),
        ({"config.json": b'{"model_type": "t5", "is_encoder_decoder": true}'}, "rewrites a text"),
        ({"config.json": b'{"model_type": "own", "auto_map": {"AutoModel": "m.M"}}'}, "its own Python code"),
        ({"config.json": b'{"model_type": "llama"}'}, "no .safetensors weights"),
        ({"config.json": b'{"model_type": "llama"}', "model.gguf": b"GGUF"}, "weights as GGUF"),
        ({"config.json": b'{"model_type": "llama"}', "pytorch_model.bin": b""}, "as pickles"),
        ({"config.json": b'{"model_type": "llama"}', "model.safetensors": b"\x80\x04"}, "cut off"),
    ],
)
def test_what_is_no_language_model_says_what_it_is(tmp_path, files, words):
    path = tmp_path / "model"
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)
    with pytest.raises(KSGenError, match=words) as caught:
        Mllm.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name, words", [("model.gguf", "is a GGUF file"), ("model.safetensors", "is a file")])
def test_a_file_is_not_a_folder(tmp_path, name, words):
    (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(KSGenError, match=words):
        Mllm.load(tmp_path / name)


def test_pickles_are_not_read_even_beside_good_weights(copy):
    path = copy()
    for name in ("pytorch_model.bin", "training_args.bin", "model.pt"):
        (path / name).write_bytes(pickle.dumps(Bomb()))
    Mllm.load(path)
    without(path, "*.safetensors")
    with pytest.raises(KSGenError, match="as pickles"):
        Mllm.load(path)


def test_code_in_the_folder_is_not_run(copy):
    path = copy()
    (path / "modeling_own.py").write_text("raise SystemExit('code was run')")
    change(path / "config.json", auto_map={"AutoModelForCausalLM": "modeling_own.Own", "AutoConfig": "modeling_own.C"})
    change(path / "tokenizer_config.json", auto_map={"AutoTokenizer": ["modeling_own.Slow", "modeling_own.Fast"]})
    assert isinstance([*write_plan(Mllm.load(path), query(), (), WritingSettings(max_tokens=60))][-1], Planned)
    change(path / "config.json", model_type="own")
    with pytest.raises(KSGenError, match="never run"):
        Mllm.load(path)


def test_a_folder_without_tokenizer_or_processor_says_so(copy):
    with pytest.raises(KSGenError, match="has no tokenizer"):
        Mllm.load(without(copy("llama"), "tokenizer*", "vocab*"))
    with pytest.raises(KSGenError, match="has no picture processor"):
        Mllm.load(without(copy("gemma3"), "processor_config.json", "preprocessor_config.json"))


def test_a_broken_tokenizer_or_processor_says_so(copy):
    path = copy("llama")
    (path / "tokenizer.json").write_text("{}")
    with pytest.raises(KSGenError, match="tokenizer in .* cannot be loaded"):
        Mllm.load(path)
    path = copy("gemma3")
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (path / name).is_file():
            (path / name).write_text("{")
    with pytest.raises(KSGenError, match="config.json cannot be read|processor in .* cannot be loaded"):
        Mllm.load(path)


def test_missing_and_damaged_weights_are_refused(copy):
    """transformers alone would fill them with random numbers."""
    path = copy()
    file = path / "model.safetensors"
    weights = load_file(file)
    first = next(name for name in weights if "q_proj" in name)
    save_file({name: t for name, t in weights.items() if name != first}, file, {"format": "pt"})
    with pytest.raises(KSGenError, match="lacks 1 weights"):
        Mllm.load(path)
    save_file(weights | {first: torch.zeros(3, 3)}, file, {"format": "pt"})
    with pytest.raises(KSGenError, match="cannot be loaded"):
        Mllm.load(path)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(KSGenError, match="cut off"):
        Mllm.load(path)


def test_weights_in_several_files_are_all_wanted(copy):
    path = copy()
    weights = load_file(path / "model.safetensors")
    names = sorted(weights)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, some in files.items():
        save_file({name: weights[name] for name in some}, path / file, {"format": "pt"})
    (path / "model.safetensors").unlink()
    index = path / "model.safetensors.index.json"
    weight_map = {name: file for file, some in files.items() for name in some}
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    loaded = Mllm.load(path).model.state_dict()
    assert all(t.equal(loaded[name]) for name, t in weights.items())
    (path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(KSGenError, match="model-00002-of-00002.safetensors is missing"):
        Mllm.load(path)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "../elsewhere.safetensors")}))
    with pytest.raises(KSGenError, match="outside its folder"):
        Mllm.load(path)
    index.write_text("{}")
    with pytest.raises(KSGenError, match="no weight_map"):
        Mllm.load(path)


def test_a_tokenizer_that_cannot_be_constrained_is_refused_on_loading(copy):
    from tokenizers import Tokenizer, models

    path = copy()
    Tokenizer(models.WordLevel({"<|im_end|>": 0, "pour": 1}, unk_token="<|im_end|>")).save(str(path / "tokenizer.json"))
    with pytest.raises(KSGenError, match="cannot be constrained|cannot be loaded"):
        Mllm.load(path)


def test_loading_says_nothing_and_changes_nothing_in_the_folder(copy, capfd):
    path = copy("qwen2_5_vl")
    before = {file: file.read_bytes() for file in path.iterdir()}
    Mllm.load(path)
    assert {file: file.read_bytes() for file in path.iterdir()} == before
    shown = capfd.readouterr()
    assert not shown.out.strip() and "Loading weights" not in shown.err


def test_without_torchvision_only_the_part_for_films_is_left_out():
    kind = mllm_files._without_films(folder("qwen2_5_vl"))
    assert kind is not None and kind.__mro__[1].__name__ == "Qwen2_5_VLProcessor"
    assert mllm_files._without_films(folder("gemma3")) is None
