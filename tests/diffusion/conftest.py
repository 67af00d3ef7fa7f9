"""A model with a closed form: Gaussian data, whose mean is what the prompt says."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler
from torch import Tensor

from ddim_lightning.diffusion.guidance import combine
from ddim_lightning.diffusion.schedule import NoiseSchedule

DEVIATION = 0.3
MEANS = {"": 0.0, "left": -0.7, "right": 0.9, "up": 0.4}
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "rescale_betas_zero_snr": True,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "clip_sample": False,
}


def velocity_of(latents, angle, prompt):
    """E[cos(p) e - sin(p) x0 | x] for x0 ~ N(mean, DEVIATION^2), e ~ N(0, 1)."""
    cos, sin, mean = math.cos(angle), math.sin(angle), MEANS[prompt]
    centered = (latents - cos * mean) / (cos**2 * DEVIATION**2 + sin**2)
    return cos * sin * (1.0 - DEVIATION**2) * centered - sin * mean


def transport(latents, angle, angle_next, prompt):
    """The exact solution of the probability-flow ODE between two angles."""

    def spread(p):
        return math.sqrt((math.cos(p) * DEVIATION) ** 2 + math.sin(p) ** 2)

    mean = MEANS[prompt]
    z = (latents - math.cos(angle) * mean) / spread(angle)
    return math.cos(angle_next) * mean + spread(angle_next) * z


class GaussianDenoiser:
    """A `Denoiser`; a branch's source of keys and values pulls its velocity towards the source's own."""

    num_layers = 4

    def __init__(self):
        self.seen = []

    @property
    def nfe(self):
        return sum(len(branch.prompts) * len(branch.latents) for branches, _, _ in self.seen for branch in branches)

    def __call__(self, branches, step, kv_scale=None):
        self.seen.append((list(branches), step, kv_scale))
        return [
            self._evaluate(branch, branches, step, kv_scale) if branch.needs_velocity else None for branch in branches
        ]

    def _evaluate(self, branch, branches, step, kv_scale):
        rows = [velocity_of(branch.latents, step.angle, prompt) for prompt in branch.prompts]
        if branch.kv_source is not None:
            assert kv_scale is not None
            read = branches[branch.kv_source]
            pull = 0.5 * float(kv_scale.mean())
            rows = [(1 - pull) * row + pull * velocity_of(read.latents, step.angle, read.prompt) for row in rows]
        return rows[0] if len(rows) == 1 else combine(rows[0], rows[1], branch.guidance_scale)


@pytest.fixture
def toy():
    return GaussianDenoiser()


@pytest.fixture
def exact():
    return transport


@pytest.fixture
def closed_form():
    return velocity_of


@pytest.fixture
def clean():
    """Pairwise different sizes: a swapped axis cannot pass."""
    return 0.3 * torch.randn(1, 2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.2


@pytest.fixture
def make_schedule():
    def make(num_steps, snr_shift_scale=1.0):
        scheduler = CogVideoXDDIMScheduler(**SCHEDULE, snr_shift_scale=snr_shift_scale)
        scheduler.set_timesteps(num_steps)
        return NoiseSchedule.make(scheduler.alphas_cumprod, scheduler.timesteps.tolist())

    return make


@dataclass(frozen=True)
class Trained:
    """The bundled model as a `Denoiser`, the latents of one clip and what the clip shows."""

    denoiser: Any
    clean: Tensor
    caption: str
    schedules: dict[int, NoiseSchedule]


@pytest.fixture(scope="session")
def loaded():
    """What takes time and no test changes: the bundled model's parts, its prompts, a clip's latents and caption."""
    from ddim_lightning.data.streams import make_generator
    from ddim_lightning.models.loading import load_components, load_text_encoder
    from ddim_lightning.models.text import PromptEncoder
    from ddim_lightning.models.vae import encode_video
    from ddim_lightning.tiny.shapes import render, sample_scene

    cpu = torch.device("cpu")
    parts = load_components("tiny", device=cpu, dtype=torch.float32)

    def load_text(device):
        return load_text_encoder("tiny", device=device, dtype=torch.float32)

    prompts = PromptEncoder(parts.tokenizer, load_text, parts.transformer.config.max_text_seq_length, cpu)
    scene = sample_scene(make_generator(3, "test", 0))
    with torch.inference_mode():
        latents = encode_video(parts.vae, render(scene)[None])
    return parts, prompts, latents.clone(), scene.caption


@pytest.fixture
def trained(loaded):
    from ddim_lightning.models.schedulers import make_noise_schedule
    from ddim_lightning.network.denoiser import CogVideoXDenoiser
    from ddim_lightning.network.network import Network

    parts, prompts, latents, caption = loaded
    schedules = {n: make_noise_schedule(parts.scheduler, n) for n in (5, 10, 50)}
    return Trained(CogVideoXDenoiser(Network(parts.transformer), prompts), latents.clone(), caption, schedules)
