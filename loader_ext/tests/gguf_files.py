"""Small GGUF files, as llama.cpp's own package writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np


def make_gguf(
    directory: Path, *, quantised: bool = False, split: dict[str, Any] | None = None
) -> Path:
    """A directory with `tiny.gguf`: a Llama with random weights and a byte-level BPE.

    With `split`, as the package's writer has it, in parts. The weights are float32, or the
    matrices in blocks of 32 of 8 bits each (Q8_0).
    """
    directory.mkdir()
    width, inner, heads, layers = 32, 64, 4, 2
    characters = sorted("abcdefghijklmnopqrstuvwxyz")
    tokens = ["<s>", "</s>", "<unk>", *characters, "ab", "cd", "Ġ"]
    writer = gguf.GGUFWriter(directory / "tiny.gguf", "llama", **(split or {}))
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
