"""The memory presets, applied to a loaded model: which of its parts are parked, and which are streamed."""

from __future__ import annotations

import torch

from ddim_lightning.engine import InversionEngine
from ddim_lightning.models.network import Network
from ddim_lightning.models.weights import gather_block, gather_norms, place_block, place_norms
from ddim_lightning.runtime.host_memory import HostCopy
from ddim_lightning.runtime.memory import Parkable, ParkedModule, Placement
from ddim_lightning.runtime.streaming import WeightStream


def list_parts_on_host(memory: str) -> tuple[str, ...]:
    """Return the parts of a model that a preset wants loaded on the host; they come to the device in their time."""
    return () if memory == "exact" else ("transformer", "vae")


def apply_memory(engine: InversionEngine, memory: str, device: torch.device) -> None:
    """Apply a memory preset to an engine; results are those of ``exact``, byte for byte.

    ``exact`` leaves everything on the device. ``staged`` keeps either the VAE or the transformer there, whichever
    works, and the other in host memory. ``low_memory`` does so with the VAE, and of the transformer's blocks keeps two
    at a time: each comes from host memory while the one before it computes. The text encoder is left alone.

    Args:
        engine: Changed in place. Its weights are frozen, and do not change while it is used.
        memory: The preset, see `PRESETS`.
        device: Where the model works; parts on the host come to it when they work.
    """
    if memory == "exact":
        return
    device = torch.empty(0, device=device).device  # with its index
    network = engine.network
    transformer: list[Parkable]
    if memory == "staged":
        _ = network.blocks  # makes query, key and value one matrix before the weights get their place
        transformer = [ParkedModule(engine.components.transformer, device, network.forget)]
    else:
        transformer = list(_stream_blocks(network, device))
    vae = ParkedModule(engine.components.vae, device)
    engine.placement = Placement(device, {"vae": [vae], "transformer": transformer})
    network.before_pass = lambda: engine.bring("transformer")


@torch.inference_mode(False)
def _stream_blocks(network: Network, device: torch.device) -> tuple[Parkable, Parkable]:
    """Let a network stream its blocks from the host; what is not in a block moves to the device and stays there."""
    blocks, norms = [], []
    for block in network.transformer.transformer_blocks:
        blocks.append(HostCopy(gather_block(block), device))
        place_block(block, blocks[-1].weights)
        # What a timestep decides is remembered, so these travel once a timestep and not in every pass.
        norms.append(HostCopy(gather_norms(block), device))
        place_norms(block, norms[-1].weights)
    for name, child in network.transformer.named_children():
        if name != "transformer_blocks":
            child.to(device)
    streams = WeightStream(blocks, device), WeightStream(norms, device)
    network.stream(*streams)
    return streams
