"""Two schedulers, for sampling and for inversion, are made on one and the same noise schedule."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import torch
from diffusers import CogVideoXDDIMScheduler, DDIMInverseScheduler

from ddim_lightning.diffusion.schedule import NoiseSchedule, make_angle

COGVIDEOX_5B_SCHEDULER: dict[str, Any] = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "set_alpha_to_one": True,
    "snr_shift_scale": 1.0,
    "steps_offset": 0,
    "timestep_spacing": "trailing",
}
"""The schedule CogVideoX-5B is published with."""

SCHEDULERS = ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")
"""The classes whose config describes a CogVideoX schedule."""

TOLERANCE = 1e-5
"""How far the two schedulers may be apart, in every entry of their tables and along a walk there and back."""

_REPLACED = {
    "timestep_spacing": ("trailing", "sampling has to start from pure noise, and CogVideoX is published with it"),
    "clip_sample": (False, "latents are not bounded, and a clipped step has no inverse"),
}


def make_schedulers(config: Mapping[str, Any]) -> tuple[CogVideoXDDIMScheduler, DDIMInverseScheduler]:
    """Make the sampling scheduler and its inverse from the config of any CogVideoX scheduler.

    Both are deterministic (eta is 0). ``DDIMInverseScheduler(**config)`` alone drops ``snr_shift_scale`` silently, so
    the inverse gets the schedule of the sampling one.

    Args:
        config: ``scheduler_config.json`` as a dict; keys that are absent have CogVideoX's defaults.

    Raises:
        ValueError: The config is another scheduler's, does not predict velocity, or leads to two schedulers that
            disagree by more than `TOLERANCE`.

    Source: Song et al. 2021, arXiv:2010.02502 (DDIM and its inverse); Lin et al. 2024, arXiv:2305.08891 (zero SNR).
    """
    kind = config.get("_class_name", SCHEDULERS[0])
    if kind not in SCHEDULERS:
        raise ValueError(f"scheduler: must be one of {', '.join(SCHEDULERS)}, got {kind}")
    scheduler = CogVideoXDDIMScheduler.from_config(_replace_settings(config))
    if scheduler.config.prediction_type != "v_prediction":
        raise ValueError(f"scheduler: prediction_type must be v_prediction, got {scheduler.config.prediction_type}")
    inverse = make_inverse_scheduler(scheduler)
    check_schedulers(scheduler, inverse)
    return scheduler, inverse


def adopt_scheduler(scheduler: Any) -> tuple[CogVideoXDDIMScheduler, DDIMInverseScheduler]:
    """Make the pair of `make_schedulers` from a scheduler that is there, on the noise levels that it has now.

    Args:
        scheduler: A ``CogVideoXDDIMScheduler`` or ``CogVideoXDPMScheduler``; stays as it is.

    Raises:
        ValueError: A scheduler of another class, whose steps would not be taken, or one that `make_schedulers` refuses.
    """
    sampler, _ = make_schedulers({**scheduler.config, "_class_name": type(scheduler).__name__})
    sampler.alphas_cumprod = scheduler.alphas_cumprod.clone()
    sampler.final_alpha_cumprod = scheduler.final_alpha_cumprod.clone()
    inverse = make_inverse_scheduler(sampler)
    check_schedulers(sampler, inverse)
    return sampler, inverse


def describe_scheduler(scheduler: CogVideoXDDIMScheduler) -> dict[str, Any]:
    """Return the class of a scheduler and how its config differs from CogVideoX-5B's, JSON-ready.

    Args:
        scheduler: The sampling one.
    """
    published = CogVideoXDDIMScheduler(**COGVIDEOX_5B_SCHEDULER).config
    config = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    unlike = {name: value for name, value in config.items() if name not in published or published[name] != value}
    return {"class": type(scheduler).__name__, "config": unlike}


def make_inverse_scheduler(scheduler: CogVideoXDDIMScheduler) -> DDIMInverseScheduler:
    """Make the inverse of a sampling scheduler, on exactly its schedule, SNR shift included."""
    config = {key: value for key, value in scheduler.config.items() if key != "snr_shift_scale"}
    inverse = DDIMInverseScheduler.from_config(config)
    inverse.alphas_cumprod = scheduler.alphas_cumprod.clone()
    inverse.alphas = inverse.alphas_cumprod / torch.cat([torch.ones(1), inverse.alphas_cumprod[:-1]])
    inverse.betas = 1 - inverse.alphas
    inverse.initial_alpha_cumprod = scheduler.final_alpha_cumprod.clone()
    return inverse


def check_schedulers(scheduler: CogVideoXDDIMScheduler, inverse: DDIMInverseScheduler) -> None:
    """Check that two schedulers agree: their tables, their timesteps, and a walk from noise to clean and back.

    Args:
        scheduler: The sampling one.
        inverse: Its inverse.

    Raises:
        ValueError: They disagree by more than `TOLERANCE`; the message says in what and by how much.
    """
    pairs = {
        "alphas_cumprod": (scheduler.alphas_cumprod, inverse.alphas_cumprod),
        "alpha of a clean sample": (scheduler.final_alpha_cumprod, inverse.initial_alpha_cumprod),
    }
    for name, (ours, theirs) in pairs.items():
        _check_close(name, ours.double(), theirs.double())
    if inverse.config.prediction_type != scheduler.config.prediction_type:
        raise ValueError(
            f"scheduler: prediction_type is {scheduler.config.prediction_type} for sampling, "
            f"{inverse.config.prediction_type} for inversion"
        )
    _check_walk(copy.copy(scheduler), copy.copy(inverse))


def make_noise_schedule(
    scheduler: CogVideoXDDIMScheduler,
    num_inference_steps: int,
    *,
    spacing: Literal["trailing", "angle"] = "trailing",
    zero_snr: bool = True,
) -> NoiseSchedule:
    """Make the noise schedule of a scheduler, which stays as it is.

    Args:
        scheduler: The sampling scheduler.
        num_inference_steps: Number of steps, 1 .. ``num_train_timesteps``.
        spacing: ``trailing``, even in timesteps, as CogVideoX is published; ``angle``, even in angles, as far as whole
            timesteps allow: every step is then the same rotation, that next to clean included.
        zero_snr: Whether the schedule reaches its first level, pure noise; without, it has one step fewer.

    Raises:
        ValueError: ``num_inference_steps`` is out of range for this spacing.
    """
    most = scheduler.config.num_train_timesteps
    if not 1 <= num_inference_steps <= most:
        raise ValueError(f"num_inference_steps: must be 1 .. {most}, got {num_inference_steps}")
    if not zero_snr and num_inference_steps == 1:
        raise ValueError("num_inference_steps: must be at least 2 without the zero-SNR level, got 1")
    sampler = copy.copy(scheduler)
    sampler.set_timesteps(num_inference_steps)
    # For some counts, 61 for example, rounding gives diffusers a step too many, at timestep -1.
    timesteps, clean = [t for t in sampler.timesteps.tolist() if t >= 0], float(scheduler.final_alpha_cumprod)
    if spacing == "angle":
        timesteps = _space_angles(scheduler.alphas_cumprod, num_inference_steps, clean)
    return NoiseSchedule.make(scheduler.alphas_cumprod, timesteps if zero_snr else timesteps[1:], clean)


def _space_angles(alphas_cumprod: torch.Tensor, num_inference_steps: int, final_alpha_cumprod: float) -> list[int]:
    """Return the timesteps whose angles are nearest to an even division between noise and clean."""
    angles = [make_angle(float(alpha)) for alpha in alphas_cumprod]
    turn = (angles[-1] - make_angle(final_alpha_cumprod)) / num_inference_steps
    wanted = [angles[-1] - i * turn for i in range(num_inference_steps)]
    timesteps = [min(range(len(angles)), key=lambda t: abs(angles[t] - angle)) for angle in wanted]
    if len(set(timesteps)) < num_inference_steps:
        rule = f"spacing 'angle' must not come to a timestep twice (the cleanest one has {angles[0]:.3g} radians)"
        raise ValueError(f"num_inference_steps: {rule}, got {num_inference_steps}")
    return timesteps


def _replace_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Replace the settings that inversion cannot live with, and warn of each that the config asks for."""
    for key, (value, reason) in _REPLACED.items():
        if config.get(key, value) != value:
            warnings.warn(f"scheduler: {key}={config[key]} is ignored, {value} is used: {reason}", stacklevel=3)
    return {**config, **{key: value for key, (value, _) in _REPLACED.items()}}


def _check_close(name: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=0, atol=TOLERANCE):
        apart = f"{(ours - theirs).abs().max():.2g} apart" if ours.shape == theirs.shape else "of different lengths"
        raise ValueError(f"scheduler: sampling and inversion must agree to {TOLERANCE:g}, but {name} is {apart}")


def _check_walk(scheduler: CogVideoXDDIMScheduler, inverse: DDIMInverseScheduler) -> None:
    """Walk a sample whose x0 and noise are known from noise to clean and back.

    With x0 and noise constant, DDIM is exact at every step; noise added (eta > 0), a clipped x0 or another prediction
    type would show at once.
    """
    scheduler.set_timesteps(10)
    inverse.set_timesteps(10)
    if scheduler.timesteps.tolist() != inverse.timesteps.tolist()[::-1]:
        raise ValueError("scheduler: the timesteps of inversion are not those of sampling in reverse")
    x0, noise = torch.tensor([-3.0, 2.0], dtype=torch.float64), torch.tensor([0.5, -1.5], dtype=torch.float64)
    levels = [scheduler.alphas_cumprod[t].double() for t in scheduler.timesteps] + [scheduler.final_alpha_cumprod]
    samples = [a.sqrt() * x0 + (1 - a).sqrt() * noise for a in levels]
    velocities = [a.sqrt() * noise - (1 - a).sqrt() * x0 for a in levels]
    for i, t in enumerate(scheduler.timesteps.tolist()):
        stepped = scheduler.step(velocities[i], t, samples[i]).prev_sample
        returned = inverse.step(velocities[i + 1], t, samples[i + 1]).prev_sample
        _check_close(f"the sampling step at timestep {t}", samples[i + 1], stepped)
        _check_close(f"the inversion step to timestep {t}", samples[i], returned)
