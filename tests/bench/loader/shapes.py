"""The tensors of checkpoints that look like published ones: names and shapes, no bytes."""

from __future__ import annotations

from dataclasses import dataclass

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Llama:
    """A dense decoder, or with `experts` a mixture of them."""

    hidden: int
    layers: int
    queries: int  # rows of q_proj
    keys: int  # rows of k_proj and of v_proj
    inner: int  # rows of gate_proj and of up_proj
    vocabulary: int
    tied: bool = False
    experts: int = 0

    def shapes(self) -> Shapes:
        """All tensors in name order, in which the reference implementation writes them."""
        tensors: Shapes = {"model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        if not self.tied:
            tensors["lm_head.weight"] = (self.vocabulary, self.hidden)
        tensors["model.norm.weight"] = (self.hidden,)
        for layer in range(self.layers):
            for name, shape in self._layer().items():
                tensors[f"model.layers.{layer}.{name}"] = shape
        return dict(sorted(tensors.items()))

    def _layer(self) -> Shapes:
        layer: Shapes = {
            "input_layernorm.weight": (self.hidden,),
            "post_attention_layernorm.weight": (self.hidden,),
            "self_attn.q_proj.weight": (self.queries, self.hidden),
            "self_attn.k_proj.weight": (self.keys, self.hidden),
            "self_attn.v_proj.weight": (self.keys, self.hidden),
            "self_attn.o_proj.weight": (self.hidden, self.queries),
        }
        blocks = [f"mlp.experts.{expert}" for expert in range(self.experts)] or ["mlp"]
        for block in blocks:
            layer[f"{block}.gate_proj.weight"] = (self.inner, self.hidden)
            layer[f"{block}.up_proj.weight"] = (self.inner, self.hidden)
            layer[f"{block}.down_proj.weight"] = (self.hidden, self.inner)
        if self.experts:
            layer["mlp.gate.weight"] = (self.experts, self.hidden)
            layer["self_attn.q_norm.weight"] = (self.hidden,)
            layer["self_attn.k_norm.weight"] = (self.hidden,)
        return layer


SMOLLM2_135M = Llama(576, 30, 576, 192, 1536, 49_152, tied=True)
LLAMA_1B = Llama(2048, 22, 2048, 256, 5632, 49_152)
LLAMA_3B = Llama(3072, 26, 3072, 1024, 8192, 128_256)
# The tensors of Qwen3-30B-A3B, 18,867 of them, with dimensions that make each expert's 4 KiB.
EXPERTS = Llama(64, 48, 64, 64, 32, 512, experts=128)
FEW_EXPERTS = Llama(64, 4, 64, 64, 32, 512, experts=32)
TINY = Llama(256, 8, 256, 128, 768, 8192)
