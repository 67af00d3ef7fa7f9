"""An inversion survives the way to tensors and back."""

from __future__ import annotations

import pytest
import torch

from ddim_lightning.diffusion.inversion import Inversion
from ddim_lightning.diffusion.inverters import BDIA, DDIM, EditFriendly, FixedPoint, UniInv
from ddim_lightning.diffusion.sampling import invert, reconstruct


@pytest.mark.parametrize(
    ("inverter", "kept"), [(UniInv(), 1), (FixedPoint(tolerance=0.0), 1), (BDIA(), 2), (EditFriendly(), 2)], ids=repr
)
def test_round_trip_through_a_dict(inverter, kept, toy, clean, make_schedule):
    inversion = invert(
        toy, clean, make_schedule(6), inverter, prompt="right", generator=torch.Generator().manual_seed(2)
    )
    tensors = inversion.to_dict()
    assert all(isinstance(tensor, torch.Tensor) and tensor.is_contiguous() for tensor in tensors.values())
    again = Inversion.from_dict(tensors, inverter, "right")
    assert again.schedule == inversion.schedule and again.nfe == inverter.count_nfe(6) and again.prompt == "right"
    assert torch.equal(again.levels, inversion.levels)
    assert len(again.state) == kept and all(map(torch.equal, again.state, inversion.state))
    assert torch.equal(reconstruct(toy, again), reconstruct(toy, inversion))


def test_no_residual_stays_none(toy, clean, make_schedule):
    tensors = invert(toy, clean, make_schedule(3), DDIM()).to_dict()
    assert "residual" not in tensors
    assert Inversion.from_dict(tensors, DDIM(), "").residual is None
