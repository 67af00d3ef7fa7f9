"""Branches to rows, one network pass, guidance, back to branches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from diffusers import CogVideoXTransformer3DModel
from torch import Tensor

from ddim_lightning.diffusion.guidance import combine
from ddim_lightning.models.conditioning import make_rotary_table
from ddim_lightning.models.network import run_network
from ddim_lightning.types import Branch, Latents, Step, Strength


class CogVideoXDenoiser:
    """A CogVideoX transformer as a `Denoiser`.

    Latents enter as float32, pass the network in its own dtype and their velocities leave as float32; guidance is
    combined in float32.

    Args:
        transformer: With our attention processor in every block (`apply_attention`).
        encode_prompt: Prompt to embeddings, (1, tokens, width).
    """

    def __init__(self, transformer: CogVideoXTransformer3DModel, encode_prompt: Callable[[str], Tensor]) -> None:
        self.transformer = transformer
        self.encode_prompt = encode_prompt
        self.rows = 0
        """Rows evaluated so far: latents under one embedding each, a batch of b latents counting b."""
        # Small tensors that every step needs; copying them to the device again would make the host wait for it.
        self._rotary: dict[tuple[int, int, int, torch.device], tuple[Tensor, Tensor] | None] = {}
        self._on_device: dict[tuple[tuple[float, ...], torch.device], Tensor] = {}

    @property
    def num_layers(self) -> int:
        """How many layers have keys and values to read."""
        return len(self.transformer.transformer_blocks)

    def __call__(
        self, branches: Sequence[Branch], step: Step, strength: Strength | None = None
    ) -> list[Latents | None]:
        """Evaluate all branches in one pass; see `Denoiser`."""
        prompts = [branch.prompts for branch in branches]
        # Branches that read come first, as the attention processor wants its rows.
        order = sorted(range(len(branches)), key=lambda b: branches[b].reads is None)
        size = branches[0].latents.shape[0]
        start = dict(zip(order, _cumulate([len(prompts[b]) * size for b in order]), strict=False))
        latents = torch.cat([branches[b].latents for b in order for _ in prompts[b]])
        embeds = torch.cat([self.encode_prompt(p).expand(size, -1, -1) for b in order for p in prompts[b]])
        reads = [row for b in order for row in _list_reads(b, branches, prompts, start, size)]
        velocity = self._run(latents, embeds, step.timestep, reads, strength)
        return [
            _guide(velocity[start[b] : start[b] + len(prompts[b]) * size], branch) if branch.wanted else None
            for b, branch in enumerate(branches)
        ]

    def _run(
        self, latents: Tensor, embeds: Tensor, timestep: int, reads: list[int], strength: Strength | None
    ) -> Tensor:
        device, dtype = latents.device, self.transformer.dtype
        rows = latents.shape[0]
        self.rows += rows
        if reads and strength is not None and bool((strength == 1.0).all()):
            strength = None  # Full strength everywhere needs no bias, which not every kernel takes.
        velocity = run_network(
            self.transformer,
            latents.to(dtype),
            embeds.to(dtype),
            torch.full((rows,), timestep, device=device),
            self.get_rotary(latents),
            self._move(torch.tensor(reads), device) if reads else None,
            self._move(strength, device) if reads and strength is not None else None,
        )
        return velocity.float() if latents.dtype == torch.float32 else velocity.to(latents.dtype)

    def get_rotary(self, latents: Latents) -> tuple[Tensor, Tensor] | None:
        """Return the rotary table for latents of this size, ``None`` for a model without rotary embeddings."""
        _, frames, _, height, width = latents.shape
        key = (frames, height, width, latents.device)
        if key not in self._rotary:
            rotary = self.transformer.config.use_rotary_positional_embeddings
            with torch.inference_mode(False):  # or a training that comes after could not use it
                self._rotary[key] = make_rotary_table(self.transformer, *key) if rotary else None
        return self._rotary[key]

    def _move(self, values: Tensor, device: torch.device) -> Tensor:
        """Return a small tensor of the CPU on the device, copied there once."""
        key = (tuple(values.tolist()), device)
        if key not in self._on_device:
            self._on_device[key] = values.to(device)
        return self._on_device[key]


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
