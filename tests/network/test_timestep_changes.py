"""How much a transformer is told anew from one timestep to the next."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from ddim_lightning.diffusion.step_cache import StepCache
from ddim_lightning.network import timestep_changes
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


@pytest.mark.parametrize("num_steps", [10, 1000])
def test_changes_outside_of_where_a_polynomial_was_fitted_count_too(num_steps, flat_transformer, monkeypatch):
    """Those of random weights lie above it, those of a thousand steps below: the polynomial is negative in both."""
    monkeypatch.setattr(timestep_changes, "find_polynomial", lambda _: timestep_changes._FITTED["CogVideoX-5b"])
    changes = measure_changes(flat_transformer, range(999, -1, -1000 // num_steps))
    cache = StepCache(0.0, changes)
    assert min(changes) >= 0.0 and not any(cache.skips(i, i - 1) for i in range(num_steps))


def test_other_models_leave_changes_as_they_are(transformer):
    assert find_polynomial(transformer) == (1.0, 0.0)
