"""The only loops of the package: up to the noise, back to the video, and down again under a new prompt."""

from __future__ import annotations

import torch

from ddim_lightning.diffusion.editors.base import Editor
from ddim_lightning.diffusion.inverters.base import Inverter
from ddim_lightning.diffusion.schedule import StepTable
from ddim_lightning.diffusion.trajectory import Inversion
from ddim_lightning.types import Branch, Denoiser, EditRequest, Latents, Step, StepCallback, VelocityFn


def make_velocity_fn(denoiser: Denoiser, prompt: str) -> VelocityFn:
    """Return the one-branch partial of a denoiser under a prompt, without guidance."""

    def velocity_fn(latents: Latents, step: Step) -> Latents:
        (velocity,) = denoiser([Branch(latents, prompt)], step)
        assert velocity is not None
        return velocity

    return velocity_fn


def invert(
    denoiser: Denoiser,
    latents: Latents,
    table: StepTable,
    inverter: Inverter,
    *,
    prompt: str = "",
    generator: torch.Generator | None = None,
    callback: StepCallback | None = None,
) -> Inversion:
    """Find the place of a video in the model's noise space, keeping the latents of every level.

    Args:
        denoiser: The model.
        latents: (b, f, c, h, w) clean latents; computed and kept in their own dtype, float32 in all normal use.
        table: The step table.
        inverter: The method.
        prompt: The text of the inversion, empty by default; no guidance is used on the way up.
        generator: Source of the random numbers of a method that draws any.
        callback: Called after every step.

    Returns:
        The trajectory and what it takes to come back.
    """
    model, calls = make_velocity_fn(denoiser, prompt), 0

    def velocity_fn(latents: Latents, step: Step) -> Latents:
        nonlocal calls
        calls += 1
        return model(latents, step)

    state = inverter.init(latents, generator)
    levels = [latents]
    for i in reversed(range(len(table))):
        state = inverter.up(velocity_fn, state, table, i)
        levels.append(state[0])
        if callback is not None:
            callback(table[i], state[0])
    residual = None
    if inverter.keep_residual:
        (landed, *_) = inverter.down(velocity_fn, (levels[1],), table, len(table) - 1)
        residual = latents - landed
    return Inversion(inverter, table, prompt, torch.stack(levels[::-1]), state, residual, calls)


def reconstruct(denoiser: Denoiser, inversion: Inversion, *, callback: StepCallback | None = None) -> Latents:
    """Come back from the noise under the inversion's own prompt, without guidance.

    Only the state at level 0 and the kept residual are used, never the levels in between.

    Args:
        denoiser: The model that inverted.
        inversion: Its result.
        callback: Called after every step.

    Returns:
        (b, f, c, h, w) clean latents.
    """
    velocity_fn, state = make_velocity_fn(denoiser, inversion.prompt), inversion.state
    for step in inversion.table:
        state = inversion.inverter.down(velocity_fn, state, inversion.table, step.i)
        if callback is not None:
            callback(step, state[0])
    return state[0] if inversion.residual is None else state[0] + inversion.residual


def edit(
    denoiser: Denoiser,
    inversion: Inversion,
    editor: Editor,
    request: EditRequest,
    *,
    generator: torch.Generator | None = None,
    callback: StepCallback | None = None,
) -> Latents:
    """Rebuild the video under a new prompt.

    Args:
        denoiser: The model that inverted.
        inversion: The source video's inversion; one serves many requests.
        editor: How the new prompt meets the trajectory.
        request: The new prompt and its guidance.
        generator: Source of the random numbers of an editor that draws any.
        callback: Called after every step.

    Returns:
        (b, f, c, h, w) clean latents.

    Raises:
        ValueError: An option of the editor that does not fit the model or the table.
    """
    editor.check(denoiser.num_layers, len(inversion.table))
    state = editor.start(inversion, request, generator, denoiser.num_layers)
    for step in inversion.table:
        branches, strength = editor.branches(state, step, inversion)
        state = editor.update(state, denoiser(branches, step, strength), step, inversion)
        if callback is not None:
            callback(step, state.latents)
    return state.latents
