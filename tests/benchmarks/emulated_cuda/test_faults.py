"""Faults that only a GPU would have shown, and that are not to come back."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from benchmarks.emulated_cuda import emulate_cuda
from benchmarks.loading import make_engine, make_prompts
from benchmarks.reference_script import Reference, load_script
from ddim_lightning.models.loading import load_components, load_text_encoder
from ddim_lightning.runtime.host_memory import HostMemory
from tests.modules import make_module

STUB = Path(__file__).parents[1] / "reference_stub.py"


def load(model, device="cuda", **where):
    return load_components(str(model), device=torch.device(device), dtype=torch.bfloat16, **where)


@pytest.mark.parametrize("offload", ["model", "blocks"])
def test_tables_and_page_locked_memory_are_the_hosts_where_a_trainer_makes_the_gpu_the_default(offload, smallest_model):
    module = make_module(str(smallest_model), attention="flash", offload=offload)
    with emulate_cuda() as device, torch.device("cuda"):
        module.load("cuda")
        assert module.scheduler.alphas_cumprod.device.type == "cpu"
        assert module.engine.components.inverse_scheduler.alphas_cumprod.device.type == "cpu"
        assert device.pinned.current > 0


def test_the_reference_script_runs_in_the_dtype_of_the_model(smallest_model):
    with emulate_cuda(), torch.inference_mode():
        parts = load(smallest_model)
        encoder = load_text_encoder(str(smallest_model), device=torch.device("cuda"), dtype=torch.bfloat16)
        reference = Reference(load_script(STUB), parts, encoder, 2, 2.0, text_tokens=16)
        latents = torch.zeros(1, 2, 8, 4, 4, device="cuda")
        trajectory = reference.invert(latents)
        assert reference.edit(latents, trajectory, "a red circle").shape == latents.shape


@pytest.mark.parametrize("offload", ["none", "model", "blocks"])
def test_benchmarks_take_the_kernel_of_the_device_and_not_of_where_weights_wait(offload, smallest_model):
    with emulate_cuda(), torch.inference_mode():
        parts = load(smallest_model, on_host=() if offload == "none" else ("transformer", "vae"))
        device = torch.device("cuda")
        prompts = make_prompts(parts, device)
        engine = make_engine(parts, 2, prompts=prompts, device=device, attention="flash", offload=offload)
        assert engine.invert(torch.zeros(1, 2, 8, 4, 4, device="cuda")).levels.device.type == "cuda"
        assert engine.network.attention.attend_lse is not None


def test_page_locked_memory_is_hardly_more_than_the_weights():
    """The blocks of CogVideoX-5B and their norms would each be made up to the next power of two, 13.1 GiB in all."""
    with emulate_cuda() as device:
        weights = [torch.empty(mib * 2**20, dtype=torch.uint8, device="meta") for mib in (216, 36) * 42]
        memory = HostMemory.make_for(weights)
        pieces = [memory.take(weight.nbytes) for weight in weights]
        assert [piece.nbytes for piece in pieces] == [weight.nbytes for weight in weights]
        assert device.pinned.current <= 1.02 * sum(weight.nbytes for weight in weights)
    starts = sorted((piece.untyped_storage()._cdata, piece.storage_offset(), piece.nbytes) for piece in pieces)
    for (storage, start, size), (other, following, _) in itertools.pairwise(starts):
        assert storage != other or start + size <= following
