"""The denoiser makes branches rows of one network pass, applies guidance, and makes rows branches again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ddim_lightning.diffusion.guidance import combine
from ddim_lightning.diffusion.windows import Windows, evaluate_windows
from ddim_lightning.runtime.autocast import without_autocast
from ddim_lightning.types import Branch, KVScale, Latents, Step


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

    def __call__(
        self,
        latents: Tensor,
        prompt_embeds: Tensor,
        timestep: int,
        *,
        wanted: int | None = None,
        reads: tuple[int, ...] = (),
        kv_scale: KVScale | None = None,
    ) -> Tensor:
        """Evaluate the rows; see `Network`."""
        ...


class CogVideoXDenoiser:
    """A `CogVideoXDenoiser` is a CogVideoX transformer as a `Denoiser`.

    Latents enter as float32, pass the network in its own dtype, autocast or not, and their velocities leave as float32;
    guidance is combined in float32. Latents may lie on another device than the network, as those of long clips do: of
    them no more than a window is on its device at a time.

    Args:
        network: What evaluates rows: a `Network`, or an artifact of one.
        encode_prompt: Prompt to embeddings, (1, tokens, width).
        windows: Pieces in which longer clips are evaluated; ``None`` evaluates clips of any length at once.
    """

    def __init__(
        self, network: RunsRows, encode_prompt: Callable[[str], Tensor], windows: Windows | None = None
    ) -> None:
        self.network = network
        self.encode_prompt = encode_prompt
        self.windows = windows
        self.nfe = 0
        """Number of function evaluations so far: one latent under one embedding counts 1."""

    @property
    def num_layers(self) -> int:
        """How many layers have keys and values to read."""
        return self.network.num_layers

    def __call__(self, branches: Sequence[Branch], step: Step, kv_scale: KVScale | None = None) -> list[Latents | None]:
        """Evaluate all branches in one pass, or in one for each window of a long clip; see `Denoiser`."""
        if self.windows is not None and branches[0].latents.shape[1] > self.windows.length:
            return evaluate_windows(self, self.windows, branches, step, kv_scale)
        prompts = [branch.prompts for branch in branches]
        # Branches with a source come first, those that are only a source come last, as the network wants its rows.
        order = sorted(
            range(len(branches)), key=lambda b: (branches[b].kv_source is None, not branches[b].needs_velocity)
        )
        size = branches[0].latents.shape[0]
        start = dict(zip(order, _cumulate([len(prompts[b]) * size for b in order]), strict=False))
        latents = torch.cat([branches[b].latents for b in order for _ in prompts[b]])
        embeds = torch.cat([self.encode_prompt(p).expand(size, -1, -1) for b in order for p in prompts[b]])
        reads = tuple(row for b in order for row in _list_reads(b, branches, prompts, start, size))
        wanted = sum(len(prompts[b]) * size for b in order if branches[b].needs_velocity)
        self.nfe += latents.shape[0]
        rows, embeds = latents.to(embeds.device, self.network.dtype), embeds.to(self.network.dtype)
        with without_autocast(embeds.device):
            velocity = self.network(rows, embeds, step.timestep, wanted=wanted, reads=reads, kv_scale=kv_scale)
        velocity = velocity.to(latents)  # its dtype, and its device
        return [
            _guide(velocity[start[b] : start[b] + len(prompts[b]) * size], branch) if branch.needs_velocity else None
            for b, branch in enumerate(branches)
        ]


def _cumulate(sizes: list[int]) -> list[int]:
    return [sum(sizes[:k]) for k in range(len(sizes))]


def _list_reads(
    b: int, branches: Sequence[Branch], prompts: list[tuple[str, ...]], start: dict[int, int], size: int
) -> list[int]:
    """For each row of branch ``b``, the row it reads: paired if the source has as many, else the source's last."""
    source = branches[b].kv_source
    if source is None:
        return []
    own, read = len(prompts[b]), len(prompts[source])
    picked = range(own) if own == read else [read - 1] * own
    return [start[source] + row * size + k for row in picked for k in range(size)]


def _guide(velocity: Tensor, branch: Branch) -> Tensor:
    if branch.guidance_scale == 1.0:
        return velocity
    negative, positive = velocity.chunk(2)
    return combine(negative, positive, branch.guidance_scale)
