"""How much a transformer is told anew from one timestep to the next."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from ddim_lightning.network.timestep_changes import find_polynomial, measure_changes
from tests.variants import make_published


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


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("2B", 0.13528198),
        ("5B", 0.09050642),
        ("5B-I2V", 0.09050642),
        ("1.5-5B", 0.17546513),
        ("1.5-5B-I2V", 0.17769748),
    ],
)
def test_released_models_take_the_polynomials_of_teacache(model, expected):
    """At a change of 0.1: values of numpy's ``poly1d`` with the published coefficients."""
    two_b = {"num_layers": 30, "use_rotary_positional_embeddings": False, "in_channels": 16}
    config = {"patch_size_t": None} | (two_b if model == "2B" else make_published(model))
    polynomial = find_polynomial(SimpleNamespace(config=SimpleNamespace(**config)))
    assert sum(factor * 0.1**power for power, factor in enumerate(reversed(polynomial))) == pytest.approx(expected)


def test_other_models_leave_changes_as_they_are(transformer):
    assert find_polynomial(transformer) == (1.0, 0.0)
