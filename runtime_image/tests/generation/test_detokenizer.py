"""Streamed text is the whole text, and never half a character."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from stoker_runtime.detokenizer import detokenizer_factory

from .conftest import byte_tokenizer

HARD_TEXTS = [
    "The capital of France is Paris.",
    "  leading and   repeated spaces\n\n\ttabs ",
    "你好，世界！日本語とひらがな、한국어",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 flags 🇩🇪🇯🇵 and skin 👍🏽",
    "e\u0301 combining, \u200d joiners, \ufeff marks, \ufffd itself",
    "𝕬𝖓𝖈𝖎𝖊𝖓𝖙 𒀀𒀁 𓀀",
    "مرحبا بالعالم שלום עולם नमस्ते",
    "<|im_start|>user\nhi<|im_end|>\n",
    "def f(x):\n    return {'a': [1, 2.5e-3]}  # ok",
    "\x00\x01\x7f\x80\xff",
]
UNICODE = st.text(st.characters(codec="utf-8"), max_size=40)


def stream(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    detokenizer = detokenizer_factory(tokenizer)()
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


def sentence_piece(strip: bool) -> Tokenizer:
    """Llama 2's shape: a visible space, byte tokens, and words with their space in front."""
    words = ["<unk>", "▁", "▁Hello", "▁world", "Hello", "!", "é", "你"]
    vocab = {word: number for number, word in enumerate(words)}
    vocab |= {f"<0x{byte:02X}>": len(words) + byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    return tokenizer


@given(st.lists(st.integers(0, 257), max_size=40))
def test_any_bytes_stream_as_they_decode(ids: list[int]) -> None:
    tokenizer = byte_tokenizer()
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


@given(UNICODE)
def test_no_half_character_is_ever_shown(text: str) -> None:
    tokenizer = byte_tokenizer()
    pieces = stream(tokenizer, tokenizer.encode(text).ids)
    assert "".join(pieces) == text
    assert sum(piece.count("\ufffd") for piece in pieces) == text.count("\ufffd")


@pytest.mark.parametrize("strip", [True, False])
@given(st.data())
def test_byte_fallback_streams_as_it_decodes(strip: bool, data: st.DataObject) -> None:
    tokenizer = sentence_piece(strip)
    size = tokenizer.get_vocab_size()
    words = st.integers(0, 7).map(lambda word: [word]) | st.just([size - 1])
    characters = st.characters(codec="utf-8").map(
        lambda c: [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in c.encode()]
    )
    ids = [token for part in data.draw(st.lists(words | characters)) for token in part]
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


def test_a_broken_byte_is_shown_as_soon_as_it_is_certain() -> None:
    tokenizer = sentence_piece(True)
    first = tokenizer.token_to_id("<0xE4>")
    hello = tokenizer.token_to_id("▁Hello")
    assert stream(tokenizer, [first, hello, first]) == ["", "\ufffd Hello", "", "\ufffd"]


@given(st.lists(st.sampled_from(["hello", "world", "##ing", "##s", "!", "don", "'", "t"])))
def test_other_decoders_stream_as_they_decode(words: list[str]) -> None:
    vocab = {"[UNK]": 0, "hello": 1, "world": 2, "##ing": 3, "##s": 4, "!": 5, "don": 6}
    vocab |= {"'": 7, "t": 8}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    ids = [vocab[word] for word in words]
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.model
@pytest.mark.parametrize("text", HARD_TEXTS)
def test_hard_texts_through_the_real_vocabulary(text: str, smollm2: Path) -> None:
    tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    ids = tokenizer.encode(text).ids
    pieces = stream(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert sum(piece.count("\ufffd") for piece in pieces) == text.count("\ufffd")


@pytest.mark.model
def test_random_ids_of_the_real_vocabulary(smollm2: Path) -> None:
    tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    size = tokenizer.get_vocab_size()

    @given(st.lists(st.integers(0, size - 1), max_size=30))
    @settings(deadline=None)
    def streams_as_it_decodes(ids: list[int]) -> None:
        assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)

    streams_as_it_decodes()
