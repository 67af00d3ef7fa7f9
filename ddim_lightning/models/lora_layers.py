"""LoRA layers that train are put into a transformer by peft, and stand together as one module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import CogVideoXTransformer3DModel
from peft import LoraConfig
from torch import nn

ADAPTER = "trained"
"""What peft calls the adapter that trains."""


class LoraLayers(nn.Module):
    """The `LoraLayers` are the layers of one adapter in a transformer, without the transformer.

    They are its own layers, not copies. Their ``state_dict`` has the names of diffusers' LoRA format, without
    ``transformer.`` in front: ``transformer_blocks.0.attn1.to_q.lora_A.weight``.

    Args:
        transformer: A transformer with an adapter of the name `ADAPTER`.
        rank: Of the adapter.
        alpha: Of the adapter.
    """

    def __init__(self, transformer: CogVideoXTransformer3DModel, rank: int, alpha: float) -> None:
        super().__init__()
        self.rank, self.alpha = rank, alpha
        for name, layer in transformer.named_modules():
            if hasattr(layer, "lora_A") and ADAPTER in layer.lora_A:
                for half in ("lora_A", "lora_B"):
                    self.place(f"{name}.{half}", getattr(layer, half)[ADAPTER])

    def place(self, name: str, layer: nn.Module) -> None:
        """Place a layer under a dotted name."""
        *path, last = name.split(".")
        parent: nn.Module = self
        for part in path:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent._modules[part] or parent
        parent.add_module(last, layer)


def add_lora(
    transformer: CogVideoXTransformer3DModel, *, rank: int, alpha: float | None, targets: Sequence[str], seed: int
) -> LoraLayers:
    """Put LoRA layers that train into a transformer, whose own weights are frozen; at first they change nothing.

    Args:
        transformer: Changed in place.
        rank: Of every layer's change, 1 .. the smaller side of the layer.
        alpha: Changes are scaled by alpha / rank; ``None`` is the rank.
        targets: Linear layers by the ends of their names.
        seed: Of the weights; the global random state is not touched.

    Raises:
        ValueError: Targets that are no linear layers of the transformer, a rank that is larger than a layer, or
            adapters that are there already.

    Source: Hu et al. 2021, "LoRA", arXiv:2106.09685.
    """
    if own := list(getattr(transformer, "peft_config", {})):
        rule = "lora trains in a transformer without adapters; merge or unload them first"
        raise ValueError(f"training.parts: {rule}, got {', '.join(own)}")
    _check_targets(transformer, rank, targets)
    scale = float(rank if alpha is None else alpha)
    transformer.requires_grad_(False)
    # peft draws from the global state, also of every GPU where there is one; layers are made where the weights lie.
    with torch.random.fork_rng(), torch.inference_mode(False):
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=scale, target_modules=list(targets))  # type: ignore[arg-type]
        transformer.add_adapter(config, adapter_name=ADAPTER)
    return LoraLayers(transformer, rank, scale)


def check_lora(config: Mapping[str, Any], *, rank: int, targets: Sequence[str]) -> None:
    """Raise a ValueError where LoRA layers do not fit a transformer of a config; nothing is loaded for it."""
    with torch.device("meta"):
        _check_targets(CogVideoXTransformer3DModel.from_config(dict(config)), rank, targets)


def _check_targets(transformer: CogVideoXTransformer3DModel, rank: int, targets: Sequence[str]) -> None:
    layers = {name: layer for name, layer in transformer.named_modules() if isinstance(layer, nn.Linear)}
    for target in targets:
        found = [layer for name, layer in layers.items() if name == target or name.endswith(f".{target}")]
        if not found:
            known = sorted({name.split(".", 2)[2] for name in layers if name.startswith("transformer_blocks.")})
            rule = f"must end the names of linear layers, in the blocks {', '.join(known)}"
            raise ValueError(f"training.targets: {rule}, got {target!r}")
        most = min(min(layer.in_features, layer.out_features) for layer in found)
        if rank > most:
            raise ValueError(f"training.rank: must be at most {most}, the smaller side of {target}, got {rank}")
