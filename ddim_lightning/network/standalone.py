"""The forward pass is made a module of its own for exporters: one row layout, one size, tensors in and out."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import CogVideoXTransformer3DModel
from torch import Tensor, nn

from ddim_lightning.network.adapters import Linear
from ddim_lightning.network.attention import Attention
from ddim_lightning.network.forward import run_rows
from ddim_lightning.network.layout import RowLayout, plan_pass
from ddim_lightning.network.rotary import make_rotary_table
from ddim_lightning.network.weights import BlockWeights, Norm, gather_block, make_modulations

_PARTS = (
    "patch_embed", "time_proj", "time_embedding", "ofs_proj", "ofs_embedding", "norm_final", "norm_out", "proj_out",
)  # fmt: skip


class StandaloneNetwork(nn.Module):
    """A `StandaloneNetwork` evaluates what `Network` does; the timestep is a tensor, and every layer reads.

    Args:
        transformer: The model; its weights are shared, not copied.
        layout: The rows.
        size: (f, h, w) of the latents.
        attention: The kernel.

    Raises:
        ValueError: A kernel that is switched on around a pass, by what is not part of a graph.
    """

    def __init__(
        self,
        transformer: CogVideoXTransformer3DModel,
        layout: RowLayout,
        size: tuple[int, int, int],
        attention: Attention,
    ) -> None:
        super().__init__()
        if attention.flash not in (None, "FA2"):
            rule = "FlashAttention 3 and 4 are switched on around a pass, which no artifact does; must be another"
            raise ValueError(f"attention: {rule}, got {attention.name!r}")
        self.config, self.layout, self.attention = transformer.config, layout, attention
        for name in _PARTS:
            self.add_module(name, getattr(transformer, name))
        blocks = transformer.transformer_blocks
        # Under the names that the modulation is made from.
        self.transformer_blocks = nn.ModuleList(
            nn.ModuleDict({"norm1": block.norm1, "norm2": block.norm2}) for block in blocks
        )
        self.weights = nn.ModuleList(_Block(gather_block(block)) for block in blocks)
        rotary = None
        if self.config.use_rotary_positional_embeddings:
            rotary = make_rotary_table(transformer, *size, transformer.device)
        for name, table in zip(("cos", "sin"), rotary or (None, None), strict=True):
            self.register_buffer(name, table)

    def forward(self, latents: Tensor, prompt_embeds: Tensor, timestep: Tensor, kv_scale: Tensor) -> Tensor:
        """Evaluate the rows.

        Args:
            latents: (rows, f, in_channels, h, w) in the model's dtype.
            prompt_embeds: (rows, tokens, width), same dtype.
            timestep: Scalar int64, 0 .. 999.
            kv_scale: (layers,) float32, 0 .. 1; without effect where no row reads.

        Returns:
            (wanted rows, f, out_channels, h, w) velocities, same dtype.
        """
        blocks = [block.gather() for block in self.weights]  # type: ignore[operator]
        heads, eps = self.config.num_attention_heads, self.config.norm_eps
        return run_rows(
            self,
            blocks,
            make_modulations(self, timestep[None])[0],
            latents,
            prompt_embeds,
            None if self.cos is None else (self.cos, self.sin),  # type: ignore[arg-type]
            kv_scale,
            plan_pass(self.layout, self.layout.rows, None, len(blocks), heads, eps),
            lambda rows, tokens: self.attention,
        )


class _Block(nn.Module):
    """A `_Block` holds the weights of a block as buffers, and gives them back as they were."""

    def __init__(self, weights: BlockWeights) -> None:
        super().__init__()
        self._eps: dict[str, float] = {}
        for name, part in weights._asdict().items():
            self.register_buffer(f"{name}_weight", _detach(part.weight))
            self.register_buffer(f"{name}_bias", _detach(part.bias))
            if isinstance(part, Norm):
                self._eps[name] = part.eps

    def gather(self) -> BlockWeights:
        parts: dict[str, Any] = {}
        for name in BlockWeights._fields:
            weight, bias = getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias")
            parts[name] = Norm(weight, bias, self._eps[name]) if name in self._eps else Linear(weight, bias)
        return BlockWeights(**parts)


def _detach(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.detach()
