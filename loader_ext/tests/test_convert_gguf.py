"""GGUF through Transformers: weights, configuration and tokenizer."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import stoker_loader as sl
from stoker_loader import errors
from stoker_loader.conversion import from_gguf


def make_gguf(directory: Path, *, quantised: bool = False) -> Path:
    """A directory with `tiny.gguf`: a Llama with random weights and a byte-level BPE.

    They are float32, or the matrices in blocks of 32 of 8 bits each (Q8_0).
    """
    directory.mkdir()
    width, inner, heads, layers = 32, 64, 4, 2
    characters = sorted("abcdefghijklmnopqrstuvwxyz")
    tokens = ["<s>", "</s>", "<unk>", *characters, "ab", "cd", "Ġ"]
    writer = gguf.GGUFWriter(directory / "tiny.gguf", "llama")
    writer.add_name("tiny")
    types = gguf.LlamaFileType
    writer.add_file_type(types.MOSTLY_Q8_0 if quantised else types.ALL_F32)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_rope_dimension_count(width // heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(2)
    random = np.random.default_rng(5)

    def weight(name: str, *shape: int) -> None:
        values = random.standard_normal(shape).astype(np.float32)
        if quantised and len(shape) == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)

    weight("token_embd.weight", len(tokens), width)
    weight("output_norm.weight", width)
    weight("output.weight", len(tokens), width)
    for layer in range(layers):
        start = f"blk.{layer}."
        for part in ("attn_norm", "ffn_norm"):
            weight(f"{start}{part}.weight", width)
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            weight(f"{start}{part}.weight", width, width)
        for part in ("ffn_gate", "ffn_up"):
            weight(f"{start}{part}.weight", inner, width)
        weight(f"{start}ffn_down.weight", width, inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return directory


@pytest.mark.parametrize(
    ("quantised", "dtype", "wanted"),
    [(False, "f16", torch.float16), (True, None, torch.bfloat16)],
    ids=["float32 cast", "Q8_0"],
)
def test_gguf_is_unpacked_by_transformers(
    disk: Path, quantised: bool, dtype: str | None, wanted: torch.dtype
) -> None:
    source = make_gguf(disk / "source", quantised=quantised)
    report = sl.convert(source, disk / "made", dtype=dtype)
    assert report.source_format == "gguf"
    assert "limits" in report.walls
    found = load_file(disk / "made" / "model.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {wanted}
    reference = AutoModelForCausalLM.from_pretrained(source, gguf_file="tiny.gguf", dtype=wanted)
    model = AutoModelForCausalLM.from_pretrained(disk / "made")
    assert model.config.dtype == wanted
    weights, wanted_weights = model.state_dict(), reference.state_dict()
    assert weights.keys() == wanted_weights.keys()
    assert all(torch.equal(weights[name], wanted_weights[name]) for name in weights)
    config = json.loads((disk / "made" / "config.json").read_text())
    assert "quantization_config" not in config
    tokenizer = AutoTokenizer.from_pretrained(disk / "made")
    assert (
        tokenizer("ab").input_ids
        == AutoTokenizer.from_pretrained(source, gguf_file="tiny.gguf")("ab").input_ids
    )
    assert [path.name for path in disk.iterdir() if path.name[0] == "."] == []


def test_files_of_whole_floats_stay_what_they_are(disk: Path) -> None:
    whole, packed = make_gguf(disk / "whole"), make_gguf(disk / "packed", quantised=True)
    assert from_gguf.usual_dtype(whole / "tiny.gguf") == "float32"
    assert from_gguf.usual_dtype(packed / "tiny.gguf") == "bfloat16"


def test_a_gguf_file_that_is_none(disk: Path) -> None:
    (disk / "x.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(errors.ConversionFailedError, match=r"x\.gguf: Transformers cannot unpack"):
        sl.convert(disk / "x.gguf", disk / "made")
    assert [path.name for path in disk.iterdir() if path.name[0] == "."] == []


def test_a_missing_package_is_named(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_gguf(disk / "source")
    monkeypatch.setitem(sys.modules, "gguf", None)  # as if it were not installed
    with pytest.raises(errors.MissingPackageError, match="needs gguf; install with: pip install"):
        sl.convert(source, disk / "made")
    assert [path.name for path in disk.iterdir() if path.name[0] == "."] == []
