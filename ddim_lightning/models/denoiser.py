"""Branches to rows, one network pass, guidance, back to branches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ddim_lightning.diffusion.guidance import combine
from ddim_lightning.types import Branch, Latents, Step, Strength


class RunsRows(Protocol):
    """What evaluates the rows of a pass: our forward pass, or an artefact of it."""

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
        strength: Strength | None = None,
    ) -> Tensor:
        """Evaluate the rows; see `Network`."""
        ...


class CogVideoXDenoiser:
    """A CogVideoX transformer as a `Denoiser`.

    Latents enter as float32, pass the network in its own dtype and their velocities leave as float32; guidance is
    combined in float32.

    Args:
        network: What evaluates rows: a `Network`, or an artefact of one.
        encode_prompt: Prompt to embeddings, (1, tokens, width).
    """

    def __init__(self, network: RunsRows, encode_prompt: Callable[[str], Tensor]) -> None:
        self.network = network
        self.encode_prompt = encode_prompt
        self.rows = 0
        """Rows evaluated so far: latents under one embedding each, a batch of b latents counting b."""

    @property
    def num_layers(self) -> int:
        """How many layers have keys and values to read."""
        return self.network.num_layers

    def __call__(
        self, branches: Sequence[Branch], step: Step, strength: Strength | None = None
    ) -> list[Latents | None]:
        """Evaluate all branches in one pass; see `Denoiser`."""
        prompts = [branch.prompts for branch in branches]
        # Branches that read come first, those that are only read come last, as the network wants its rows.
        order = sorted(range(len(branches)), key=lambda b: (branches[b].reads is None, not branches[b].wanted))
        size = branches[0].latents.shape[0]
        start = dict(zip(order, _cumulate([len(prompts[b]) * size for b in order]), strict=False))
        latents = torch.cat([branches[b].latents for b in order for _ in prompts[b]])
        embeds = torch.cat([self.encode_prompt(p).expand(size, -1, -1) for b in order for p in prompts[b]])
        reads = tuple(row for b in order for row in _list_reads(b, branches, prompts, start, size))
        wanted = sum(len(prompts[b]) * size for b in order if branches[b].wanted)
        self.rows += latents.shape[0]
        dtype = self.network.dtype
        velocity = self.network(
            latents.to(dtype), embeds.to(dtype), step.timestep, wanted=wanted, reads=reads, strength=strength
        )
        velocity = velocity.float() if latents.dtype == torch.float32 else velocity.to(latents.dtype)
        return [
            _guide(velocity[start[b] : start[b] + len(prompts[b]) * size], branch) if branch.wanted else None
            for b, branch in enumerate(branches)
        ]


def _cumulate(sizes: list[int]) -> list[int]:
    return [sum(sizes[:k]) for k in range(len(sizes))]


def _list_reads(
    b: int, branches: Sequence[Branch], prompts: list[tuple[str, ...]], start: dict[int, int], size: int
) -> list[int]:
    """For each row of branch ``b``, the row it reads: paired if the source has as many, else the source's last."""
    source = branches[b].reads
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
