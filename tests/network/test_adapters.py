"""LoRA acts as it does in plain diffusers, whenever it is loaded, switched or fused."""

from __future__ import annotations

import copy
from itertools import chain

import pytest
import torch
from diffusers import CogVideoXPipeline
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn

from ddim_lightning.network.network import Network
from tests.network.test_network import SDPA, VARIANTS, make_rows, make_variant, relative_error, run_diffusers

TARGETS = {
    "attention": ["to_q", "to_k", "to_v", "to_out.0"],
    "keys and values": ["to_k", "to_v"],
    "feed-forward": ["net.0.proj", "net.2"],
    "norms": ["norm1.linear", "norm2.linear", "norm_out.linear"],
    "time": ["linear_1", "linear_2"],
    "ends": ["proj_out", "text_proj"],
}


def write_lora(transformer, targets, folder, seed=0, **options):
    """Write a LoRA of noise with a large effect, as trainers write it, and return what the file holds."""
    model = copy.deepcopy(transformer)
    config = {"r": 3, "lora_alpha": 6, "target_modules": targets, "init_lora_weights": False} | options
    model.add_adapter(LoraConfig(**config))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    CogVideoXPipeline.save_lora_weights(folder, transformer_lora_layers=get_peft_model_state_dict(model))
    return load_file(folder / "pytorch_lora_weights.safetensors")


def make_transformer(folder):
    transformer = make_variant(**VARIANTS["5B"])
    return transformer, Network(transformer, SDPA), make_rows(2), folder


@pytest.fixture
def parts(tmp_path):
    return make_transformer(tmp_path)


def check_equal(transformer, network, rows, before=None):
    """Both forward passes agree, and say something else than before."""
    for timestep in (500, 20):
        theirs = run_diffusers(transformer, *rows, timestep)
        assert relative_error(network(*rows, timestep), theirs) <= 1e-5
    if before is not None:
        assert relative_error(network(*rows, 500), before) > 1e-3


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("how", ["active", "fused", "fused safely"])
@pytest.mark.parametrize("targets", list(TARGETS))
def test_a_lora_acts_as_in_diffusers(parts, targets, how, when):
    transformer, network, rows, folder = parts
    plain = run_diffusers(transformer, *rows, 500)
    if when == "after":
        network(*rows, 500)
    transformer.load_lora_adapter(write_lora(transformer, TARGETS[targets], folder), prefix="transformer")
    if how != "active":
        transformer.fuse_lora(safe_fusing=how == "fused safely")
        transformer.unload_lora()
    check_equal(transformer, network, rows, plain)


def test_a_lora_on_every_layer_of_a_variant(tmp_path):
    """Of temporal patches, the offset and the channels of an image, too."""
    transformer = make_variant(**VARIANTS["1.5-5B-I2V"])
    network, rows = Network(transformer, SDPA), make_rows(2, transformer.config)
    plain = network(*rows, 500)
    lora = write_lora(transformer, [*chain(*TARGETS.values()), "patch_embed.proj"], tmp_path)
    assert any("ofs_embedding" in name for name in lora) and any("patch_embed.proj" in name for name in lora)
    transformer.load_lora_adapter(lora, prefix="transformer")
    check_equal(transformer, network, rows, plain)


def test_adapters_are_followed_as_they_are_switched(parts):
    transformer, network, rows, folder = parts
    plain = network(*rows, 500)
    names = ("first", "second")
    loras = [write_lora(transformer, TARGETS["attention"], folder, seed=k) for k in range(2)]
    for name, lora in zip(names, loras, strict=True):
        transformer.load_lora_adapter(lora, prefix="transformer", adapter_name=name)
    seen = [plain]
    for names, weights in ((["first"], [1.0]), (["second"], [0.5]), (["first", "second"], [1.0, -0.7])):
        transformer.set_adapters(names, weights)
        check_equal(transformer, network, rows, seen[-1])
        seen.append(network(*rows, 500))
    transformer.disable_lora()
    assert relative_error(network(*rows, 500), plain) <= 1e-6
    transformer.enable_lora()
    assert relative_error(network(*rows, 500), seen[-1]) <= 1e-6
    transformer.unload_lora()
    assert relative_error(network(*rows, 500), plain) <= 1e-6


def test_an_adapter_that_is_switched_off_after_it_was_fused_is_off(parts):
    transformer, network, rows, folder = parts
    plain = network(*rows, 500)
    transformer.load_lora_adapter(write_lora(transformer, TARGETS["attention"], folder), prefix="transformer")
    transformer.fuse_lora()
    assert relative_error(network(*rows, 500), plain) > 1e-3
    transformer.disable_lora()
    assert relative_error(network(*rows, 500), plain) <= 1e-5
    check_equal(transformer, network, rows)


def test_weights_may_lie_in_any_order(parts):
    transformer, network, rows, _ = parts
    wanted = network(*rows, 500)
    layer = transformer.transformer_blocks[1].norm1.linear
    layer.weight.data = layer.weight.data.t().contiguous().t()
    assert relative_error(network(*rows, 500), wanted) <= 1e-5


def test_weights_of_an_adapter_that_change_are_seen(parts):
    transformer, network, rows, folder = parts
    transformer.load_lora_adapter(write_lora(transformer, TARGETS["attention"], folder), prefix="transformer")
    before = network(*rows, 500)
    with torch.no_grad():
        transformer.transformer_blocks[1].attn1.to_v.lora_B["default_0"].weight.mul_(3.0)
    check_equal(transformer, network, rows, before)
    before = network(*rows, 500)
    for parameter in transformer.parameters():  # as an average of weights is copied back
        parameter.data.copy_(parameter.data * 1.1)
    check_equal(transformer, network, rows, before)


@torch.no_grad()
def test_weights_that_change_behind_their_first_value_are_seen(parts):
    transformer, network, rows, folder = parts
    transformer.load_lora_adapter(write_lora(transformer, TARGETS["attention"], folder), prefix="transformer")
    block = transformer.transformer_blocks[1]
    for weight in (block.attn1.to_v.lora_B["default_0"].weight, block.norm1.linear.weight):
        before = network(*rows, 500)
        weight[1:].mul_(3.0)
        check_equal(transformer, network, rows, before)


@torch.no_grad()
@pytest.mark.parametrize("name", ["attn1.to_out.0", "norm1.linear"])
def test_a_bias_that_is_replaced_is_seen(parts, name):
    transformer, network, rows, _ = parts
    before, layer = network(*rows, 500), transformer.transformer_blocks[1].get_submodule(name)
    layer.bias = nn.Parameter(layer.bias + 0.3)
    check_equal(transformer, network, rows, before)


def test_an_adapter_gets_gradients_through_our_forward_pass(parts):
    transformer, network, rows, folder = parts
    transformer.load_lora_adapter(write_lora(transformer, TARGETS["attention"], folder), prefix="transformer")
    trained = {n: p.requires_grad_(True) for n, p in transformer.named_parameters() if "lora_" in n}
    for run in (network, lambda *rows: run_diffusers(transformer, *rows)):
        found = torch.autograd.grad(run(*rows, 500).square().mean(), list(trained.values()))
        if run is network:
            ours = found
    for name, one, other in zip(trained, ours, found, strict=True):
        assert relative_error(one, other) <= 1e-4, name


def test_what_is_more_than_lora_is_refused_by_name(parts):
    transformer, network, rows, _ = parts
    transformer.add_adapter(LoraConfig(r=2, target_modules=["to_k"], use_dora=True))
    with pytest.raises(ValueError, match=r"^transformer: the adapter 'default' of to_k must be plain LoRA, got Dora"):
        network(*rows, 500)


def test_other_layers_are_refused_by_name(parts):
    class OwnLinear(nn.Linear):
        pass

    transformer, network, rows, _ = parts
    transformer.transformer_blocks[2].attn1.to_k = OwnLinear(32, 32)
    with pytest.raises(ValueError, match=r"^transformer: its projection to_k must be .*got OwnLinear"):
        network(*rows, 500)
