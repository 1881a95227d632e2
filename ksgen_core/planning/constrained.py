"""Constrained decoding: whatever a language model would like to write, what it writes fits a JSON Schema.

llguidance (github.com/guidance-ai/llguidance) says which tokens may come next. What is added to it: the text ends
within a budget of tokens, however the model rambles. This file knows no model: it works for any whose tokenizer is one
of Hugging Face's `tokenizers`.

Legend: V the width of a model's logits. A tokenizer may have more tokens than that, or fewer.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import KSGenError

if TYPE_CHECKING:
    from llguidance import LLMatcher

ROOM = 16
"""Tokens that the model itself gets for each text the schema asks for, however small the budget: about ten words."""

# As `json.dumps` writes and the wording shows. No other white space: a model could write it for ever. No escapes but
# the two that printable text needs: the others spell control characters, which no plan holds.
STYLE = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "json_allowed_escapes": '"\\',
}
QUOTE, LETTERS, BRACKETS = '"', "abcdefghijklmnopqrstuvwxyz", "}]"


class Vocabulary:
    """What each token of a tokenizer spells. Takes up to a second for large ones: make it once per model."""

    def __init__(self, tokenizer_json: str, ends: Sequence[int] = ()) -> None:
        """From the text of a `tokenizer.json`. The tokens in `ends` never stand in a text.

        Raises `KSGenError` if llguidance is missing or cannot read this kind of tokenizer.
        """
        try:
            from llguidance import LLTokenizer
        except ImportError as error:
            raise KSGenError(
                f"A language model plans under constraints, which need the package llguidance ({error}). "
                "Install it: pip install llguidance"
            ) from error
        try:
            # A text is done where the schema is, so no end token is ever asked for. llguidance wants to be given one
            # and still takes it for the text that it spells.
            self.tokenizer = LLTokenizer(_with_bytes(tokenizer_json), eos_token=[0])
        except ValueError as error:
            raise KSGenError(
                f"This model's tokenizer cannot be constrained ({str(error).strip()}). Byte-level, byte-fallback and "
                "SentencePiece tokenizers can: choose another model."
            ) from error
        self.size = self.tokenizer.vocab_size
        self.ends = tuple(end for end in ends if 0 <= end < self.size)
        self.quote, self.letters, self.brackets = map(self._single, (QUOTE, LETTERS, BRACKETS))

    @classmethod
    def of(cls, tokenizer: Any, ends: Sequence[int] = ()) -> Vocabulary:
        """From a fast tokenizer of transformers. Raises `KSGenError` as above and if it is a slow one."""
        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        if not hasattr(backend, "to_str"):
            raise KSGenError(
                f"The model's tokenizer ({type(tokenizer).__name__}) has no tokenizer.json, which constrained planning "
                "reads. Choose a model that comes with one."
            )
        backend = copy.copy(backend)
        backend.no_padding()
        backend.no_truncation()
        return cls(backend.to_str(), ends)

    def _single(self, characters: str) -> list[int]:
        """The tokens that spell one of these characters and nothing else."""
        spelled = (self.tokenizer.tokenize_str(character) for character in characters)
        return [
            tokens[0]
            for tokens, character in zip(spelled, characters, strict=True)
            if len(tokens) == 1 and self.tokenizer.decode_bytes(tokens) == character.encode()
        ]


@dataclass(frozen=True)
class WayOut:
    """Tokens that end the text from where it is, and how many texts they had to fill that the model should write."""

    tokens: tuple[int, ...]
    filled: int

    @property
    def cost(self) -> int:
        return len(self.tokens) + ROOM * self.filled


class Constraint:
    """One text in the making, of at most `max_tokens` tokens for logits of width V.

    `shortened` says whether the budget has changed what was to be written.
    """

    def __init__(self, vocabulary: Vocabulary, schema: dict[str, Any], max_tokens: int, width: int) -> None:
        """Raises `KSGenError` if the tokenizer cannot spell such a text or not in so few tokens."""
        from llguidance import LLMatcher

        self.vocabulary, self.width, self.left = vocabulary, width, max_tokens
        self._never = [end for end in vocabulary.ends if end < width]
        grammar = LLMatcher.grammar_from_json_schema(schema, overrides=STYLE)  # type: ignore[arg-type]
        self._matcher = LLMatcher(vocabulary.tokenizer, grammar, log_level=0)
        if self._matcher.is_error():
            raise ValueError(f"llguidance does not take the schema: {self._matcher.get_error()}")
        self._bytes = b""
        self.shortened = False
        self._way_out = self._find_way_out(self._matcher)
        if self._way_out is None:
            raise KSGenError("This model's tokenizer cannot spell a plan in JSON. Choose another model.")
        if self._way_out.cost > max_tokens:
            raise KSGenError(
                f"{max_tokens} tokens are too few for the shortest plan that is asked for. Allow at least "
                f"{self._way_out.cost}. Where the model takes no more, give it fewer examples to read."
            )
        # Opening one more optional field adds a dozen characters to the way out, each a token at worst: from here on
        # it is looked for anew with every token.
        self._near = self._way_out.cost + 64

    @property
    def done(self) -> bool:
        return self._matcher.is_accepting()

    @property
    def text(self) -> str:
        """What is written so far, without the first bytes of a character that is not whole yet."""
        return self._bytes.decode("utf-8", errors="ignore")

    def allowed(self) -> np.ndarray:
        """bool [V]: the tokens that may come next."""
        return self._allowed(self._matcher)

    def take(self, token: int) -> int:
        """Write `token`, or the first of the way out if the budget has no room for it; what was written comes back.

        Raises `ValueError` for a token that is not allowed.
        """
        if self.left - 1 <= self._near:
            after = self._matcher.deep_copy()
            if not after.consume_token(token):
                raise ValueError(f"token {token} is not allowed here")
            way = self._find_way_out(after)
            if (way is None or way.cost > self.left - 1) and self._way_out is not None and self._way_out.tokens:
                self.shortened |= token != self._way_out.tokens[0]
                token, *rest = self._way_out.tokens
                way = WayOut(tuple(rest), self._way_out.filled)
            self._way_out = way
        if not self._matcher.consume_token(token):
            raise ValueError(f"token {token} is not allowed here")
        self.left -= 1
        self._bytes += self.vocabulary.tokenizer.decode_bytes([token])
        return token

    def _allowed(self, matcher: LLMatcher) -> np.ndarray:
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        allowed = np.zeros(self.width, bool)
        known = min(self.width, self.vocabulary.size)
        allowed[:known] = bits[:known]
        allowed[self._never] = False
        return allowed

    def _find_way_out(self, matcher: LLMatcher) -> WayOut | None:
        """The way that closes whatever may be closed; None if there is none, or one of thousands of tokens."""
        vocabulary, matcher = self.vocabulary, matcher.deep_copy()
        tokens: list[int] = []
        filled = 0
        while not matcher.is_accepting():
            if len(tokens) > 2000:
                return None
            ahead = matcher.compute_ff_tokens()
            if not ahead:
                allowed = np.flatnonzero(self._allowed(matcher)).tolist()
                if not allowed:
                    return None
                ahead = [self._towards_the_end(matcher.compute_ff_bytes(), allowed)]
                filled += not matcher.compute_ff_bytes() and ahead[0] in vocabulary.letters
            if max(ahead) >= self.width:
                return None
            if not matcher.consume_tokens(ahead):
                return None
            tokens += ahead
        return WayOut(tuple(tokens), filled)

    def _towards_the_end(self, forced: bytes, allowed: list[int]) -> int:
        """Of the allowed tokens, the one that ends the text soonest; `forced` are the bytes that must come."""
        vocabulary = self.vocabulary
        if forced:
            spelled = [(vocabulary.tokenizer.decode_bytes([token]), token) for token in allowed]
            return max((len(text), token) for text, token in spelled if forced.startswith(text))[1]
        # A quote ends a text. Where it may not, a letter may: the text is empty as yet. A bracket only ends something
        # where letters may not be. The rest are bytes that make a character whole.
        best, among = (*vocabulary.quote, *vocabulary.letters, *vocabulary.brackets), set(allowed)
        return next((token for token in best if token in among), allowed[0])


def _with_bytes(tokenizer_json: str) -> str:
    """The tokenizer with the decoder that llguidance knows, where its own means the same."""
    tokenizer = json.loads(tokenizer_json)
    if (tokenizer.get("decoder") or {}).get("type") == "Metaspace":
        blank = {"type": "Replace", "pattern": {"String": tokenizer["decoder"]["replacement"]}, "content": " "}
        tokenizer["decoder"] = {"type": "Sequence", "decoders": [blank, {"type": "ByteFallback"}, {"type": "Fuse"}]}
        return json.dumps(tokenizer)
    return tokenizer_json
