"""Adapters for tests: random LoRA with a large effect on every linear layer of the blocks, with a card."""

from __future__ import annotations

import torch
from torch import nn

import ddim_lightning
from ddim_lightning.models.adapter_card import AdapterCard
from ddim_lightning.models.adapter_file import digest_base, write_adapter

KV_INJECTION = {"class_path": "ddim_lightning.diffusion.editors.KVInjection", "init_args": {"kv_scale": 0.5}}


def make_tensors(transformer, *, rank=3, seed=0, size=0.3, mark=False):
    """Make the layers as `LoraLayers.state_dict` names them."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, layer in transformer.named_modules():
        if isinstance(layer, nn.Linear) and name.startswith("transformer_blocks."):
            tensors[f"{name}.lora_A.weight"] = size * torch.randn(rank, layer.in_features, generator=generator)
            tensors[f"{name}.lora_B.weight"] = size * torch.randn(layer.out_features, rank, generator=generator)
    if mark:
        tensors["source_mark.weight"] = torch.randn(transformer.proj_out.in_features, generator=generator)
    return tensors


def make_card(transformer, **values):
    """Make the card of an edit adapter of a transformer."""
    card = {
        "objectives": ({"class_path": "ddim_lightning.InContextEditing", "init_args": {"weight": 1.0}},),
        "editor": KV_INJECTION,
        "num_inference_steps": 3,
        "guidance_scale": 1.5,
        "base": digest_base(transformer),
        "source_mark": None,
        "package_version": ddim_lightning.__version__,
    }
    return AdapterCard(**card | values)


def write_random_adapter(path, transformer, *, rank=3, alpha=6.0, seed=0, mark=False, **values):
    """Write an adapter of noise; the values are those of its card."""
    tensors = make_tensors(transformer, rank=rank, seed=seed, mark=mark)
    return write_adapter(path, tensors, make_card(transformer, **values), rank=rank, alpha=alpha)
