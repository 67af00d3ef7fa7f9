"""Models as CogVideoX-2B: no rotary embeddings, SNR shift 3, on random weights with every parameter perturbed."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMInverseScheduler

from ddim_lightning.diffusion.inverters import BDIA, FixedPoint, UniInv
from ddim_lightning.diffusion.sampling import invert, reconstruct
from ddim_lightning.diffusion.schedule import NoiseSchedule
from ddim_lightning.models.loading import load_components, load_text_encoder
from ddim_lightning.models.schedulers import make_noise_schedule
from ddim_lightning.models.text import PromptEncoder
from ddim_lightning.network.denoiser import CogVideoXDenoiser
from ddim_lightning.network.network import Network
from tests.random_tiny import write_random_tiny


def load(folder, **options):
    return load_components(str(folder), device=torch.device("cpu"), dtype=torch.float32, **options)


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    return write_random_tiny(tmp_path_factory.mktemp("models") / "flat", rotary=False, snr_shift_scale=3.0)


@pytest.fixture(scope="module")
def rotary_parts(tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a model with rotary embeddings does not warn
        return load(write_random_tiny(tmp_path_factory.mktemp("models") / "rotary"), require_rotary=False)


@pytest.fixture(scope="module")
def flat_parts(flat):
    with pytest.warns(UserWarning, match=r"^model: .*flat has no rotary position embeddings"):
        return load(flat, require_rotary=False)


def measure_round_trip(parts, inverse_scheduler, inverter, num_steps=10):
    """Climb on the levels of an inverse scheduler, come down on the sampler's; relative L2 to the clean latents."""
    generator = torch.Generator().manual_seed(7)
    transformer = parts.transformer
    weights = {name: value.clone() for name, value in transformer.state_dict().items()}
    for parameter in transformer.parameters():
        parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))

    def load_text(device):
        return load_text_encoder(parts.checkpoint, device=device, dtype=torch.float32)

    prompts = PromptEncoder(parts.tokenizer, load_text, transformer.config.max_text_seq_length, torch.device("cpu"))
    denoiser = CogVideoXDenoiser(Network(transformer), prompts)
    schedule = make_noise_schedule(parts.scheduler, num_steps)
    clean = 0.8 * torch.randn(1, 3, 8, 8, 12, generator=torch.Generator().manual_seed(1))
    up = NoiseSchedule.make(inverse_scheduler.alphas_cumprod, schedule.timesteps)
    inversion = invert(denoiser, clean, up, inverter)
    landed = reconstruct(denoiser, replace(inversion, schedule=schedule, levels=inversion.levels[:1]))
    transformer.load_state_dict(weights)
    return float((landed - clean).norm() / clean.norm())


def make_unrepaired(parts):
    """As the reference script makes it; diffusers drops ``snr_shift_scale`` silently."""
    return DDIMInverseScheduler(**parts.scheduler.config)


def test_it_is_refused_by_default(flat):
    with pytest.raises(ValueError, match=r"^model: .*flat is refused .*rotary"):
        load(flat)


# A random network is rough: the line through two velocities wants steps that are not too large.
@pytest.mark.parametrize(
    ("inverter", "num_steps"), [(UniInv(extrapolate=True, extra_evals=0.12), 20), (FixedPoint(), 10)], ids=repr
)
def test_it_comes_back_as_well_as_a_model_with_rotary_embeddings_and_not_without_the_repair(
    inverter, num_steps, flat_parts, rotary_parts
):
    reference = measure_round_trip(rotary_parts, rotary_parts.inverse_scheduler, inverter, num_steps)
    assert measure_round_trip(flat_parts, flat_parts.inverse_scheduler, inverter, num_steps) <= 1.2 * reference
    assert measure_round_trip(flat_parts, make_unrepaired(flat_parts), inverter, num_steps) > 3.0 * reference


def test_an_exact_method_is_exact_on_both_and_not_without_the_repair(flat_parts, rotary_parts):
    for parts in (rotary_parts, flat_parts):
        assert measure_round_trip(parts, parts.inverse_scheduler, BDIA()) <= 1e-5
    assert measure_round_trip(flat_parts, make_unrepaired(flat_parts), BDIA()) > 0.1
    # At a shift of 1 there is nothing to repair.
    assert measure_round_trip(rotary_parts, make_unrepaired(rotary_parts), BDIA()) <= 1e-5
