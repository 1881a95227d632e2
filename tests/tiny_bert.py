"""A sentence-transformers folder with a BERT of a few thousand weights, made by transformers itself."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

WORDS = "put the tea bag into mug pour hot water from kettle a cup of make crack egg pan cut carrot with knife".split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def make_folder(folder: Path, *, cls: bool = False, seed: int = 0, most_tokens: int = 16, **config) -> Path:
    """A folder of the class BertModel with random weights; `config` goes to BertConfig."""
    torch.manual_seed(seed)
    vocabulary = {word: n for n, word in enumerate([*SPECIAL, *WORDS])}
    sizes = {"hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 20, "num_hidden_layers": 2}
    sizes |= {"vocab_size": len(vocabulary), "max_position_embeddings": 32, "initializer_range": 0.5}
    model = BertModel(BertConfig(**(sizes | config)))
    for name, tensor in model.named_parameters():
        if "bias" in name or "LayerNorm" in name:
            torch.nn.init.normal_(tensor, std=0.5)  # as they begin, most biases are 0 and would not be seen
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    # As many folders have it: padding and a cut of the tokenizer's own, which must not count.
    tokenizer.enable_padding(length=24)
    tokenizer.enable_truncation(5)
    tokenizer.save(str(folder / "tokenizer.json"))
    pooling = {"word_embedding_dimension": 12, "pooling_mode_cls_token": cls, "pooling_mode_mean_tokens": not cls}
    write(folder / "1_Pooling" / "config.json", pooling)
    write(folder / "sentence_bert_config.json", {"max_seq_length": most_tokens, "do_lower_case": False})
    types = ("Transformer", "Pooling", "Normalize")
    write(folder / "modules.json", [{"type": f"sentence_transformers.models.{name}"} for name in types])
    return folder


def write(path: Path, data: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")
