"""Tensor parallel: which part of each tensor a rank needs, as rules by name.

The splits are those of Megatron-LM (Shoeybi et al., arXiv:1909.08053).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Split:
    """A cut along a dimension: 0 for rows, 1 for columns.

    The dimension is cut into parts in proportion to `parts` (one number for a plain tensor, one
    for each weight that was fused into it), and each rank gets an equal share of every part. With
    `heads` the numbers count attention heads, which stay whole: where there are more ranks than
    heads, several ranks get the same one.
    """

    dimension: int
    parts: tuple[int, ...] = (1,)
    heads: bool = False


def rows(*parts: int, heads: bool = False) -> Split:
    """Shares of the rows: a linear layer's outputs."""
    return Split(0, parts or (1,), heads)


def columns(*parts: int, heads: bool = False) -> Split:
    """Shares of the columns: a linear layer's inputs."""
    return Split(1, parts or (1,), heads)


@dataclass(frozen=True, slots=True)
class Plan:
    """`(pattern, split)` in order: of the patterns that fit a name the first counts.

    `*` in a pattern stands for any characters, and the split None gives every rank the whole
    tensor. A name that no pattern fits is an error, so a plan cannot forget a tensor.
    """

    rules: tuple[tuple[str, Split | None], ...]


def llama_plan(query_heads: int, key_heads: int, *, split_vocabulary: bool = True) -> Plan:
    """The plan of the Llama family (Llama, Mistral, Qwen, SmolLM), fused names included.

    The heads are `num_attention_heads` and `num_key_value_heads` of a config. Embedding and head
    are split by rows of the vocabulary unless `split_vocabulary` is false. Norms, and the biases
    that are added after the ranks' sum, are on every rank.
    """
    vocabulary = rows() if split_vocabulary else None
    return Plan(
        (
            ("*embed_tokens.weight", vocabulary),
            ("*lm_head.weight", vocabulary),
            ("*.q_proj.*", rows(query_heads, heads=True)),
            ("*.k_proj.*", rows(key_heads, heads=True)),
            ("*.v_proj.*", rows(key_heads, heads=True)),
            ("*.qkv_proj.*", rows(query_heads, key_heads, key_heads, heads=True)),
            ("*.o_proj.weight", columns(query_heads, heads=True)),
            ("*.gate_proj.*", rows()),
            ("*.up_proj.*", rows()),
            ("*.gate_up_proj.*", rows(1, 1)),
            ("*.down_proj.weight", columns()),
            ("*norm.weight", None),
            ("*.o_proj.bias", None),
            ("*.down_proj.bias", None),
            ("*rotary_emb.inv_freq", None),
        )
    )
