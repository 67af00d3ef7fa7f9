"""From noise to clips, where the answer is known."""

from __future__ import annotations

import torch

from ddim_lightning.diffusion.sampling import sample
from ddim_lightning.models.schedulers import COGVIDEOX_5B_SCHEDULER, make_noise_schedule, make_schedulers


class OneClip:
    """The velocity of a world that holds a single clip, and what it was asked for."""

    num_layers = 3

    def __init__(self, clip):
        self.clip = clip
        self.calls = []

    def __call__(self, branches, step, kv_scale=None):
        (branch,) = branches
        self.calls.append((step.timestep, branch.prompts, branch.guidance_scale))
        angle = torch.tensor(step.angle)
        noise = (branch.latents - angle.cos() * self.clip) / angle.sin()
        return [angle.cos() * noise - angle.sin() * self.clip]


def make_schedule(num_steps):
    scheduler, _ = make_schedulers(COGVIDEOX_5B_SCHEDULER)
    return make_noise_schedule(scheduler, num_steps)


def test_any_noise_becomes_the_only_clip_there_is():
    generator = torch.Generator().manual_seed(0)
    clip, noise = (torch.randn(1, 2, 5, 3, 4, generator=generator) for _ in range(2))
    for num_steps in (1, 7):
        denoiser, schedule = OneClip(clip), make_schedule(num_steps)
        torch.testing.assert_close(sample(denoiser, noise, "a cross", schedule, 3.0), clip)
        assert denoiser.calls == [(step.timestep, ("", "a cross"), 3.0) for step in schedule]
    denoiser = OneClip(clip)
    sample(denoiser, noise, "a cross", make_schedule(2), 1.0)
    assert [prompts for _, prompts, _ in denoiser.calls] == [("a cross",)] * 2
