"""From noise to clips, where the answer is known."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ddim_lightning.diffusion.schedule import NoiseSchedule
from ddim_lightning.models.schedulers import COGVIDEOX_5B_SCHEDULER, make_schedulers, make_noise_schedule
from ddim_lightning.diffusion.sampling import quantize, sample
from ddim_lightning.types import Branch, Latents, Step, KVScale


class OneClip:
    """The velocity of a world that holds a single clip, and what it was asked for."""

    num_layers = 3

    def __init__(self, clip: Latents) -> None:
        self.clip = clip
        self.calls: list[tuple[int, tuple[str, ...], float]] = []

    def __call__(self, branches: Sequence[Branch], step: Step, kv_scale: KVScale | None = None) -> list[Latents | None]:
        (branch,) = branches
        self.calls.append((step.timestep, branch.prompts, branch.guidance_scale))
        angle = torch.tensor(step.angle)
        noise = (branch.latents - angle.cos() * self.clip) / angle.sin()
        return [angle.cos() * noise - angle.sin() * self.clip]


def make_table(num_steps: int) -> NoiseSchedule:
    scheduler, _ = make_schedulers(COGVIDEOX_5B_SCHEDULER)
    return make_noise_schedule(scheduler, num_steps)


def test_any_noise_becomes_the_only_clip_there_is() -> None:
    generator = torch.Generator().manual_seed(0)
    clip, noise = (torch.randn(1, 2, 5, 3, 4, generator=generator) for _ in range(2))
    for num_steps in (1, 7):
        denoiser, schedule = OneClip(clip), make_table(num_steps)
        torch.testing.assert_close(sample(denoiser, noise, "a cross", schedule, 3.0), clip)
        assert denoiser.calls == [(step.timestep, ("", "a cross"), 3.0) for step in schedule]
    denoiser = OneClip(clip)
    sample(denoiser, noise, "a cross", make_table(2), 1.0)
    assert [prompts for _, prompts, _ in denoiser.calls] == [("a cross",)] * 2


def test_frames_are_rounded_not_cut() -> None:
    video = torch.tensor([0.0, 0.9 / 255, 1.0]).view(1, 3, 1, 1, 1)
    frames = quantize(video)
    assert frames.dtype == torch.uint8
    assert frames.shape == (3, 1, 1, 1)
    assert frames.flatten().tolist() == [0, 1, 255]
