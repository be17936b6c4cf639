"""The embedding engine against Transformers, on the real model."""

from __future__ import annotations

import pytest
import torch

from stoker_runtime.contract import EngineName, ReadyEvent
from stoker_runtime.engines.embedding import MAX_INPUTS

pytestmark = pytest.mark.model

TEXTS = [
    "The capital of France is Paris.",
    "a",
    "",
    "Ünïcödé, 日本語 and emoji 🎉 in one line.",
    "word " * 90,
    "far longer than the model can read " * 200,
    "Berlin is the capital of Germany.",
]


def test_vectors_equal_those_of_transformers(embed, reference):
    vectors = torch.tensor(embed(TEXTS).embeddings)
    cosine = (vectors * reference(TEXTS)).sum(-1)
    assert vectors.shape == (len(TEXTS), 384)
    assert cosine.min() > 0.9999
    assert torch.allclose(vectors.norm(dim=-1), torch.ones(len(TEXTS)), atol=1e-5)


def test_order_and_batches_do_not_matter(embed):
    many = [TEXTS[i % len(TEXTS)] + str(i) for i in range(150)]
    together = torch.tensor(embed(many).embeddings)
    for index in (0, 5, 77, 149):
        alone = torch.tensor(embed([many[index]]).embeddings[0])
        assert torch.allclose(together[index], alone, atol=1e-5)


def test_token_ids_equal_their_text(embed, minilm_path):
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(minilm_path / "tokenizer.json"))
    ids.no_padding()
    by_text = embed([TEXTS[0]])
    by_ids = embed([ids.encode(TEXTS[0]).ids])
    assert by_ids == by_text
    assert by_text.prompt_tokens == 9


def test_tokens_are_counted_up_to_the_bound(embed):
    assert embed(["word " * 1000]).prompt_tokens == 256


def test_dimensions_cut_and_renormalise(embed):
    whole = torch.tensor(embed(TEXTS[:2]).embeddings)
    cut = torch.tensor(embed(TEXTS[:2], dimensions=100).embeddings)
    expected = torch.nn.functional.normalize(whole[:, :100], dim=-1)
    assert torch.allclose(cut, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ({"inputs": []}, "invalid_request", "0 inputs"),
        ({"inputs": ["a"] * (MAX_INPUTS + 1)}, "invalid_request", f"give 1 to {MAX_INPUTS}"),
        ({"inputs": [[]]}, "invalid_request", "input 0 has 0 tokens"),
        ({"inputs": [[1] * 257]}, "context_length_exceeded", "input 0 has 257 tokens"),
        ({"inputs": [[1], [30522]]}, "invalid_request", "input 1 holds a token id outside"),
        ({"inputs": [[-1]]}, "invalid_request", "input 0 holds a token id outside"),
        ({"inputs": ["a"], "dimensions": 385}, "invalid_dimensions", "exceeds the model's 384"),
    ],
)
def test_a_wrong_request_is_refused(minilm, body, code, words):
    status, error = minilm.refused("/embed", {"request_id": "q", **body})
    assert (status, error.code) == (400, code)
    assert words in error.message


def test_auto_chooses_the_engine_and_the_load_is_measured(spawn_worker, minilm_path):
    load, init, ready = spawn_worker().load(checkpoint_path=str(minilm_path))
    assert (load.name, init.name) == ("load", "init")
    assert load.bytes == (minilm_path / "model.safetensors").stat().st_size
    assert load.tier is not None
    assert ready == ReadyEvent(
        engine=EngineName.EMBEDDING, context_tokens=256, slots=1, facts={"dimensions": 384}
    )
