"""The forward pass takes rows of latents to velocities, as functions of weights and layouts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from ddim_lightning.network.attention import Attention, KeyValue
from ddim_lightning.network.block import Layout, Rotary, lend_block, run_block
from ddim_lightning.network.weights import BlockWeights, Modulation
from ddim_lightning.types import KVScale

RunBlock = Callable[..., tuple[Tensor, Tensor]]
LendBlock = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]


class RowLayout(NamedTuple):
    """A `RowLayout` says which rows a pass has.

    Args:
        rows: How many.
        wanted: How many of them, the first, have velocities that are wanted.
        reads: For each of the first rows the row whose keys and values it also attends to.
    """

    rows: int
    wanted: int
    reads: tuple[int, ...] = ()


def plan_layers(
    layout: RowLayout,
    kv_scale: KVScale | None,
    num_layers: int,
    heads: int,
    eps: float,
    held_rows: tuple[int, ...] = (),
) -> list[Layout]:
    """Lay out every layer: who reads there, and which rows go on.

    Args:
        layout: The rows of the pass.
        kv_scale: How much is read; a layer at 0 reads nothing. ``None`` reads in every layer.
        num_layers: How many layers.
        heads: Attention heads.
        eps: Of the modulated norms.
        held_rows: For each row the held row that it attends to in every layer; empty where none are held.
    """
    reading = [bool(layout.reads) and (kv_scale is None or float(kv_scale[k]) > 0.0) for k in range(num_layers)]
    last = max((k for k in range(num_layers) if reading[k]), default=-1)
    layouts, rows = [], layout.rows
    for k in range(num_layers):
        goes_on = rows if k < last else layout.wanted
        reads = layout.reads if reading[k] else ()
        layouts.append(Layout(rows, goes_on, reads, heads, eps, held_rows[:goes_on]))
        rows = goes_on
    return layouts


def count_video_tokens(config: Any, frames: int, height: int, width: int) -> int:
    """Return how many tokens a transformer of this config makes of latents of this size."""
    patch, patch_frames = int(config.patch_size), int(config.patch_size_t or 1)
    return (frames // patch_frames) * (height // patch) * (width // patch)


def run_rows(
    parts: Any,
    blocks: Iterable[BlockWeights],
    modulation: Modulation,
    latents: Tensor,
    prompt_embeds: Tensor,
    rotary: Rotary | None,
    kv_scales: Tensor | None,
    layouts: Sequence[Layout],
    attention: Attention,
    run: RunBlock = run_block,
    held: Iterable[KeyValue] | None = None,
) -> Tensor:
    """Evaluate the rows.

    Args:
        parts: ``patch_embed``, ``norm_final``, ``norm_out`` and ``proj_out`` of the model, and its ``config``.
        blocks: Weights of every block; those of one are used until the next are asked for.
        modulation: What the timestep decides.
        latents: (rows, f, in_channels, h, w).
        prompt_embeds: (rows, tokens, width), same dtype.
        rotary: Of the tokens, or ``None``.
        kv_scales: (layers,) on the device, or ``None`` for 1.
        layouts: Of every layer.
        attention: The kernel.
        run: Runs a block.
        held: Keys and values that the rows attend to, of every layer; ``None`` where none are held.

    Returns:
        (wanted rows, f, out_channels, h, w) velocities, same dtype.
    """
    video, text = _embed(parts, latents, prompt_embeds)
    lents = [None] * len(layouts) if held is None else held
    for k, (weights, layout, lent) in enumerate(zip(blocks, layouts, lents, strict=True)):
        kv_scale = kv_scales[k] if kv_scales is not None and layout.reads else None
        video, text = run(video, text, weights, modulation.blocks[k], rotary, kv_scale, layout, attention, lent)
    _, frames, _, height, width = latents.shape
    patch, patch_frames = parts.config.patch_size, parts.config.patch_size_t or 1
    weight, bias = modulation.final.unbind(0)
    video = layer_norm(parts.norm_final(video), video.shape[-1:], weight, bias, parts.norm_out.norm.eps)
    patches = parts.proj_out(video).unflatten(1, (frames // patch_frames, height // patch, width // patch))
    patches = patches.unflatten(-1, (-1, patch_frames, patch, patch))
    output: Tensor = patches.permute(0, 1, 5, 4, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(1, 2)
    return output


def lend_rows(
    parts: Any,
    blocks: Iterable[BlockWeights],
    modulation: Modulation,
    latents: Tensor,
    prompt_embeds: Tensor,
    rotary: Rotary | None,
    layouts: Sequence[Layout],
    attention: Attention,
    lend: LendBlock = lend_block,
    mark: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[KeyValue]:
    """Evaluate rows for their keys and values alone, and yield those of every layer.

    Args:
        parts: See `run_rows`; likewise ``blocks``, ``modulation``, ``rotary`` and ``attention``.
        blocks: See there.
        modulation: See there.
        latents: (rows, f, in_channels, h, w).
        prompt_embeds: (rows, tokens, width), same dtype.
        rotary: See there.
        layouts: Of every layer; the last one keeps no row.
        attention: See there.
        lend: Runs a block.
        mark: Applied to the video tokens (rows, tokens, width) before the first block; ``None`` leaves them.
    """
    video, text = _embed(parts, latents, prompt_embeds)
    video = video if mark is None else mark(video)
    for k, (weights, layout) in enumerate(zip(blocks, layouts, strict=True)):
        video, text, key, value = lend(video, text, weights, modulation.blocks[k], rotary, layout, attention)
        yield key, value


def _embed(parts: Any, latents: Tensor, prompt_embeds: Tensor) -> tuple[Tensor, Tensor]:
    """Return video and text tokens of rows, (rows, tokens, width) each.

    They are copies with the strides of what the blocks return: given views, the first block would be compiled for
    itself.
    """
    num_text = prompt_embeds.shape[1]
    tokens = parts.patch_embed(prompt_embeds, latents)
    text, video = (
        part.clone(memory_format=torch.contiguous_format) for part in (tokens[:, :num_text], tokens[:, num_text:])
    )
    return video, text
