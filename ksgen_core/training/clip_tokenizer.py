"""A CLIP tokenizer trained on given texts: byte-level BPE with an end-of-word mark, in CLIP's own file layout.

Bytes are the base of the vocabulary, so that any text at all has tokens, whatever the training texts were.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import partial
from pathlib import Path

from ..checkpoints import write_atomically

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
# CLIP's own splitting into words, with \p{L} and \p{N} written for Python's re.
WORDS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+")


def write_clip_tokenizer(folder: str | Path, texts: list[str], merges: int, length: int, pad: str = END) -> None:
    """Write `vocab.json`, `merges.txt` and the configs to `folder`, as transformers 4.57 and 5 both read them.

    `merges` is the largest number of merges, `length` the fixed number of tokens per text, `pad` the padding token
    (SDXL's second tokenizer pads with "!").
    """
    letters = byte_letters()
    base = [*letters.values(), *(letter + WORD_END for letter in letters.values())]
    pairs = train_merges(texts, merges)
    vocabulary = [*base, *("".join(pair) for pair in pairs), START, END]
    ids = {token: number for number, token in enumerate(vocabulary)}
    lines = ["#version: 0.2", *(" ".join(pair) for pair in pairs)]
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, "do_lower_case": True, **special}
    files = {
        "vocab.json": json.dumps(ids, ensure_ascii=False),
        "merges.txt": "\n".join(lines) + "\n",
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
        "special_tokens_map.json": json.dumps(special, indent=2) + "\n",
    }
    for name, text in files.items():
        write_atomically(Path(folder) / name, partial(_write_text, text))


def _write_text(text: str, path: str) -> None:
    Path(path).write_text(text, encoding="utf-8")


def train_merges(texts: list[str], merges: int) -> list[tuple[str, str]]:
    """The most frequent pairs, merged one after another; ties go by the alphabet, so the result is fixed."""
    letters = byte_letters()
    counts = Counter(word for text in texts for word in WORDS.findall(text.lower()))
    words = []
    for word, count in sorted(counts.items()):
        pieces = [letters[byte] for byte in word.encode("utf-8")]
        pieces[-1] += WORD_END
        words.append((pieces, count))
    found: list[tuple[str, str]] = []
    while len(found) < merges:
        pairs: Counter[tuple[str, str]] = Counter()
        for pieces, count in words:
            for pair in zip(pieces, pieces[1:], strict=False):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        found.append(best)
        for pieces, _ in words:
            at = 0
            while at < len(pieces) - 1:
                if (pieces[at], pieces[at + 1]) == best:
                    pieces[at : at + 2] = ["".join(best)]
                at += 1
    return found


def byte_letters() -> dict[int, str]:
    """GPT-2's and CLIP's visible letter for each byte, in the order of their vocabularies."""
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}
