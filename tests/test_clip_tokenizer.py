"""The tokenizer trained in code: CLIP's own, on a vocabulary of its own."""

from __future__ import annotations

import pytest

from ksgen_core.training.clip_tokenizer import byte_letters, train_merges, write_clip_tokenizer

TEXTS = ["pour the tea", "pour the water", "Pour it out!", "the teapot's lid"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import CLIPTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    write_clip_tokenizer(folder, TEXTS, merges=100, length=32)
    return CLIPTokenizer.from_pretrained(str(folder))


def test_merges_go_by_frequency_and_then_by_the_alphabet():
    assert train_merges(["ab ab ba"], 9) == [("a", "b</w>"), ("b", "a</w>")]
    assert train_merges(TEXTS, 3) == train_merges(list(reversed(TEXTS)), 3)
    assert train_merges([""], 3) == []


def test_known_words_are_one_token_each(tokenizer):
    assert tokenizer.tokenize("Pour  THE water") == ["pour</w>", "the</w>", "water</w>"]
    assert tokenizer.tokenize("the teapot's") == ["the</w>", "teapot</w>", "'s</w>"]
    assert tokenizer("pour the tea", padding="max_length").attention_mask == [1] * 5 + [0] * 27


def test_no_text_is_unknown(tokenizer):
    for text in ("zwölf 猫 & 🫖", "a\tb\nc", "~|`"):
        ids = tokenizer(text).input_ids
        assert tokenizer.eos_token_id not in ids[:-1], "the unknown token is the end token"
        assert tokenizer.decode(ids, skip_special_tokens=True).split() == text.split()


def test_the_vocabulary_begins_as_clips_does(tokenizer):
    letters = list(byte_letters().values())
    assert len(set(letters)) == 256 and letters[:3] == ["!", '"', "#"]
    assert tokenizer.convert_tokens_to_ids(["!", "!</w>"]) == [0, 256]
    assert tokenizer.eos_token_id == len(tokenizer) - 1
