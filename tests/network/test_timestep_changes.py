"""How much a transformer is told anew from one timestep to the next."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from ddim_lightning.network.timestep_changes import measure_changes


def test_changes_are_those_of_what_every_block_is_told(flat_transformer, latents, embeds):
    timesteps, seen = (999, 700, 400, 20), []
    hook = flat_transformer.transformer_blocks[1].register_forward_pre_hook(
        lambda block, inputs, named: seen.append(named["temb"]), with_kwargs=True
    )
    for timestep in timesteps:
        flat_transformer(latents[:1], embeds["cat"], torch.tensor([timestep]))
    hook.remove()
    expected = [float((after - before).abs().sum() / before.abs().sum()) for before, after in pairwise(seen)]
    assert measure_changes(flat_transformer, timesteps) == pytest.approx([0.0, *expected], rel=1e-5)
    assert measure_changes(flat_transformer, (999,)) == (0.0,)
