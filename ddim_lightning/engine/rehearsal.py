"""Edits are rehearsed without a model, to count what they will evaluate before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ddim_lightning.diffusion.sampling import edit_together, invert, make_contexts
from ddim_lightning.engine.engine import InversionEngine
from ddim_lightning.engine.recording import Recorder
from ddim_lightning.network.denoiser import CogVideoXDenoiser
from ddim_lightning.types import EditRequest


@torch.no_grad()
def count_edit_nfe(engine: InversionEngine, requests: Sequence[EditRequest], together: bool) -> int:
    """Return the NFE of edits of one window, found by making them of a single value.

    Args:
        engine: Its editor, schedule and step cache decide.
        requests: The edits, all of one clip; of their masks it counts whether there is one.
        together: Whether all are made in one pass.
    """
    embeds, value = torch.zeros(1, 1, 1), torch.zeros(1, 1, 1, 1, 1)
    recorder = Recorder(torch.float32, engine.denoiser.num_layers, in_channels=1, out_channels=1)
    denoiser = CogVideoXDenoiser(recorder, lambda prompt: embeds, merges=engine.edit_denoiser.merges)
    cache = engine.make_step_cache()
    inversion = invert(denoiser, value, engine.schedule, engine.inverter, generator=torch.Generator())
    asked = [replace(request, mask=None if request.mask is None else torch.ones_like(value)) for request in requests]
    denoiser.nfe = 0
    contexts = make_contexts(denoiser, inversion, engine.editor, asked)
    size = len(asked) if together else 1
    for k in range(0, len(asked), size):
        passed = asked[k : k + size]
        edit_together(
            denoiser,
            inversion,
            engine.editor,
            passed,
            generators=[torch.Generator() for _ in passed],
            contexts=contexts[k : k + size],
            cache=cache,
        )
    return denoiser.nfe
