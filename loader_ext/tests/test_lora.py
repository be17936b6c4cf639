"""LoRA adapters: what peft computes, over weights that nobody touches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from stoker_loader import errors, lora

# peft uses what Transformers is about to rename, and warns of adapters on tied embeddings.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers.*"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft.*"),
]

TOKENS = torch.arange(12).reshape(2, 6)
Q_PROJ = "model.layers.0.self_attn.q_proj"


def llama() -> LlamaForCausalLM:
    torch.manual_seed(3)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    ).eval()


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(3)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32)
    ).eval()


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model(TOKENS).logits


def trained(folder: Path, base: nn.Module, *, seed: int = 1, **options: Any) -> torch.Tensor:
    """Save what training could have made of an adapter; return what peft computes with it."""
    model = peft.get_peft_model(base, peft.LoraConfig(**options)).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    model.save_pretrained(folder)
    return logits(model)


@pytest.fixture
def simple(disk: Path) -> Path:
    """An adapter of the tiny Llama's query and value projections."""
    trained(disk / "simple", llama(), r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    return disk / "simple"


def state_of(model: nn.Module) -> dict[str, tuple[int, str]]:
    """Every weight's address and bytes."""
    return {
        name: (tensor.data_ptr(), hashlib.sha256(tensor.view(torch.uint8).numpy()).hexdigest())
        for name, tensor in model.state_dict().items()
    }


ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
ADAPTERS = {
    "plain": {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
    "every linear": {"r": 3, "lora_alpha": 5, "target_modules": ALL},
    "rank-stabilized": {"r": 4, "lora_alpha": 16, "use_rslora": True, "target_modules": ALL},
    "embedding": {"r": 4, "lora_alpha": 4, "target_modules": ["embed_tokens", "k_proj"]},
    "dropout": {"r": 4, "lora_alpha": 4, "lora_dropout": 0.5, "target_modules": ["q_proj"]},
    "some layers": {"r": 4, "target_modules": ["q_proj"], "layers_to_transform": [1]},
    "patterns": {
        "r": 4,
        "lora_alpha": 16,
        "target_modules": ALL,
        "rank_pattern": {"q_proj": 2, r"layers\.1\..*up_proj": 6},
        "alpha_pattern": {"model.layers.0.mlp.down_proj": 3, "v_proj": 32},
        "use_rslora": True,
    },
}


@pytest.mark.parametrize("options", ADAPTERS.values(), ids=ADAPTERS)
@pytest.mark.parametrize("make", [llama, gpt2])
def test_outputs_are_those_of_peft(
    disk: Path, make: Callable[[], nn.Module], options: dict[str, Any]
) -> None:
    if make is gpt2:
        if "layers_to_transform" in options:
            options = options | {"layers_pattern": "h"}
        names = {"q_proj": "c_attn", "up_proj": "c_fc", "down_proj": "mlp.c_proj",
                 "embed_tokens": "wte", "lm_head": "lm_head"}  # fmt: skip
        options = options | {"fan_in_fan_out": True}
        wanted = options["target_modules"]
        options["target_modules"] = [names[name] for name in wanted if name in names]
        options.pop("rank_pattern", None)
        options.pop("alpha_pattern", None)
    expected = trained(disk / "a", make(), **options)
    model = make()
    plain = logits(model)
    lora.open_adapter(disk / "a").attach(model)
    found = logits(model)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found - plain).abs().max() > 1e-3  # the adapter does something


def test_bfloat16_is_close_to_peft(disk: Path) -> None:
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}
    trained(disk / "a", llama(), **options)
    weights = load_file(disk / "a" / "adapter_model.safetensors")
    halves = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
    save_file(halves, disk / "a" / "adapter_model.safetensors")
    base = llama().to(torch.bfloat16)
    expected = logits(peft.PeftModel.from_pretrained(llama().to(torch.bfloat16), disk / "a"))
    lora.open_adapter(disk / "a").attach(base)
    found = logits(base)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=3e-2, atol=3e-2)


def test_the_factors_are_the_mapped_file(simple: Path) -> None:
    adapter = lora.open_adapter(simple)
    file = str((simple / "adapter_model.safetensors").resolve())
    ranges = [
        [int(part, 16) for part in line.split()[0].split("-")]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(file)
    ]
    assert adapter.stats.copied_bytes == 0
    assert len(adapter.pairs) == 4
    model = llama()
    adapter.attach(model)
    hooks = [h for module in model.modules() for h in module._forward_hooks.values()]
    addresses = {tensor.data_ptr() for hook in hooks for tensor in (hook._down, hook._up)}
    assert addresses == {t.data_ptr() for pair in adapter.pairs for t in (pair.down, pair.up)}
    assert all(any(begin <= a < end for begin, end in ranges) for a in addresses)


def test_detaching_restores_exactly(simple: Path) -> None:
    model = llama()
    before, plain = state_of(model), logits(model)
    modules = [(name, id(module)) for name, module in model.named_modules()]
    attached = lora.open_adapter(simple).attach(model)
    assert state_of(model) == before  # also while it is attached
    assert not torch.equal(logits(model), plain)
    attached.detach()
    attached.detach()  # does nothing
    assert state_of(model) == before
    assert [(name, id(module)) for name, module in model.named_modules()] == modules
    assert torch.equal(logits(model), plain)
    assert not any(module._forward_hooks for module in model.modules())


def test_several_adapters_are_switched_and_add_up(disk: Path) -> None:
    common = {"r": 4, "lora_alpha": 8}
    first = trained(disk / "a", llama(), target_modules=["q_proj"], **common)
    second = trained(disk / "b", llama(), seed=2, target_modules=["q_proj", "o_proj"], **common)
    model = llama()
    before, plain = state_of(model), logits(model)
    one = lora.open_adapter(disk / "a").attach(model, name="one")
    two = lora.open_adapter(disk / "b").attach(model, name="two")
    both = logits(model)
    assert not torch.allclose(both, first, atol=1e-3)
    assert not torch.allclose(both, second, atol=1e-3)
    for names, expected in [
        (["one"], first), (["two"], second), ([], plain), (["two", "one"], both), (["one"], first),
    ]:  # fmt: skip
        lora.switch(model, *names)
        torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
    reference = peft.PeftModel.from_pretrained(llama(), disk / "a", adapter_name="one")
    reference.load_adapter(disk / "b", adapter_name="two")
    reference.base_model.set_adapter(["one", "two"])
    torch.testing.assert_close(both, logits(reference), rtol=1e-5, atol=1e-5)
    one.detach()
    lora.switch(model, "two")
    torch.testing.assert_close(logits(model), second, rtol=1e-5, atol=1e-5)
    two.detach()
    assert torch.equal(logits(model), plain)
    assert state_of(model) == before


def test_an_adapter_that_a_device_has_no_room_for_is_not_half_attached(
    simple: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, adapter = llama(), lora.open_adapter(simple)
    move, moved = torch.Tensor.to, []

    def to(tensor: torch.Tensor, *arguments: Any) -> torch.Tensor:
        moved.append(tensor)
        if len(moved) == 4:
            raise torch.OutOfMemoryError
        return move(tensor, *arguments)

    monkeypatch.setattr(torch.Tensor, "to", to)
    with pytest.raises(torch.OutOfMemoryError):
        adapter.attach(model)
    monkeypatch.undo()
    assert not any(module._forward_hooks for module in model.modules())
    adapter.attach(model).detach()


def test_names_are_of_one_adapter_each(simple: Path) -> None:
    model = llama()
    adapter = lora.open_adapter(simple)
    attached = adapter.attach(model, name="a")
    with pytest.raises(errors.AdapterNameError, match="'a' is attached already; detach it"):
        adapter.attach(model, name="a")
    with pytest.raises(errors.AdapterNameError, match="no adapter 'b' is attached; there are: a"):
        lora.switch(model, "a", "b")
    assert attached.enabled
    attached.detach()
    adapter.attach(model, name="a").detach()


def test_the_base_learns_and_generates_under_an_adapter(simple: Path) -> None:
    model = llama()
    lora.open_adapter(simple).attach(model)
    model(TOKENS).logits.sum().backward()
    assert model.model.layers[0].self_attn.q_proj.weight.grad is not None
    assert model.generate(TOKENS[:1], max_new_tokens=3, do_sample=False).shape == (1, 9)


def test_all_that_does_not_fit_is_listed_and_nothing_is_hooked(simple: Path) -> None:
    model = llama()
    attention = model.model.layers[0].self_attn
    attention.q_proj = nn.Linear(32, 40, bias=False)
    attention.v_proj = nn.Conv1d(32, 16, 1)
    del model.model.layers[1].self_attn.q_proj
    fused = model.model.layers[1].self_attn
    del fused.v_proj
    fused.qkv_proj = nn.Linear(32, 64, bias=False)
    del model.model.layers[0].mlp
    with pytest.raises(errors.AdapterMismatchError) as caught:
        lora.open_adapter(simple).attach(model)
    error = caught.value
    assert error.missing == ()
    assert set(error.fused) == {
        "model.layers.1.self_attn.q_proj (in qkv_proj)",
        "model.layers.1.self_attn.v_proj (in qkv_proj)",
    }
    assert set(error.mismatched) == {
        f"{Q_PROJ} (model 32 to 40, adapter 32 to 32)",
        "model.layers.0.self_attn.v_proj (is a Conv1d)",
    }
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(errors.AdapterMismatchError, match=r"missing in the model: .*q_proj") as c:
        lora.open_adapter(simple).attach(nn.Sequential(nn.Linear(2, 2)))
    assert len(c.value.missing) == 4


def test_a_weight_that_comes_along_must_be_the_models_own(disk: Path) -> None:
    """peft saves the whole weight of an embedding with an adapter; training may have changed it."""
    trained(disk / "a", llama(), r=4, target_modules=["embed_tokens", "q_proj"])
    adapter = lora.open_adapter(disk / "a")
    assert list(adapter.copies) == ["model.embed_tokens"]
    model = llama()
    adapter.attach(model).detach()
    adapter.attach(model.to(torch.bfloat16)).detach()  # the same weights, rounded
    model = llama()
    with torch.no_grad():
        model.model.embed_tokens.weight[0, 0] += 1
    with pytest.raises(errors.AdapterMismatchError, match="comes with another weight") as caught:
        adapter.attach(model)
    assert len(caught.value.mismatched) == 1


def test_a_model_on_the_meta_device_has_to_be_loaded_first(simple: Path) -> None:
    with torch.device("meta"):
        model = llama()
    with pytest.raises(errors.AdapterMismatchError, match="has no weights yet: load them first"):
        lora.open_adapter(simple).attach(model)


REFUSED = [
    ({"use_dora": True}, "needs use_dora True"),
    ({"peft_type": "IA3"}, "peft_type 'IA3'"),
    ({"bias": "all"}, "bias 'all'"),
    ({"modules_to_save": ["lm_head"]}, r"modules_to_save \['lm_head'\]"),
    ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4'"),
    ({"lora_bias": True}, "lora_bias True"),
    ({"layer_replication": [[0, 1]]}, "layer_replication"),
    ({"target_parameters": ["experts.up"]}, "target_parameters"),
    ({"something_new": {"x": 1}}, "something_new"),
    ({"rank_pattern": {"(a|aa)*b": 2}}, r"in rank_pattern the pattern '\(a\|aa\)\*b'"),
    ({"alpha_pattern": {"(?:x)+y": 2}}, "which repeats too much"),
    ({"alpha_pattern": {"a*a*a*b": 2}}, "which repeats too much"),
]


@pytest.mark.parametrize(("change", "words"), REFUSED, ids=lambda value: str(value)[:30])
def test_what_is_not_plain_lora_is_refused_by_name(
    simple: Path, change: dict[str, Any], words: str
) -> None:
    rewrite_config(simple, change)
    with pytest.raises(errors.AdapterUnsupportedError, match=words) as caught:
        lora.open_adapter(simple)
    assert "merge this adapter into its base model" in str(caught.value)
    assert caught.value.file == str(simple / "adapter_config.json")


def test_a_real_dora_adapter_is_refused(disk: Path) -> None:
    trained(disk / "a", llama(), r=4, target_modules=["q_proj"], use_dora=True)
    with pytest.raises(errors.AdapterUnsupportedError, match="needs use_dora True"):
        lora.open_adapter(disk / "a")
    rewrite_config(disk / "a", {"use_dora": False})
    with pytest.raises(errors.AdapterUnsupportedError, match="lora_magnitude_vector") as caught:
        lora.open_adapter(disk / "a")
    assert caught.value.tensor is not None


BROKEN = [
    ({"r": 0}, "r must be a positive integer, not 0"),
    ({"r": True}, "not True"),
    ({"lora_alpha": "8"}, "lora_alpha must be a number, not '8'"),
    ({"lora_alpha": float("nan")}, "not nan"),
    ({"rank_pattern": {"(": 2}}, r"rank_pattern has the pattern '\('"),
    ({"rank_pattern": {"(?i)q_proj": 2}}, "global flags not at the start"),
    ({"rank_pattern": {"a{99999999999}": 2}}, "the repetition number is too large"),
    ({"rank_pattern": {"a" * 201: 2}}, "a pattern of 201 characters"),
    ({"rank_pattern": [1]}, "rank_pattern is no object"),
    ({"lora_alpha": 10**400}, "lora_alpha must be a number"),
    ({"rank_pattern": {"q_proj": 1.5}}, r"rank_pattern\['q_proj'\] must be a positive integer"),
    ({"r": 3}, "whose inner dimension is not 3"),
]


@pytest.mark.parametrize(("change", "words"), BROKEN, ids=lambda value: str(value)[:30])
def test_a_broken_configuration(simple: Path, change: dict[str, Any], words: str) -> None:
    rewrite_config(simple, change)
    with pytest.raises(errors.AdapterInvalidError, match=words):
        lora.open_adapter(simple)


def test_files_that_are_broken_or_missing(simple: Path, disk: Path) -> None:
    config, weights = simple / "adapter_config.json", simple / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = f"base_model.model.{Q_PROJ}.lora_B.weight"
    save_file({k: v for k, v in tensors.items() if k != name}, weights)
    with pytest.raises(errors.AdapterInvalidError, match=f"{Q_PROJ} has one factor of two"):
        lora.open_adapter(simple)
    save_file(tensors | {name: tensors[name].to(torch.int32)}, weights)
    with pytest.raises(errors.AdapterInvalidError, match=r"torch\.int32"):
        lora.open_adapter(simple)
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(errors.DataTruncatedError):
        lora.open_adapter(simple)
    weights.rename(simple / "adapter_model.bin")
    with pytest.raises(errors.PickleRefusedError, match="python -m stoker_loader convert"):
        lora.open_adapter(simple)
    (simple / "adapter_model.bin").unlink()
    with pytest.raises(errors.CheckpointNotFoundError, match=r"adapter_model\.safetensors"):
        lora.open_adapter(simple)
    for text in ("[]", "{", "[" * 100_000):
        config.write_text(text)
        with pytest.raises(errors.AdapterInvalidError):
            lora.open_adapter(simple)
    config.unlink()
    config.mkdir()
    with pytest.raises(errors.StorageError, match="Is a directory"):
        lora.open_adapter(simple)
    with pytest.raises(errors.CheckpointNotFoundError, match=r"adapter_config\.json"):
        lora.open_adapter(disk / "gone")


def rewrite_config(adapter: Path, change: dict[str, Any]) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
