"""A network remembers what it was asked for, so that the work of a step can be told in closed form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ddim_lightning.network.held import Held, HeldRows
from ddim_lightning.network.network import Network
from ddim_lightning.network.token_masks import split_tokens
from ddim_lightning.types import KVScale

from .flops import Flops, count_hold, count_pass, make_sizes


class CountedNetwork:
    """A `CountedNetwork` is a network whose passes are counted.

    Args:
        network: Evaluates the rows.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.rows: list[int] = []
        """Rows of every pass so far."""
        self._counts: list[Callable[[], Flops]] = []
        self._largest: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    @property
    def dtype(self) -> torch.dtype:
        """In which latents and embeddings enter."""
        return self.network.dtype

    @property
    def num_layers(self) -> int:
        """How many layers have keys and values to read."""
        return self.network.num_layers

    @property
    def in_channels(self) -> int:
        """Channels of a row."""
        return self.network.in_channels

    def __call__(
        self,
        latents: Tensor,
        prompt_embeds: Tensor,
        timestep: int,
        *,
        wanted: int | None = None,
        reads: tuple[int, ...] = (),
        kv_scale: KVScale | None = None,
        held: HeldRows | None = None,
        masks: Sequence[Tensor | None] = (),
    ) -> Tensor:
        """Evaluate the rows; see `Network`. Nothing is worked out here, which would count as time of the step.

        Raises:
            ValueError: Masks, under which rows have fewer tokens than are counted.
        """
        if masks:
            raise ValueError(f"masks: must be none where work is counted, got {len(masks)}")
        layout: dict[str, Any] = {"wanted": wanted, "reads": reads, "kv_scale": kv_scale}
        shape, rows, tokens = latents.shape, latents.shape[0], prompt_embeds.shape[1]
        if rows > max(self.rows, default=0):
            self._largest = (latents, prompt_embeds, timestep), {**layout, "held": held, "masks": masks}
        self.rows.append(rows)
        config = self.network.transformer.config
        self._counts.append(
            lambda: count_pass(
                make_sizes(config, shape, tokens),
                rows,
                **layout,
                held=held is not None,
                inside=[None if mask is None else len(split_tokens(config, mask).inside) for mask in masks],
            )
        )
        return self.network(latents, prompt_embeds, timestep, **layout, held=held, masks=masks)

    def hold(self, latents: Tensor, prompt_embeds: Tensor, timestep: int) -> Held:
        """Hold the keys and values of rows; see `Network`."""
        shape, rows, tokens = latents.shape, latents.shape[0], prompt_embeds.shape[1]
        self.rows.append(rows)
        config = self.network.transformer.config
        self._counts.append(lambda: count_hold(make_sizes(config, shape, tokens), rows))
        return self.network.hold(latents, prompt_embeds, timestep)

    def count_work(self) -> list[Flops]:
        """Return the work of every pass so far, without what a timestep decides once for all passes."""
        return [count() for count in self._counts]

    def repeat(self, network: Network | None = None) -> Tensor:
        """Evaluate the first of the passes with the most rows again, with another network if one is given."""
        inputs, layout = self._largest
        output: Tensor = (network or self.network)(*inputs, **layout)
        return output

    def clear_cache(self) -> None:
        """Forget all passes."""
        self.rows, self._counts, self._largest = [], [], ((), {})
