"""Edits are rehearsed without a model, to count what they will evaluate before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ddim_lightning.diffusion.sampling import edit_together, invert, make_contexts
from ddim_lightning.engine.engine import InversionEngine
from ddim_lightning.types import Branch, Context, EditRequest, KVScale, Latents, Step


class CountingDenoiser:
    """A `CountingDenoiser` is a `Denoiser` that counts what it is asked to evaluate, and finds zeros.

    Args:
        num_layers: Layers of the model that it stands for.
    """

    def __init__(self, num_layers: int) -> None:
        self.num_layers = num_layers
        self.nfe = 0
        """Number of function evaluations so far."""

    def __call__(self, branches: Sequence[Branch], step: Step, kv_scale: KVScale | None = None) -> list[Latents | None]:
        """Count all branches; see `Denoiser`."""
        self.nfe += sum(len(branch.prompts) * len(branch.latents) for branch in branches)
        return [torch.zeros_like(branch.latents) if branch.needs_velocity else None for branch in branches]

    def hold(self, branch: Branch) -> Context:
        """Count a branch that is held; see `Denoiser`."""
        self.nfe += len(branch.latents)
        return (None,)


@torch.no_grad()
def count_edit_nfe(engine: InversionEngine, requests: Sequence[EditRequest], together: bool) -> int:
    """Return the NFE of edits of one window, found by making them of a single value.

    Args:
        engine: Its editor, schedule and step cache decide.
        requests: The edits, all of one clip; of their masks it counts whether there is one.
        together: Whether all are made in one pass.
    """
    denoiser = CountingDenoiser(engine.denoiser.num_layers)
    value, cache = torch.zeros(1, 1, 1, 1, 1), engine.make_step_cache()
    inversion = invert(denoiser, value, engine.schedule, engine.inverter, generator=torch.Generator())
    asked = [replace(request, mask=None if request.mask is None else torch.ones_like(value)) for request in requests]
    denoiser.nfe = 0
    contexts = make_contexts(denoiser, inversion, engine.editor, asked)
    size = len(asked) if together else 1
    for k in range(0, len(asked), size):
        passed = asked[k : k + size]
        generators = [torch.Generator() for _ in passed]
        edit_together(
            denoiser,
            inversion,
            engine.editor,
            passed,
            generators=generators,
            contexts=contexts[k : k + size],
            cache=cache,
        )
    return denoiser.nfe
