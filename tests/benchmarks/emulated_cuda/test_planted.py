"""Mistakes that a GPU would find are planted, and the emulated device finds them."""

from __future__ import annotations

import pytest
import torch

from benchmarks.emulated_cuda import emulate_cuda
from benchmarks.emulated_cuda.job import run_job
from ddim_lightning.network.denoiser import CogVideoXDenoiser
from ddim_lightning.network.network import Network
from ddim_lightning.network.rotary import RotaryTables
from tests.modules import make_module


def run(model, clip, **options):
    """Do a whole job on the emulated device; return the device."""
    module = make_module(str(model), num_inference_steps=2, attention="flash", on_error="raise", **options)
    with emulate_cuda() as device:
        run_job(module, [clip], device)
    return device


def test_a_table_that_was_left_on_the_host(smallest_model, clip, monkeypatch):
    get = RotaryTables.get
    monkeypatch.setattr(RotaryTables, "get", lambda self, latents: get(self, torch.empty(latents.shape)))
    with pytest.raises(RuntimeError, match="device"):
        run(smallest_model, clip)


def test_a_row_in_float32_in_a_product_in_bfloat16(smallest_model, clip, monkeypatch):
    make_rows = CogVideoXDenoiser._make_rows

    def forget(*arguments):
        rows, embeds = make_rows(*arguments)
        return rows.float(), embeds

    monkeypatch.setattr(CogVideoXDenoiser, "_make_rows", forget)
    with pytest.raises(RuntimeError, match=r"float32|float"):
        run(smallest_model, clip)


def test_an_item_in_a_step(smallest_model, clip, monkeypatch):
    call = Network.__call__

    def ask(self, latents, *arguments, **options):
        velocity = call(self, latents, *arguments, **options)
        assert velocity.abs().amax().item() < 1e3
        return velocity

    monkeypatch.setattr(Network, "__call__", ask)
    waits = run(smallest_model, clip).waits.list_in_steps()
    here = [wait for wait in waits if wait.place.ours.startswith("emulated_cuda/test_planted.py")]
    assert {wait.kind for wait in here} == {"item"} and {"invert", "reconstruct"} <= {wait.stage for wait in here}


def test_a_buffer_that_was_forgotten_on_the_host(smallest_model, clip, monkeypatch):
    start_stage = Network.start_stage

    def add_buffer(self, timesteps):
        start_stage(self, timesteps)
        projection = self.transformer.patch_embed.proj
        if not hasattr(projection, "shift"):
            projection.register_buffer("shift", torch.zeros(1, dtype=torch.bfloat16))
            projection.register_forward_hook(lambda module, _, output: output + module.shift)

    monkeypatch.setattr(Network, "start_stage", add_buffer)
    with pytest.raises(RuntimeError, match="device"):
        run(smallest_model, clip)


def test_more_than_there_is(smallest_model, clip):
    module = make_module(str(smallest_model), num_inference_steps=2, attention="flash", on_error="raise")
    with emulate_cuda(total_gib=2.0, limited=True) as device:
        # Once the model is loaded: transformers leaves a GiB to itself.
        module.progress_listeners.append(lambda _: setattr(device.memory, "total", device.memory.current))
        with pytest.raises(torch.OutOfMemoryError, match="encode"):
            run_job(module, [clip], device)
