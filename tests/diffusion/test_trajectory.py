"""An inversion survives the way to tensors and back."""

from __future__ import annotations

import torch

from ddim_lightning.diffusion.inverters import DDIM, UniInv
from ddim_lightning.diffusion.loop import invert, reconstruct
from ddim_lightning.diffusion.trajectory import Inversion


def test_round_trip_through_a_dict(toy, clean, make_table) -> None:  # type: ignore[no-untyped-def]
    inversion = invert(toy, clean, make_table(6), UniInv(), prompt="right")
    tensors = inversion.to_dict()
    assert all(isinstance(tensor, torch.Tensor) and tensor.is_contiguous() for tensor in tensors.values())
    again = Inversion.from_dict(tensors, UniInv(), "right")
    assert again.table == inversion.table and again.calls == 7 and again.prompt == "right"
    assert torch.equal(again.levels, inversion.levels)
    assert len(again.state) == 2 and all(map(torch.equal, again.state, inversion.state))
    assert torch.equal(reconstruct(toy, again), reconstruct(toy, inversion))


def test_no_residual_stays_none(toy, clean, make_table) -> None:  # type: ignore[no-untyped-def]
    tensors = invert(toy, clean, make_table(3), DDIM()).to_dict()
    assert "residual" not in tensors
    assert Inversion.from_dict(tensors, DDIM(), "").residual is None
