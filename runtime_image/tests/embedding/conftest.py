"""One worker that serves MiniLM, and Transformers' own answers to compare with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stoker_runtime.contract import EmbedResponse

MINILM = Path(__file__).parents[3] / ".cache" / "models" / "all-minilm-l6-v2"


@pytest.fixture(scope="session")
def minilm_path():
    assert MINILM.is_dir(), "run `make models` first"
    return MINILM


@pytest.fixture(scope="session")
def minilm(spawn_for_session, minilm_path):
    worker = spawn_for_session()
    worker.load(checkpoint_path=str(minilm_path))
    return worker


@pytest.fixture(scope="session")
def embed(minilm):
    """Embeds through the worker: inputs in, the whole response out."""

    def call(inputs, **more) -> EmbedResponse:
        body = {"request_id": "q", "inputs": inputs, **more}
        answer = minilm.client.post("/embed", json=body)
        assert answer.status_code == 200, answer.text
        return EmbedResponse.model_validate_json(answer.content)

    return call


@pytest.fixture(scope="session")
def reference(minilm_path):
    """Transformers' AutoModel with mean pooling, one text at a time: texts to unit vectors."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm_path)
    model = AutoModel.from_pretrained(minilm_path).eval()

    @torch.inference_mode()
    def call(texts):
        rows = []
        for text in texts:
            inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=256)
            hidden = model(**inputs).last_hidden_state[0]
            rows.append(torch.nn.functional.normalize(hidden.mean(0), dim=0))
        return torch.stack(rows)

    return call
