"""Whatever device is PyTorch's default, small tables stay on the host, and the bytes are the same."""

from __future__ import annotations

import pytest
import torch

from ddim_lightning import EditRequest
from ddim_lightning.diffusion.objectives.levels import draw_timesteps
from tests.modules import make_module


@pytest.mark.parametrize(
    ("editor", "inverter"),
    [("KVInjection", "UniInv"), ("KVInjection", "EditFriendly"), ("FlowEdit", "DDIM"), ("DirectInversion", "BDIA")],
)
@torch.inference_mode()
def test_an_edit_under_another_default_device(editor, inverter, tiny_model):
    """On the device of the default nothing has a value: what landed there by itself could not be read."""
    module = make_module(str(tiny_model), num_inference_steps=2, editor=editor, inverter=inverter)
    module.load("cpu")
    engine, request = module.engine, EditRequest("a red circle", source_prompt="a square", guidance_scale=3.0)
    video = torch.rand(1, 9, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def run():
        inversion = engine.invert(engine.encode(video))
        return engine.decode(engine.edit(inversion, request)), engine.reconstruct(inversion)

    theirs = run()
    with torch.device("meta"):
        ours = run()
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_drawing_under_another_default_device():
    theirs = draw_timesteps(5, 1000, torch.Generator().manual_seed(0))
    with torch.device("meta"):
        assert torch.equal(draw_timesteps(5, 1000, torch.Generator().manual_seed(0)), theirs)
