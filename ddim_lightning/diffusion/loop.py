"""The only loops of the package: up to the noise, back to the video, and down again under a new prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from ddim_lightning.diffusion.editors.base import Editor
from ddim_lightning.diffusion.inverters.base import Inverter
from ddim_lightning.diffusion.masks import find_mask
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
        ValueError: An option of the editor that does not fit the model, the table or the request.
    """
    tick = None if callback is None else (lambda step, latents: callback(step, latents[0]))
    (latents,) = edit_together(denoiser, inversion, editor, [request], generators=[generator], callback=tick)
    return latents


def edit_together(
    denoiser: Denoiser,
    inversion: Inversion,
    editor: Editor,
    requests: Sequence[EditRequest],
    *,
    generators: Sequence[torch.Generator | None],
    callback: Callable[[Step, list[Latents]], None] | None = None,
) -> list[Latents]:
    """Rebuild the video under several prompts, all of them in one network pass a step.

    A branch that several requests have in common, the source's above all, is evaluated once: P guided prompts that
    share a source row cost 2P + 1 rows a step instead of 3P. Kernels may round differently for another number of rows.

    Args:
        denoiser: The model that inverted.
        inversion: The source video's inversion.
        editor: How the new prompts meet the trajectory.
        requests: The new prompts and their guidance.
        generators: One a request: source of the random numbers of an editor that draws any.
        callback: Called after every step with the latents of all requests.

    Returns:
        (b, f, c, h, w) clean latents, one a request.

    Raises:
        ValueError: An option of the editor that does not fit the model, the table or a request.
    """
    editor.check(denoiser.num_layers, len(inversion.table))
    if editor.velocity_mask is not None:
        requests = [
            request
            if request.mask is not None
            else replace(request, mask=find_mask(denoiser, inversion, request, editor.velocity_mask))
            for request in requests
        ]
    pairs = zip(requests, generators, strict=True)
    states = [editor.start(inversion, request, generator, denoiser.num_layers) for request, generator in pairs]
    for step in list(inversion.table)[editor.get_first_step(len(inversion.table)) :]:
        if not editor.evaluates(step, inversion.table):
            states = [editor.carry(state, step, inversion) for state in states]
            if callback is not None:
                callback(step, [state.latents for state in states])
            continue
        planned = [editor.branches(state, step, inversion) for state in states]
        merged, places = merge_branches([branches for branches, _ in planned])
        velocities = denoiser(merged, step, planned[0][1])
        states = [
            editor.update(state, [velocities[k] for k in place], step, inversion)
            for state, place in zip(states, places, strict=True)
        ]
        if callback is not None:
            callback(step, [state.latents for state in states])
    return [state.latents for state in states]


def merge_branches(lists: Sequence[Sequence[Branch]]) -> tuple[list[Branch], list[list[int]]]:
    """Put the branches of several edits into one list, what edits have in common only once.

    Args:
        lists: The branches of each edit; ``reads`` counts within an edit.

    Returns:
        The merged branches, ``reads`` counting among them; and for each edit the places of its branches.
    """
    merged: dict[Any, Branch] = {}
    places = []
    for branches in lists:
        keys: list[Any] = [_make_key(k, branches) for k in range(len(branches))]
        for key, branch in zip(keys, branches, strict=True):
            known = merged.setdefault(key, branch)
            # A branch is wanted when any edit wants it; what it reads is found by its key below.
            merged[key] = replace(known, wanted=known.wanted or branch.wanted)
        order = list(merged)
        places.append([order.index(key) for key in keys])
    order = list(merged)
    return [
        branch if branch.reads is None else replace(branch, reads=order.index(key[-1]))
        for key, branch in merged.items()
    ], places


def _make_key(k: int, branches: Sequence[Branch]) -> tuple[Any, ...]:
    """Equal for branches of several edits that are the same work: latents, texts, scale, and what they read.

    Latents are the same when they have the same name or, without one, the same memory.

    The place in the edit is part of it: two branches of one edit are evaluated both, even where they are equal.
    """
    branch = branches[k]
    read = None if branch.reads is None else _make_key(branch.reads, branches)
    latents = branch.latents.data_ptr() if branch.name is None else branch.name
    return (k, latents, branch.prompt, branch.negative_prompt, branch.guidance_scale, read)
