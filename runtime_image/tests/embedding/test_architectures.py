"""Encoders with random weights: variants of BERT, and architectures left to Transformers."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from stoker_runtime.contract import EmbedRequest
from stoker_runtime.engines.embedding import EmbeddingEngine, open_encoder
from stoker_runtime.engines.embedding_bert import BertEncoder
from stoker_runtime.engines.embedding_encoder import TransformersEncoder
from stoker_runtime.errors import CheckpointRejected

ROWS = ((5, 6, 7, 8, 9), (10, 11), (12,))


@pytest.fixture
def save(tmp_path):
    """Saves a small random model with a word tokenizer; gives the folder and the model."""

    def write(config):
        from transformers import AutoModel

        torch.manual_seed(0)
        model = AutoModel.from_config(config).eval()
        model.save_pretrained(tmp_path)
        words = models.WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0")
        tokenizer = Tokenizer(words)
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        return tmp_path, model

    return write


def small(kind, **more):
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 48, "vocab_size": 64, "max_position_embeddings": 24}
    return getattr(transformers, kind)(**sizes, **more)


@torch.inference_mode()
def expected(model):
    vectors = [model(input_ids=torch.tensor([row])).last_hidden_state[0].mean(0) for row in ROWS]
    return torch.nn.functional.normalize(torch.stack(vectors), dim=-1)


@pytest.mark.parametrize(
    ("kind", "more", "encoder"),
    [
        ("BertConfig", {}, BertEncoder),
        ("BertConfig", {"hidden_act": "gelu_new"}, BertEncoder),
        ("BertConfig", {"hidden_act": "relu", "layer_norm_eps": 1e-5}, BertEncoder),
        ("BertConfig", {"dtype": "bfloat16"}, BertEncoder),
        ("RobertaConfig", {"pad_token_id": 1}, TransformersEncoder),
    ],
)
async def test_vectors_equal_those_of_transformers(save, kind, more, encoder):
    folder, model = save(small(kind, **more))
    opened = open_encoder(folder)
    assert isinstance(opened.encoder, encoder)
    engine = EmbeddingEngine(opened, max_model_len=None)
    embedded = await engine.embed(EmbedRequest(request_id="q", inputs=ROWS))
    await engine.close()
    vectors = torch.from_numpy(embedded.vectors)
    assert (vectors * expected(model).float()).sum(-1).min() > 0.9999
    assert embedded.prompt_tokens == 8


async def test_max_model_len_bounds_an_input(save):
    folder, _ = save(small("BertConfig"))
    engine = EmbeddingEngine(open_encoder(folder), max_model_len=8)
    text = EmbedRequest(request_id="q", inputs=(" ".join(["w3"] * 20),))
    assert (await engine.embed(text)).prompt_tokens == 8
    await engine.close()


def test_weights_are_not_copied(save):
    folder, _ = save(small("BertConfig"))
    opened = open_encoder(folder)
    assert opened.stats is not None
    assert opened.stats.copied_bytes == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("encoder.layer.1.output.dense.bias"), "no tensor encoder.layer.1.output"),
        (
            lambda t: t.update({"embeddings.LayerNorm.weight": torch.ones(3)}),
            r"embeddings.LayerNorm.weight has shape \[3\], but config.json wants \[32\]",
        ),
    ],
)
def test_a_checkpoint_that_lacks_or_bends_a_tensor_is_refused(save, change, words):
    folder, _ = save(small("BertConfig"))
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointRejected, match=words):
        open_encoder(folder)


def test_damaged_files_are_refused(save):
    folder, _ = save(small("BertConfig"))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointRejected) as caught:
        open_encoder(folder)
    assert caught.value.error.code == "data_truncated"
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointRejected, match=r"tokenizer.json cannot be read"):
        open_encoder(folder)
