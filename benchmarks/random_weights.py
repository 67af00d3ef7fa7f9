"""Modules get random weights that no output can hide behind, made directly where they will run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

Module = TypeVar("Module", bound=nn.Module)


def make_random(build: Callable[[], Module], *, device: torch.device, dtype: torch.dtype, seed: int) -> Module:
    """Build a module and give it random weights, frozen and in eval mode.

    It is built on the meta device and filled on ``device``, so nothing of it ever lies on the host; the global random
    state is not touched.

    Args:
        build: Builds the module; runs under the meta device.
        device: Where the weights are drawn; the meta device leaves them without values.
        dtype: Of all weights.
        seed: The same seed gives the same weights on one kind of device.
    """
    with torch.device("meta"):
        module = build()
    nn.Module.to(module, dtype)  # diffusers' own warns of float32 layers that CogVideoX does not have
    module.to_empty(device=device)
    if isinstance(module, PreTrainedModel):
        module.tie_weights()  # to_empty has parted them
    if device.type != "meta":
        _apply_random_weights(module, torch.Generator(device).manual_seed(seed))
    return module.requires_grad_(False).eval()


@torch.no_grad()
def _apply_random_weights(module: nn.Module, generator: torch.Generator) -> None:
    """Draw every weight: matrices keep the variance of their input, gains lie near 1, biases near 0.

    Zero biases and gains of exactly 1, as initialisations have them, would let an error in any of them pass.
    """
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.normal_(1.0 if name.endswith("weight") else 0.0, 0.1, generator=generator)
    for buffer in module.buffers():  # positions, learned or not
        buffer.normal_(0.0, 0.1, generator=generator)
