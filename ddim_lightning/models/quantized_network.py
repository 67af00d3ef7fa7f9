"""The network with its blocks' large products in 8 bits, beside the exact one."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ddim_lightning.models.network import Network
from ddim_lightning.models.quantized import Precision, quantize_block
from ddim_lightning.models.weights import BlockWeights, Modulation


class QuantizedNetwork(Network):
    """A `Network` over the same model that multiplies in fewer bits.

    The exact weights stay: the other stages run on them, and from them those in 8 bits are made anew where they change
    or move. What a timestep decides is shared with the exact network.

    Args:
        exact: The network as loaded.
        precision: ``int8`` or ``fp8``.

    Raises:
        ValueError: For ``fp8``, a projection whose sizes the kernel cannot take.
    """

    def __init__(self, exact: Network, precision: Precision) -> None:
        super().__init__(exact.transformer, exact.attention)
        self.exact = exact
        self.precision: Precision = precision
        self._quantized: list[BlockWeights] = []
        self._sources = [
            weight
            for block in exact.transformer.transformer_blocks
            for part in (block.attn1.to_q, block.attn1.to_k, block.attn1.to_v, block.ff)
            for weight in part.parameters()
        ]
        self._states: list[tuple[int, int]] = []
        _ = self.blocks  # a model that cannot be brought to 8 bits is found out while it is loaded

    @property
    def blocks(self) -> Sequence[BlockWeights]:
        """The weights of all blocks, brought to 8 bits anew where those of the model were changed or moved."""
        exact = self.exact.blocks
        # Tensors made under inference mode keep no count of their changes.
        states = [(weight.data_ptr(), 0 if weight.is_inference() else weight._version) for weight in self._sources]
        if states != self._states:
            with torch.inference_mode(False):
                self._quantized = [quantize_block(weights, self.precision) for weights in exact]
            self._states = states
        return self._quantized

    def get_modulation(self, timestep: int) -> Modulation:
        """Return what a timestep decides; see `Network.get_modulation`."""
        return self.exact.get_modulation(timestep)
