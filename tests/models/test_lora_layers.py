"""LoRA layers that train: what they are, what they leave alone, and what does not fit."""

from __future__ import annotations

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel

from ddim_lightning.models.loading import load_components
from ddim_lightning.models.lora_layers import add_lora, check_lora

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")


@pytest.fixture
def transformer(tiny_model):
    return load_components(str(tiny_model), device=torch.device("cpu"), dtype=torch.float32).transformer


def test_layers_are_the_transformers_own_under_the_names_of_diffusers(transformer):
    before = {name: tensor.clone() for name, tensor in transformer.state_dict().items()}
    layers = add_lora(transformer, rank=4, alpha=None, targets=TARGETS, seed=0)
    names = set(layers.state_dict())
    assert len(names) == 3 * len(TARGETS) * 2
    assert "transformer_blocks.2.attn1.to_out.0.lora_B.weight" in names
    trained = {id(one) for one in transformer.parameters() if one.requires_grad}
    assert {id(one) for one in layers.parameters()} == trained
    for name, tensor in transformer.state_dict().items():
        if "lora_" not in name:
            assert torch.equal(tensor, before[name.replace("base_layer.", "")])
    assert layers.alpha == layers.rank == 4


def test_a_seed_decides_the_weights_and_the_global_state_stays(tiny_model):
    def make(seed):
        parts = load_components(str(tiny_model), device=torch.device("cpu"), dtype=torch.float32)
        return add_lora(parts.transformer, rank=2, alpha=1.0, targets=("to_q",), seed=seed).state_dict()

    state = torch.get_rng_state()
    first, again, other = make(0), make(0), make(1)
    assert torch.equal(state, torch.get_rng_state())
    name = "transformer_blocks.0.attn1.to_q.lora_A.weight"
    assert torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name])
    assert not any(tensor.any() for key, tensor in first.items() if "lora_B" in key)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 49}, "training.rank: must be at most 48, the smaller side of to_q, got 49"),
        ({"targets": ("to_q", "to_z")}, "training.targets: .* attn1.to_q, .* got 'to_z'"),
        ({"targets": ("attn1.norm_q",)}, "training.targets: .* got 'attn1.norm_q'"),
    ],
)
def test_what_does_not_fit_is_told_without_weights_and_with_them(transformer, options, message):
    options = {"rank": 4, "targets": ("to_q",)} | options
    with pytest.raises(ValueError, match=message):
        check_lora(transformer.config, **options)
    with pytest.raises(ValueError, match=message):
        add_lora(transformer, alpha=None, seed=0, **options)
    assert isinstance(transformer, CogVideoXTransformer3DModel) and not hasattr(transformer, "peft_config")


def test_a_transformer_with_adapters_is_refused(transformer):
    add_lora(transformer, rank=2, alpha=None, targets=("to_q",), seed=0)
    with pytest.raises(ValueError, match=r"training\.parts: lora trains in a transformer without adapters"):
        add_lora(transformer, rank=2, alpha=None, targets=("to_q",), seed=0)
