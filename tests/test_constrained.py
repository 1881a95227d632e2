"""Constrained decoding: whatever is proposed, what is written fits the schema and ends within its budget."""

from __future__ import annotations

import builtins
import json
import random

import jsonschema
import numpy as np
import pytest
from tiny_mllm import JSON, WORDS, byte_level
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from ksgen_core.errors import KSGenError
from ksgen_core.planning.constrained import Constraint, Vocabulary
from ksgen_core.planning.reply import plan_from_reply, reply_schema

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_fallback() -> Tokenizer:
    """As Gemma's: blanks are written as a letter, unknown characters as bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    blank = decoders.Replace("▁", " ")
    tokenizer.decoder = decoders.Sequence([blank, decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=["<unk>", *BYTES], show_progress=False)
    tokenizer.train_from_iterator(WORDS + JSON, trainer)
    return tokenizer


def prepended() -> Tokenizer:
    """As Llama 2's: like Gemma's, and every text begins with a blank that decoding takes off again."""
    tokenizer = byte_fallback()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    blank, strip = decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([blank, decoders.ByteFallback(), decoders.Fuse(), strip])
    return tokenizer


def sentencepiece() -> Tokenizer:
    """As T5's: a unigram model without bytes; it can write no character that it was not shown."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(WORDS + JSON, trainer)
    return tokenizer


TOKENIZERS = {
    "byte level": lambda: byte_level(["<|end|>"]),
    "bytes alone": lambda: byte_level(["<|end|>"], 0),
    "byte fallback": byte_fallback,
    "prepended": prepended,
    "sentencepiece": sentencepiece,
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def vocabulary(request):
    return Vocabulary(TOKENIZERS[request.param]().to_str())


def write(constraint: Constraint, seed: int) -> str:
    """What a model without any sense writes."""
    draw = random.Random(seed)
    while not constraint.done:
        constraint.take(draw.choice(np.flatnonzero(constraint.allowed()).tolist()))
    return constraint.text


def cheapest(vocabulary: Vocabulary, schema: dict) -> int:
    """The smallest budget that is taken; the error names it."""
    with pytest.raises(KSGenError, match="too few") as caught:
        Constraint(vocabulary, schema, 1, vocabulary.size)
    return int(str(caught.value).split("at least ")[1].split(".")[0])


@pytest.mark.parametrize("fewest, most", [(1, 1), (2, 7), (7, 7)])
def test_nonsense_fits_the_schema_whatever_the_tokenizer_and_the_budget(vocabulary, fewest, most):
    schema = reply_schema(fewest, most)
    least = cheapest(vocabulary, schema)
    for seed, budget in enumerate([least, least + 1, least + 7, least + 40, least + 200]):
        constraint = Constraint(vocabulary, schema, budget, vocabulary.size)
        reply = write(constraint, seed)
        jsonschema.validate(json.loads(reply), schema)
        assert plan_from_reply(reply, "g", fewest=fewest, most=most).steps
        assert constraint.left >= 0


def test_a_small_budget_shortens_texts_and_leaves_each_some_words(vocabulary):
    """The way out closes what the model wrote; it never writes a step in the model's place."""
    schema = reply_schema(3, 7)
    for seed in range(5):
        constraint = Constraint(vocabulary, schema, cheapest(vocabulary, schema), vocabulary.size)
        draw = random.Random(seed)
        while not constraint.done:
            # The model never ends a text of its own accord.
            tokens = np.flatnonzero(constraint.allowed()).tolist()
            endless = [token for token in tokens if b'"' not in vocabulary.tokenizer.decode_bytes([token])]
            proposed = draw.choice(endless or tokens)
            constraint.take(proposed)
        steps = json.loads(constraint.text)["steps"]
        assert len(steps) >= 3 and constraint.shortened
        assert all(len(step["text"]) > 1 for step in steps)


def test_no_budget_touches_a_plan_that_fits_into_it(vocabulary):
    steps = [{"text": text} for text in ("pour hot water into the mug", "stir the tea")]
    tokens = vocabulary.tokenizer.tokenize_str(json.dumps({"steps": steps}))
    constraint = Constraint(vocabulary, reply_schema(), len(tokens) + 100, vocabulary.size)
    assert [constraint.take(token) for token in tokens] == tokens
    assert constraint.done and json.loads(constraint.text) == {"steps": steps} and not constraint.shortened


def test_logits_may_be_wider_or_narrower_than_the_vocabulary():
    """Wider where a model's weights are padded, narrower where a tokenizer was given marks that no model knows."""
    tokenizer = byte_level(["<|end|>"])
    words = tokenizer.get_vocab_size()
    tokenizer.add_special_tokens([f"<|mark {number}|>" for number in range(40)])
    vocabulary = Vocabulary(tokenizer.to_str())
    assert vocabulary.size == words + 40
    for width in (words, vocabulary.size, vocabulary.size + 100):
        constraint = Constraint(vocabulary, reply_schema(), 300, width)
        allowed = constraint.allowed()
        assert allowed.shape == (width,) and not allowed[words:].any()
        assert plan_from_reply(write(constraint, width), "g")
    with pytest.raises(KSGenError, match="cannot spell a plan"):
        Constraint(vocabulary, reply_schema(), 500, 10)


def test_end_tokens_never_stand_in_a_text():
    """Not even those that the tokenizer takes for text."""
    tokenizer = byte_level(["<|end|>"])
    ends = [0, tokenizer.token_to_id("Q"), tokenizer.token_to_id("z")]
    vocabulary = Vocabulary(tokenizer.to_str(), [*ends, 10**9])
    for seed in range(5):
        assert not set("Qz") & set(write(Constraint(vocabulary, reply_schema(), 400, vocabulary.size), seed))


def test_text_grows_by_whole_characters_and_joins_to_the_reply():
    vocabulary = Vocabulary(byte_level(["<|end|>"]).to_str())
    reply = '{"steps": [{"text": "Tee — 茶 🍵"}, {"text": "é"}]}'
    constraint = Constraint(vocabulary, reply_schema(), 500, vocabulary.size)
    seen = [""]
    for token in vocabulary.tokenizer.tokenize_str(reply):
        constraint.take(token)
        assert constraint.text.startswith(seen[-1]) and "\ufffd" not in constraint.text
        seen.append(constraint.text)
    assert seen[-1] == reply and len(set(seen)) < len(seen)


def test_a_token_that_is_not_allowed_is_a_callers_bug():
    vocabulary = Vocabulary(byte_level(["<|end|>"]).to_str())
    for budget in (60, 1000):
        constraint = Constraint(vocabulary, reply_schema(), budget, vocabulary.size)
        with pytest.raises(ValueError, match="not allowed"):
            constraint.take(vocabulary.letters[0])


def test_a_tokenizer_of_words_is_refused():
    words = Tokenizer(models.WordLevel({"<unk>": 0, "pour": 1}, unk_token="<unk>"))
    with pytest.raises(KSGenError, match="choose another model"):
        Vocabulary(words.to_str())
    with pytest.raises(KSGenError, match="no tokenizer.json"):
        Vocabulary.of(object())


def test_without_llguidance_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "llguidance":
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(KSGenError, match="pip install llguidance"):
        Vocabulary(byte_level(["<|end|>"]).to_str())
