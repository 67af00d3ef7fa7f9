"""The forward pass takes rows of latents to velocities, as functions of weights and layouts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from ddim_lightning.network.attention import Attention, KeyValue, Lent, pick_rows
from ddim_lightning.network.block import Rotary, lend_block, run_block
from ddim_lightning.network.layout import Group, Layout
from ddim_lightning.network.weights import BlockWeights, Modulation

RunBlock = Callable[..., tuple[Tensor, Tensor]]
LendBlock = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]


@dataclass
class _Working:
    """A `_Working` group is on its way through the blocks.

    Args:
        group: Its rows.
        video: (rows at hand, video tokens, width).
        text: (rows at hand, text tokens, width).
        rotary: Of its tokens.
        attention: Its kernel.
        places: Where in the sequence of a row the tokens are that its rows have of their own, and the others; none
            without a mask.
    """

    group: Group
    video: Tensor
    text: Tensor
    rotary: Rotary | None
    attention: Attention
    places: tuple[Tensor, ...] = ()


def run_rows(
    parts: Any,
    blocks: Iterable[BlockWeights],
    modulation: Modulation,
    latents: Tensor,
    prompt_embeds: Tensor,
    rotary: Rotary | None,
    kv_scales: Tensor | None,
    groups: Sequence[Group],
    choose: Callable[[int, int], Attention],
    run: RunBlock = run_block,
    lend: LendBlock = lend_block,
    held: Iterable[KeyValue] | None = None,
) -> Tensor:
    """Evaluate the rows, in every block one group after the other.

    Args:
        parts: ``patch_embed``, ``norm_final``, ``norm_out`` and ``proj_out`` of the model, and its ``config``.
        blocks: Weights of every block; those of one are used until the next are asked for.
        modulation: What the timestep decides.
        latents: (rows, f, in_channels, h, w).
        prompt_embeds: (rows, tokens, width), same dtype.
        rotary: Of the tokens, or ``None``.
        kv_scales: (layers,) on the device, or ``None`` for 1.
        groups: See `plan_pass`.
        choose: Returns the kernel for a number of rows and of their tokens.
        run: Runs a block.
        lend: Runs a block whose keys and values a later group attends to.
        held: Keys and values that the rows attend to, of every layer; ``None`` where none are held.

    Returns:
        (wanted rows, f, out_channels, h, w) velocities, same dtype; 0 at tokens that a row does not have of its own.
    """
    working = [_start(parts, latents, prompt_embeds, rotary, group, choose) for group in groups]
    pairs = [None] * len(groups[0].layouts) if held is None else held
    with working[0].attention.active():  # once for all layers, where no group has another kernel
        for k, (weights, pair) in enumerate(zip(blocks, pairs, strict=True)):
            _run_layer(working, k, weights, modulation.blocks[k], kv_scales, pair, run, lend)
    made = [_finish(parts, modulation, latents.shape, one) for one in working]
    if len(made) == 1:
        return made[0]
    rows = {
        row: one
        for of_group, group in zip(made, groups, strict=True)
        for row, one in zip(group.rows, of_group, strict=False)
    }
    return torch.stack([rows[row] for row in sorted(rows)])


def _run_layer(
    working: Sequence[_Working],
    k: int,
    weights: BlockWeights,
    modulation: Tensor,
    kv_scales: Tensor | None,
    pair: KeyValue | None,
    run: RunBlock,
    lend: LendBlock,
) -> None:
    """Run a block over all groups; what is lent there is let go of with it."""
    lent: Sequence[Tensor] = ()
    for one in working:
        layout = one.group.layouts[k]
        if not (layout.kept or layout.lends):  # its rows are neither wanted nor read any more
            one.video, one.text = one.video[:0], one.text[:0]
            continue
        kv_scale = kv_scales[k] if kv_scales is not None and layout.reads else None
        asks = one.group.source is not None and (layout.reads or layout.outside)
        read = Lent(*lent, *one.places) if asks else None
        others = (weights, modulation, one.rotary, kv_scale, layout, one.attention, pair, read)
        with one.attention.active():
            if layout.lends:
                one.video, one.text, *lent = lend(one.video, one.text, *others)
            else:
                one.video, one.text = run(one.video, one.text, *others)


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
        video, text, key, value = lend(video, text, weights, modulation.blocks[k], rotary, None, layout, attention)
        yield key, value


def _start(
    parts: Any,
    latents: Tensor,
    prompt_embeds: Tensor,
    rotary: Rotary | None,
    group: Group,
    choose: Callable[[int, int], Attention],
) -> _Working:
    """Make the tokens of a group."""
    video, text = _embed(parts, pick_rows(latents, group.rows), pick_rows(prompt_embeds, group.rows))
    places: tuple[Tensor, ...] = ()
    if group.split is not None:
        video = video[:, group.split.inside]
        first, num_text = torch.arange(text.shape[1], device=video.device), text.shape[1]
        places = torch.cat([first, num_text + group.split.inside]), num_text + group.split.outside
        if rotary is not None:
            rotary = rotary[places[0]] if isinstance(rotary, Tensor) else (rotary[0][places[0]], rotary[1][places[0]])
    attention = choose(len(group.rows), text.shape[1] + video.shape[1])
    return _Working(group, video, text, rotary, attention, places)


def _finish(parts: Any, modulation: Modulation, size: Sequence[int], one: _Working) -> Tensor:
    """Make the velocities of a group, (rows, f, out_channels, h, w), for latents of a size."""
    _, frames, _, height, width = size
    patch, patch_frames = parts.config.patch_size, parts.config.patch_size_t or 1
    weight, bias = modulation.final.unbind(0)
    video = layer_norm(parts.norm_final(one.video), one.video.shape[-1:], weight, bias, parts.norm_out.norm.eps)
    patches = parts.proj_out(video)
    grid = (frames // patch_frames, height // patch, width // patch)
    if one.group.split is not None:
        everywhere = patches.new_zeros(len(patches), math.prod(grid), patches.shape[-1])
        patches = everywhere.index_copy(1, one.group.split.inside, patches)
    patches = patches.unflatten(1, grid).unflatten(-1, (-1, patch_frames, patch, patch))
    output: Tensor = patches.permute(0, 1, 5, 4, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(1, 2)
    return output


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
