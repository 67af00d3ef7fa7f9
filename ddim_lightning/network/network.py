"""The network evaluates rows by a forward pass of our own over the weights of a CogVideoX transformer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

import torch
from diffusers import CogVideoXTransformer3DModel
from torch import Tensor, nn

from ddim_lightning.network.adapters import State, has_adapter, read_state
from ddim_lightning.network.attention import Attention
from ddim_lightning.network.block import Rotary, lend_block, run_block
from ddim_lightning.network.forward import LendBlock, RunBlock, lend_rows, run_rows
from ddim_lightning.network.held import Held, HeldRows, Storage, hold_layers
from ddim_lightning.network.ignored import check_nothing_ignored
from ddim_lightning.network.kernels import MeasuredAttention, resolve_attention
from ddim_lightning.network.layout import Layout, RowLayout, plan_pass
from ddim_lightning.network.over_model import OverModel
from ddim_lightning.network.token_masks import TokenMasks
from ddim_lightning.network.weights import (
    BlockWeights,
    Modulation,
    NormPair,
    gather_block,
    gather_norms,
    list_projections,
    make_modulations,
    read_modulation_state,
)
from ddim_lightning.types import KVScale

T = TypeVar("T")

_TIMESTEPS_TOGETHER = 32
"""Of how many timesteps of a stage the modulations are made at once; those of CogVideoX-5B take 3 MB each."""
ChooseRows = Callable[[RowLayout, Tensor, Tensor], int]


class Network(OverModel):
    """A `Network` evaluates the rows of a pass, as `CogVideoXTransformer3DModel.forward` does.

    Beside the same products it does less: query, key and value are one product; scale and shift are part of the norms;
    what a timestep decides is worked out once, for all rows; rows that only lend their keys and values end at the last
    layer that reads them, before its queries.

    Args:
        transformer: The model; it keeps its parameters, which this reads.
        attention: The kernel, or a choice of kernels; ``None`` for PyTorch's own.
        context: See `OverModel`.
    """

    def __init__(
        self,
        transformer: CogVideoXTransformer3DModel,
        attention: Attention | MeasuredAttention | None = None,
        context: Storage = "device",
    ) -> None:
        super().__init__(transformer, attention or resolve_attention("sdpa", transformer.device), context)
        self.run_block: RunBlock = run_block
        """The function that runs a block; a compiled one may take its place."""
        self.lend_block: LendBlock = lend_block
        """The function that runs a block whose keys and values are to be held, likewise."""
        self.choose_rows: ChooseRows = lambda layout, latents, prompt_embeds: layout.rows
        """Says how many rows of a pass go through a block together, given what enters the pass."""
        self.before_pass: Callable[[], None] = lambda: None
        """Called before every pass; parked weights come back here."""
        self._blocks: list[BlockWeights] = []
        self._streams: tuple[Iterable[BlockWeights], Iterable[NormPair]] | None = None
        self._timesteps: tuple[int, ...] = ()
        self._modulations: dict[int, Modulation] = {}
        self._masks = TokenMasks(transformer.config)
        self._gathered_from: State = []
        self._modulated_by: State = []
        # Copying them to the device in every step would make the host wait for it.
        self._kv_scales: dict[tuple[tuple[float, ...], torch.device], Tensor] = {}

    @property
    def dtype(self) -> torch.dtype:
        """In which latents and embeddings enter."""
        # Of the layer that they enter. `transformer.dtype` walks over all modules for a hook that is refused here.
        dtype: torch.dtype = self.transformer.patch_embed.proj.weight.dtype
        return dtype

    @property
    def blocks(self) -> Iterable[BlockWeights]:
        """The weights of all blocks, gathered anew where the model was moved or its adapters changed."""
        if self._streams is not None:
            return self._add_adapters(self._streams[0], gather_block)
        modules = self.transformer.transformer_blocks
        projections = [layer for block in modules for layer in list_projections(block).values()]
        state = read_state(projections)
        # Sums with adapters that train are part of the graph of their pass.
        trains = torch.is_grad_enabled() and any(
            weight.requires_grad for layer in projections if has_adapter(layer) for weight in layer.parameters()
        )
        if not self._blocks or state != self._gathered_from or trains:
            # As the weights were made: views made under inference mode could not train any more. Leaving that mode
            # turns gradients on, which only sums that train need.
            with torch.inference_mode(next(modules.parameters()).is_inference()), torch.set_grad_enabled(trains):
                self._blocks = [gather_block(block) for block in modules]
            self._gathered_from = read_state(projections)
        return self._blocks

    def clear_cache(self) -> None:
        """Let go of all that was made of the weights; the next pass makes it anew."""
        self._blocks, self._modulations = [], {}

    def start_stage(self, timesteps: tuple[int, ...] = ()) -> None:
        """Check that nothing of the model would be ignored, and let go of what was made of its weights.

        So every stage runs on the weights of its beginning, whoever wrote them and in whatever way.

        Args:
            timesteps: Those of the passes to come, as far as they are known.

        Raises:
            ValueError: A hook, a cache, a processor or a kind of weights that only diffusers' forward pass honors.
        """
        check_nothing_ignored(self.transformer)
        self._masks.clear()
        self._timesteps = timesteps
        if self._streams is None:  # those that are streamed do not change, and travel anew for each timestep
            self._gathered_from, self._modulations = [], {}

    def stream(self, blocks: Iterable[BlockWeights], norms: Iterable[NormPair]) -> None:
        """Take the weights of the blocks from somewhere else than the model, one block at a time, in every pass.

        Args:
            blocks: Yields the weights of every block, as long as they are needed.
            norms: Yields their modulated norms likewise; a pass at a timestep that is new asks for them.
        """
        self.clear_cache()
        self._streams = (blocks, norms)

    def _add_adapters(self, streamed: Iterable[T], gather: Callable[[nn.Module, T], T]) -> Iterable[T]:
        """Add to the weights of each block, once they are here, what adapters that are switched on add to them."""
        modules = self.transformer.transformer_blocks
        if not any(has_adapter(layer) and not layer.disable_adapters for layer in modules.modules()):
            return streamed
        return (gather(block, own) for block, own in zip(modules, streamed, strict=True))

    def get_modulation(self, timestep: int) -> Modulation:
        """Return what a timestep decides, remembered as long as the weights that it comes from stay the same."""
        state = read_modulation_state(self.transformer)
        if state != self._modulated_by:
            self._modulations, self._modulated_by = {}, state
        if timestep not in self._modulations:
            together, device = self._find_together(timestep), self.transformer.patch_embed.proj.weight.device
            norms = (
                map(gather_norms, self.transformer.transformer_blocks)
                if self._streams is None
                else self._add_adapters(self._streams[1], gather_norms)
            )
            with torch.inference_mode(False):
                # Filled on the device: copying numbers to it would make the host wait.
                where = torch.stack([torch.full((), one, device=device) for one in together])
                made = make_modulations(self.transformer, where, norms)
            self._modulations |= dict(zip(together, made, strict=True))
        return self._modulations[timestep]

    def _find_together(self, timestep: int) -> tuple[int, ...]:
        """Return the timesteps of the stage in whose company one always is, whatever came before it."""
        if timestep not in self._timesteps:
            return (timestep,)
        first = self._timesteps.index(timestep) // _TIMESTEPS_TOGETHER * _TIMESTEPS_TOGETHER
        return self._timesteps[first : first + _TIMESTEPS_TOGETHER]

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
        """Evaluate the rows.

        Args:
            latents: (rows, f, in_channels, h, w) in the transformer's dtype.
            prompt_embeds: (rows, tokens, width), same dtype.
            timestep: Of all rows, 0 .. 999.
            wanted: How many rows, the first, are wanted; ``None`` for all.
            reads: For each of the first rows the row it reads.
            kv_scale: How much they attend to what they read; ``None`` is 1 in every layer.
            held: What all rows attend to as well, fully; see `hold`.
            masks: For each row that reads (1, f, 1, h, w), 1 where a latent may change: it has tokens of its own there
                alone, and those of the row it reads elsewhere, in every layer, whatever the kv_scale. ``None``, or
                nothing at all, where a row has all tokens.

        Returns:
            (wanted rows, f, out_channels, h, w) velocities, same dtype; 0 at tokens that are not a row's own.

        Raises:
            ValueError: See `check_rows`; and rows that are read and read others, where rows go in groups.
        """
        self.check_rows(latents)
        self.before_pass()
        layout = RowLayout(latents.shape[0], latents.shape[0] if wanted is None else wanted, reads)
        config = self.transformer.config
        groups = plan_pass(
            layout,
            self.choose_rows(layout, latents, prompt_embeds),
            kv_scale,
            self.num_layers,
            config.num_attention_heads,
            config.norm_eps,
            held_rows=() if held is None else held.rows,
            splits=[None if mask is None else self._masks.get(mask, latents.device) for mask in masks],
        )
        return run_rows(
            self.transformer,
            self.blocks,
            self.get_modulation(timestep),
            latents,
            prompt_embeds,
            self._take_rotary(latents),
            None if kv_scale is None or bool((kv_scale == 1.0).all()) else self._move(kv_scale, latents.device),
            groups,
            partial(self.choose_kernel, latents),
            self.run_block,
            self.lend_block,
            held,
        )

    def hold(self, latents: Tensor, prompt_embeds: Tensor, timestep: int) -> Held:
        """Evaluate rows for their keys and values alone, up to those of the last layer, and hold them.

        Args:
            latents: (rows, f, in_channels, h, w) in the transformer's dtype.
            prompt_embeds: (rows, tokens, width), same dtype.
            timestep: Of all rows, 0 .. 999.

        Raises:
            ValueError: See `check_rows`; and gradients that would be lost, see `hold_layers`.
        """
        self.check_rows(latents)
        self.before_pass()
        config, rows = self.transformer.config, latents.shape[0]
        layout = Layout(rows, rows, (), config.num_attention_heads, config.norm_eps)
        attention = self.choose_attention(latents, prompt_embeds)
        layers = lend_rows(
            self.transformer,
            self.blocks,
            self.get_modulation(timestep),
            latents,
            prompt_embeds,
            self._take_rotary(latents),
            [*[layout] * (self.num_layers - 1), layout._replace(kept=0)],
            attention,
            self.lend_block,
            self.mark,
        )
        with attention.active():
            return hold_layers(layers, self.context)

    def _take_rotary(self, latents: Tensor) -> Rotary | None:
        """Return the table in the form that suits the way blocks are run."""
        table = self.get_rotary(latents)
        if table is None or self.run_block is not run_block or latents.dtype != torch.float32:
            return table
        return torch.complex(table[0][:, ::2], table[1][:, ::2])

    def _move(self, kv_scale: KVScale, device: torch.device) -> Tensor:
        key = (tuple(kv_scale.tolist()), device)
        if key not in self._kv_scales:
            self._kv_scales[key] = kv_scale.to(device)
        return self._kv_scales[key]
