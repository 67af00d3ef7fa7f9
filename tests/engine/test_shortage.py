"""Out of memory is told with its stage, its need and what fits, through the usual way of a clip that failed."""

from __future__ import annotations

import warnings
from dataclasses import asdict

import pytest
import torch
from torch import nn

from ddim_lightning import Clip, KVInjection
from ddim_lightning.engine import shortage
from ddim_lightning.engine.config import Runtime
from ddim_lightning.engine.shortage import tell_shortage
from tests.modules import make_module


class Full(nn.Module):
    """Takes a part's place, and finds no memory."""

    def forward(self, *args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has a total ...")


def make_clip():
    frames = torch.zeros(9, 3, 16, 24, dtype=torch.uint8)
    return Clip("a", frames, prompts=("a red circle",))


@pytest.fixture
def module(tiny_model):
    module = make_module(str(tiny_model), num_inference_steps=2, editor=KVInjection())
    module.load("cpu")
    return module


def run(module, clip):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return module.predict_step(clip, 0)


@pytest.mark.parametrize(("part", "stage"), [("vae.encoder", "encode"), ("vae.decoder", "decode")])
def test_a_stage_of_the_vae(part, stage, module):
    owner = getattr(module, part.split(".")[0])
    setattr(owner, part.split(".")[1], Full().requires_grad_(False))
    getattr(owner, part.split(".")[1]).weight = nn.Parameter(torch.zeros(1), requires_grad=False)
    result = run(module, make_clip())
    assert result.status == "skipped" and "\n" not in result.reason
    assert result.reason.startswith(f"OutOfMemoryError: {stage}: ")
    assert all(said in result.reason for said in ("9 frames of 16 x 24", "GiB", "offload=none", "offload=model"))


def test_it_is_raised_with_its_cause_where_failures_are(tiny_model, monkeypatch):
    module = make_module(str(tiny_model), num_inference_steps=2, on_error="raise")
    module.load("cpu")
    module.engine.denoiser.network.run_block = Full()
    with pytest.raises(torch.OutOfMemoryError, match=r"^(invert|edit): ") as caught:
        run(module, make_clip())
    assert "Tried to allocate" in str(caught.value.__cause__)


def test_what_fits_is_named(module, monkeypatch):
    def tell(stage, room, **options):
        runtime = asdict(Runtime(**options))
        monkeypatch.setattr(shortage, "read_room_gib", lambda device: room)
        return tell_shortage(module.engine, make_clip(), stage, runtime, 6.0).partition("; ")

    said, _, advice = tell("decode", None)
    assert "this process" not in said and "offload=model" in advice
    peaks = {"none": {"edit": 5.0, "edit by 1": 4.0}, "model": {"edit": 4.5, "edit by 1": 3.0}}
    peaks["blocks"] = {"edit": 2.5, "edit by 1": 1.0}
    peaks = {offload: {**needs, "encode": 0.1, "decode": 0.1, "invert": 0.5} for offload, needs in peaks.items()}
    monkeypatch.setattr(shortage, "predict_peaks", lambda *_: peaks)
    for room, options, wanted in (
        (3.5, {}, "offload=model"),  # in groups of rows
        (3.5, {"rows_per_pass": 8}, "offload=blocks"),
        (0.9, {}, "rows_per_pass=1"),
        (0.9, {"offload": "blocks", "rows_per_pass": 1}, "smaller"),
        (9.9, {"precision": "fp8"}, "rows_per_pass=1"),
    ):
        said, _, advice = tell("edit", room, **options)
        assert f"can have {room:.1f}" in said and wanted in advice
    assert "vae_tiling" in tell("decode", 0.05, offload="blocks")[2]
    assert "vae_tiling" not in tell("decode", 0.05, offload="blocks", vae_tiling=True)[2]
    assert "0.5 GiB" in tell("reconstruct", 9.9)[0]
