"""The denoiser makes branches rows of one network pass, applies guidance, and makes rows branches again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ddim_lightning.diffusion.guidance import combine
from ddim_lightning.diffusion.windows import Windows, evaluate_windows, hold_windows
from ddim_lightning.network.held import Held, HeldRows
from ddim_lightning.network.split_rows import SplitRows
from ddim_lightning.network.split_tokens import SplitTokens
from ddim_lightning.runtime.autocast import without_autocast
from ddim_lightning.runtime.clip_group import ClipGroup
from ddim_lightning.types import Branch, Context, KVScale, Latents, Step


class RunsRows(Protocol):
    """A `RunsRows` evaluates the rows of a pass: our forward pass, or an exported artifact of it."""

    @property
    def dtype(self) -> torch.dtype:
        """In which latents and embeddings enter."""
        ...

    @property
    def num_layers(self) -> int:
        """How many layers have keys and values to read."""
        ...

    @property
    def in_channels(self) -> int:
        """Channels of a row: those of the latents, in an image-to-video model and of its image latents."""
        ...

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
        """Evaluate the rows; see `Network`."""
        ...

    def hold(self, latents: Tensor, prompt_embeds: Tensor, timestep: int) -> Held:
        """Evaluate rows for their keys and values alone; see `Network`."""
        ...


class CogVideoXDenoiser:
    """A `CogVideoXDenoiser` is a CogVideoX transformer as a `Denoiser`.

    Latents enter as float32, pass the network in its own dtype, autocast or not, and their velocities leave as float32;
    guidance is combined in float32. An image-to-video model sees image latents beside them, along the channels. Latents
    may lie on another device than the network, as those of long clips do: of them no more than a window is on its
    device at a time.

    Args:
        network: What evaluates rows: a `Network`, or an artifact of one.
        encode_prompt: Prompt to embeddings, (1, tokens, width).
        windows: Pieces in which longer clips are evaluated; ``None`` evaluates clips of any length at once.
        group: Processes that work on a clip together, over which passes are split; ``None`` is this one alone.
        split: What splits them; `SplitTokens` is the other one.
        merges: Make evaluations that are equal once. Artifacts hold the rows of a rehearsal, whatever the prompts.
    """

    def __init__(
        self,
        network: RunsRows,
        encode_prompt: Callable[[str], Tensor],
        windows: Windows | None = None,
        group: ClipGroup | None = None,
        split: Callable[[Any, ClipGroup], SplitRows | SplitTokens] = SplitRows,
        merges: bool = True,
    ) -> None:
        self.network = network
        self.group = ClipGroup() if group is None else group
        self._run = network if self.group.size == 1 else split(network, self.group)
        self.encode_prompt = encode_prompt
        self.windows = windows
        self.merges = merges
        self.nfe = 0
        """Number of function evaluations so far: one latent under one embedding counts 1."""

    @property
    def num_layers(self) -> int:
        """How many layers have keys and values to read."""
        return self.network.num_layers

    def __call__(self, branches: Sequence[Branch], step: Step, kv_scale: KVScale | None = None) -> list[Latents | None]:
        """Evaluate all branches in one pass, or in one for each window of a long clip; see `Denoiser`.

        Evaluations that are equal in all that enters are made once, and count once, unless `merges` is false.

        Raises:
            ValueError: Image latents that are missing, of no use, or of another shape than the latents; branches of
                which some have a context and others none, or that want a timestep of their own; a mask without a
                source, or for several videos.
        """
        for branch in branches:
            self._check_image(branch)
            if branch.timestep not in (None, step.timestep):
                raise ValueError(f"timestep: must be the step's, {step.timestep}, or None, got {branch.timestep}")
        if self.windows is not None and branches[0].latents.shape[1] > self.windows.length:
            return evaluate_windows(self, self.windows, branches, step, kv_scale)
        kinds = [
            [_make_evaluation(b, k, branches, self.merges) for k in range(len(one.prompts))]
            for b, one in enumerate(branches)
        ]
        found = {kind: branch for branch, own in zip(branches, kinds, strict=True) for kind in own}
        wanted = {kind for branch, own in zip(branches, kinds, strict=True) if branch.needs_velocity for kind in own}
        # Those with a source come first, those that are only a source come last, as the network wants its rows.
        order = sorted(found, key=lambda kind: (kind.source is None, kind not in wanted))
        size = branches[0].latents.shape[0]
        start = {kind: k * size for k, kind in enumerate(order)}
        latents = torch.cat([found[kind].latents for kind in order])
        images = [image for kind in order if (image := found[kind].image_latents) is not None]
        embeds = torch.cat([self.encode_prompt(kind.prompt).expand(size, -1, -1) for kind in order])
        reads = tuple(start[kind.source] + k for kind in order if kind.source is not None for k in range(size))
        masks = tuple(found[kind].mask for kind in order if kind.source is not None for _ in range(size))
        held = _find_held([found[kind] for kind in order], size)
        self.nfe += latents.shape[0]
        rows, embeds = self._make_rows(latents, images, embeds)
        with without_autocast(embeds.device):
            velocity = self._run(
                rows,
                embeds,
                step.timestep,
                wanted=size * len(wanted),
                reads=reads,
                kv_scale=kv_scale,
                held=held,
                masks=masks if any(mask is not None for mask in masks) else (),
            )
        velocity = velocity.to(latents)  # its dtype, and its device
        return [
            _guide([velocity[start[kind] : start[kind] + size] for kind in own], branch.guidance_scale)
            if branch.needs_velocity
            else None
            for branch, own in zip(branches, kinds, strict=True)
        ]

    def hold(self, branch: Branch) -> Context:
        """Evaluate a branch once for its keys and values, each window of a long clip for itself; see `Denoiser`.

        Raises:
            ValueError: See `__call__`; and a branch with guidance, or without a timestep.
        """
        self._check_image(branch)
        if branch.timestep is None or len(branch.prompts) > 1:
            rule = "a branch that is held must have its own timestep and a guidance_scale of 1"
            raise ValueError(f"timestep: {rule}, got {branch.timestep} and {branch.guidance_scale:g}")
        if self.windows is not None and branch.latents.shape[1] > self.windows.length:
            return hold_windows(self, self.windows, branch)
        latents, size = branch.latents, branch.latents.shape[0]
        images = [] if branch.image_latents is None else [branch.image_latents]
        rows, embeds = self._make_rows(latents, images, self.encode_prompt(branch.prompt).expand(size, -1, -1))
        self.nfe += size
        with without_autocast(embeds.device):
            return (self._run.hold(rows, embeds, branch.timestep),)

    def _make_rows(self, latents: Tensor, images: Sequence[Latents], embeds: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows and embeddings as the network takes them."""
        dtype = self.network.dtype
        rows, embeds = latents.to(embeds.device, dtype), embeds.to(dtype)
        return torch.cat([rows, torch.cat(list(images)).to(rows)], dim=2) if images else rows, embeds

    def _check_image(self, branch: Branch) -> None:
        """Raise a ValueError unless a branch has the image latents that the network takes, and no others."""
        latents, image = branch.latents, branch.image_latents
        takes_image = self.network.in_channels > latents.shape[2]
        if image is None and takes_image:
            rule = "an image-to-video model must be shown what InversionEngine.encode_image makes of a first frame"
            raise ValueError(f"image_latents: {rule}, got None")
        if image is None:
            return
        if not takes_image:
            raise ValueError(f"image_latents: must be None for a text-to-video model, got {tuple(image.shape)}")
        if image.shape != latents.shape:
            raise ValueError(
                f"image_latents: must have the shape of the latents, {tuple(latents.shape)}, got {tuple(image.shape)}"
            )
        if self.windows is not None and latents.shape[1] > self.windows.length:
            rule = f"an image-to-video model takes at most {self.windows.length} at once, for no later window has its"
            raise ValueError(f"latents: {rule} first frame, got {latents.shape[1]} latent frames")


class _Evaluation(NamedTuple):
    """An `_Evaluation` is a branch under one of its prompts; of equal ones in a pass one is made.

    Latents are equal when they have the same cache key or, without one, the same memory. Values are not compared, for
    the host would wait for them.
    """

    latents: int | tuple[int, ...]
    prompt: str
    image: int | None
    context: int | None
    mask: int | None
    source: _Evaluation | None
    place: tuple[int, int] | None
    """Among the branches; ``None`` where it may be that of another, too."""


def _make_evaluation(b: int, k: int, branches: Sequence[Branch], merges: bool) -> _Evaluation:
    """Return a branch under its k-th prompt; it reads the k-th of its source if that has as many, else the last."""
    branch, source = branches[b], None
    if branch.kv_source is not None:
        own, read = len(branch.prompts), len(branches[branch.kv_source].prompts)
        source = _make_evaluation(branch.kv_source, k if own == read else read - 1, branches, merges)
    elif branch.mask is not None:
        raise ValueError("mask: must be None for a branch without a kv_source, got a tensor")
    return _Evaluation(
        branch.latents.data_ptr() if branch.cache_key is None else branch.cache_key,
        branch.prompts[k],
        None if branch.image_latents is None else branch.image_latents.data_ptr(),
        id(branch.context[0]) if branch.context else None,
        None if branch.mask is None else branch.mask.data_ptr(),
        source,
        None if merges else (b, k),
    )


def _find_held(rows: Sequence[Branch], size: int) -> HeldRows | None:
    """Return what is held for a pass, given the branch of each of its groups of ``size`` rows; each of it once."""
    contexts = [branch.context for branch in rows]
    if all(context is None for context in contexts):
        return None
    held: dict[int, tuple[Held, int]] = {}
    places: list[int] = []
    for context in contexts:
        if context is None or len(context) != 1 or context[0].rows != size:
            rule = f"all branches of a pass must have one of {size} rows and as many windows as their latents, or none"
            raise ValueError(f"context: {rule}, got {context and [one.rows for one in context]}")
        (one,) = context
        _, first = held.setdefault(id(one), (one, size * len(held)))
        places += range(first, first + size)
    return HeldRows([one for one, _ in held.values()], tuple(places))


def _guide(velocities: Sequence[Tensor], scale: float) -> Tensor:
    return velocities[0] if len(velocities) == 1 else combine(velocities[0], velocities[1], scale)
