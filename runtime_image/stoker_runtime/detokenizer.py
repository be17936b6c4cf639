"""Token ids to text, one at a time, without ever showing half a character.

A tokenizer's decoder is reduced to what each token stands for: bytes, where the vocabulary is
made of bytes (GPT-2's byte level) or falls back to them (SentencePiece). An incremental UTF-8
decoder then holds incomplete characters back, in constant time for each token. Decoders of
other kinds are asked for a short window of tokens at a time.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from tokenizers import Tokenizer

CONTEXT_TOKENS = 6  # what a foreign decoder sees before new tokens, to place spaces rightly
MAX_HELD_TOKENS = 4  # a UTF-8 character has at most four bytes, so at most four byte tokens
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
SPACE_MARK = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's visible space
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")

PieceBytes = Callable[[str], bytes]
"""What a token, as it is written in the vocabulary, stands for."""


class Detokenizer(Protocol):
    """The text of one generation as it becomes certain."""

    def push(self, token: int) -> str:
        """Text that became certain with this token; may be empty."""

    def flush(self) -> str:
        """What is still held, at the end; broken characters become U+FFFD."""


def detokenizer_factory(tokenizer: Tokenizer) -> Callable[[], Detokenizer]:
    """How to make a new generation's detokenizer for this vocabulary."""
    special = frozenset(
        token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special
    )
    steps = _decoder_steps(tokenizer)
    if [step["type"] for step in steps] == ["ByteLevel"]:
        spell = byte_level_spelling()
        return lambda: ByteDetokenizer(tokenizer, special, spell, strip_first_space=False)
    if _is_sentence_piece(steps):
        strip = any(step["type"] == "Strip" for step in steps)
        return lambda: ByteDetokenizer(
            tokenizer, special, sentence_piece_bytes, strip_first_space=strip
        )
    return lambda: WindowDetokenizer(tokenizer)


class ByteDetokenizer:
    """For vocabularies whose tokens are bytes; the decoder's state is at most three bytes."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        special: frozenset[int],
        spell: PieceBytes,
        *,
        strip_first_space: bool,
    ) -> None:
        self._piece: Callable[[int], str | None] = tokenizer.id_to_token
        self._special = special
        self._spell = spell
        self._strip = strip_first_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Text that became certain with this token; special tokens and unknown ids have none."""
        piece = None if token in self._special else self._piece(token)
        return "" if piece is None else self._stripped(self._utf8.decode(self._spell(piece)))

    def flush(self) -> str:
        """What is still held; an incomplete character becomes U+FFFD."""
        return self._stripped(self._utf8.decode(b"", final=True))

    def _stripped(self, text: str) -> str:
        if not (self._strip and text):
            return text
        self._strip = False
        return text.removeprefix(" ")


class WindowDetokenizer:
    """For any other decoder: decodes a few tokens of context with the new ones behind them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []
        self._held: list[int] = []

    def push(self, token: int) -> str:
        """Text that became certain with this token."""
        self._held.append(token)
        text = self._new_text()
        if text.endswith(REPLACEMENT) and len(self._held) < MAX_HELD_TOKENS:
            return ""
        return self._release(text)

    def flush(self) -> str:
        """What is still held."""
        return self._release(self._new_text()) if self._held else ""

    def _new_text(self) -> str:
        decode = self._tokenizer.decode
        before: str = decode(self._context)
        return str(decode(self._context + self._held))[len(before) :]

    def _release(self, text: str) -> str:
        self._context = (self._context + self._held)[-CONTEXT_TOKENS:]
        self._held = []
        return text


def byte_level_spelling() -> PieceBytes:
    """GPT-2's alphabet: printable bytes are themselves, the rest are shifted behind U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    shifted = (byte for byte in range(0x100) if chr(byte) not in alphabet)
    alphabet.update({chr(0x100 + n): byte for n, byte in enumerate(shifted)})

    def spell(piece: str) -> bytes:
        try:
            return bytes([alphabet[character] for character in piece])
        except KeyError:  # an added token, which is written as it reads
            return piece.encode()

    return spell


def sentence_piece_bytes(piece: str) -> bytes:
    """SentencePiece with byte fallback: `<0x0A>` is a byte, the visible space a space."""
    if (byte := BYTE_TOKEN.fullmatch(piece)) is not None:
        return bytes([int(byte[1], 16)])
    return piece.replace(SPACE_MARK, " ").encode()


def _decoder_steps(tokenizer: Tokenizer) -> list[Mapping[str, Any]]:
    if tokenizer.decoder is None:
        return []
    decoder = json.loads(tokenizer.decoder.__getstate__())
    return list(decoder["decoders"]) if decoder["type"] == "Sequence" else [decoder]


def _is_sentence_piece(steps: list[Mapping[str, Any]]) -> bool:
    """Whether the steps are what Llama 2, Mistral and Gemma have, with or without the strip."""
    known: list[Mapping[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    return steps in (known, known[:3])
