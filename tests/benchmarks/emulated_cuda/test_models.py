"""Models of other kinds, and adapters, go through the whole job on the emulated device."""

from __future__ import annotations

import dataclasses
from typing import get_args

import pytest
import torch

from benchmarks.emulated_cuda import emulate_cuda
from benchmarks.emulated_cuda.job import run_job
from ddim_lightning.engine import adapters
from ddim_lightning.engine.config import Lora, Offload
from ddim_lightning.models.loading import load_components
from tests.adapters import write_random_adapter
from tests.modules import make_module
from tests.random_tiny import write_image_to_video

JOB = {"num_inference_steps": 2, "attention": "flash", "on_error": "raise"}


def check(module, clip):
    """Do the job; nothing is mixed, and no step waits but where it is said."""
    with emulate_cuda() as device:
        (result,) = run_job(module, [clip], device)
    assert result.status == "done" and result.edits[0].frames.shape == clip.frames.shape
    waits = [wait for wait in device.waits.list_in_steps() if wait.stage != "decode"]
    assert all(wait.place.ours.startswith("inverters/uni_inv.py") for wait in waits), waits


@pytest.mark.parametrize("offload", get_args(Offload))
def test_an_adapter_acts_in_edits(offload, smallest_model, clip, tmp_path, monkeypatch):
    parts = load_components(str(smallest_model), device=torch.device("cpu"), dtype=torch.float32)
    edit = write_random_adapter(tmp_path / "edit.safetensors", parts.transformer, mark=True)
    monkeypatch.setattr(adapters, "check_base", lambda *_: None)  # the weights have no values to know them by
    options = {"lora": [Lora(str(edit))], "editor": "InContextEdit", "offload": offload}
    check(make_module(str(smallest_model), **options, **JOB), clip)


def test_an_image_to_video_model_sees_its_first_frame(clip, tmp_path):
    frames = torch.zeros(9, 3, 32, 48, dtype=torch.uint8)
    shown = dataclasses.replace(clip, frames=frames, first_frame=frames[0])
    check(make_module(str(write_image_to_video(tmp_path / "model")), **JOB), shown)
