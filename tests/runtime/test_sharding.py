"""Weights that are spread over processes act as before in diffusers' forward pass, and the fused pass refuses them."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh

from ddim_lightning.models.loading import load_components
from ddim_lightning.network.network import Network
from ddim_lightning.network.predictor import TransformerPredictor
from ddim_lightning.runtime.sharding import is_sharded, shard_part


@pytest.fixture
def mesh():
    """The group of one process."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@pytest.mark.parametrize(("dtype", "tolerance"), [(None, 1e-6), (torch.bfloat16, 0.05)])
def test_a_sharded_transformer_predicts_as_before_and_is_no_network(tiny_model, mesh, dtype, tolerance):
    transformer = load_components(str(tiny_model), device=torch.device("cpu"), dtype=torch.float32).transformer
    transformer.requires_grad_(True)
    draw = torch.Generator().manual_seed(0)
    latents, embeds = torch.randn(2, 3, 8, 16, 16, generator=draw), torch.randn(2, 16, 24, generator=draw)
    predict, network = TransformerPredictor(transformer, lambda _: embeds), Network(transformer)
    timesteps = torch.tensor([100, 900])
    wanted = predict(latents, ["", ""], timesteps, reads=(1,))
    shard_part(transformer, mesh, dtype)
    shard_part(transformer, mesh, dtype)  # once is enough
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch fears that somebody writes into the velocities
        found = predict(latents, ["", ""], timesteps, reads=(1,))
    assert float((found - wanted).detach().norm() / wanted.norm()) <= tolerance
    found.square().mean().backward()
    assert all(weight.grad is not None and weight.grad.dtype == torch.float32 for weight in transformer.parameters())
    assert is_sharded(transformer)
    with pytest.raises(ValueError, match=r"^forward: .*FSDP2"):
        network.start_stage()
