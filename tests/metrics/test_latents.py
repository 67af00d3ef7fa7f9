"""Errors of latents against closed forms."""

from __future__ import annotations

import pytest
import torch

from ddim_lightning.metrics.latents import relative_l2


def test_a_scaled_latent_has_its_scale_as_relative_error():
    reference = torch.randn((1, 2, 3, 4, 5), generator=torch.Generator().manual_seed(0))
    assert relative_l2(1.25 * reference, reference) == pytest.approx(0.25, rel=1e-6)
    assert relative_l2(reference, 1.25 * reference) == pytest.approx(0.2, rel=1e-6)
    assert relative_l2(reference, reference) == 0.0


def test_relative_error_is_the_rmse_over_the_root_mean_square_of_the_reference():
    generator = torch.Generator().manual_seed(1)
    latents, reference = (torch.randn((2, 3, 4, 5, 6), generator=generator) for _ in range(2))
    root, rmse = (float(x.double().square().mean().sqrt()) for x in (reference, latents.double() - reference.double()))
    assert relative_l2(latents, reference) == pytest.approx(rmse / root, rel=1e-12)


def test_shapes_that_would_broadcast_are_refused():
    match = r"^reference: must have the shape .*got \(1, 1, 3, 4, 5\) for \(1, 2, 3, 4, 5\)"
    with pytest.raises(ValueError, match=match):
        relative_l2(torch.ones(1, 2, 3, 4, 5), torch.ones(1, 1, 3, 4, 5))
