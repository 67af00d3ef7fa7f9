"""Weights that train are spread over processes, block by block (FSDP2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor


def shard_part(part: nn.Module, mesh: DeviceMesh, dtype: torch.dtype | None = None) -> None:
    """Spread the weights of a part over processes; each block is gathered while it computes.

    Whatever is in it goes along: frozen weights, adapters of peft, the mark of sources. It computes in its own forward
    pass alone, in all processes alike. A part that is spread already stays as it is.

    Args:
        part: A CogVideoX transformer or a T5 encoder, changed in place; the same in every process.
        mesh: Of one axis, the processes.
        dtype: In which weights are gathered, and gradients added up in float32; ``None`` is that of each weight.
    """
    if isinstance(part, FSDPModule):
        return
    # Autocast casts what enters; rotary tables and timesteps stay as exact as they are.
    policy = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=None if dtype is None else torch.float32, cast_forward_inputs=False
    )
    for block in _find_blocks(part):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # Sharded again after a forward pass: after one without a backward pass checkpoints would find whole weights.
    fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=True)


def is_sharded(part: nn.Module) -> bool:
    """Whether weights of a part are spread over processes."""
    return any(isinstance(weight, DTensor) for weight in part.parameters())


def gather(weight: Tensor) -> Tensor:
    """Return a weight as a whole; every process has to ask for one that is spread."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def _find_blocks(part: Any) -> nn.ModuleList:
    blocks: nn.ModuleList = part.transformer_blocks if hasattr(part, "transformer_blocks") else part.encoder.block
    return blocks
