"""Errors of latents against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from ddim_lightning.metrics.latents import relative_l2, rmse


def test_a_scaled_latent_has_its_scale_as_relative_error():
    reference = torch.randn((1, 2, 3, 4, 5), generator=torch.Generator().manual_seed(0))
    assert relative_l2(1.25 * reference, reference) == pytest.approx(0.25, rel=1e-6)
    assert relative_l2(reference, 1.25 * reference) == pytest.approx(0.2, rel=1e-6)
    assert relative_l2(reference, reference) == 0.0


def test_rmse_is_the_root_of_the_mean_square():
    reference = torch.zeros(1, 2, 3, 4, 5)
    latents = reference.clone()
    latents[0, 1] = 0.5  # one of two frames
    assert rmse(latents, reference) == pytest.approx(0.5 / math.sqrt(2), rel=1e-9)


def test_relative_error_is_rmse_over_the_root_mean_square_of_the_reference():
    generator = torch.Generator().manual_seed(1)
    latents, reference = (torch.randn((2, 3, 4, 5, 6), generator=generator) for _ in range(2))
    root = float(reference.double().square().mean().sqrt())
    assert relative_l2(latents, reference) == pytest.approx(rmse(latents, reference) / root, rel=1e-12)


@pytest.mark.parametrize("measure", [relative_l2, rmse])
def test_shapes_that_would_broadcast_are_refused(measure):
    match = r"^reference: must have the shape .*got \(1, 1, 3, 4, 5\) for \(1, 2, 3, 4, 5\)"
    with pytest.raises(ValueError, match=match):
        measure(torch.ones(1, 2, 3, 4, 5), torch.ones(1, 1, 3, 4, 5))
