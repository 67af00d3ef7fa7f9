"""All sampling loops of the package are here: inversion, reconstruction, edits, and sampling from noise.

Each clip of a batch comes out as alone, but for methods that draw random numbers, which draw for the whole batch, and
`FixedPoint`, which goes on until every clip is within its tolerance.
Gradients pass through every step, as far as the denoiser lets them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from ddim_lightning.diffusion.editors.base import Editor
from ddim_lightning.diffusion.inversion import Inversion
from ddim_lightning.diffusion.inverters.base import Inverter
from ddim_lightning.diffusion.masks import find_mask
from ddim_lightning.diffusion.schedule import NoiseSchedule
from ddim_lightning.diffusion.step_cache import CachedDenoiser, StepCache
from ddim_lightning.diffusion.steps import denoise_step
from ddim_lightning.types import Branch, Context, Denoiser, EditRequest, Latents, Step, StepCallback, VelocityFn


def make_velocity_fn(denoiser: Denoiser, prompt: str, image_latents: Latents | None = None) -> VelocityFn:
    """Return the one-branch partial of a denoiser under a prompt and an image, without guidance."""

    def velocity_fn(latents: Latents, step: Step) -> Latents:
        (velocity,) = denoiser([Branch(latents, prompt, image_latents=image_latents)], step)
        assert velocity is not None
        return velocity

    return velocity_fn


def invert(
    denoiser: Denoiser,
    latents: Latents,
    schedule: NoiseSchedule,
    inverter: Inverter,
    *,
    prompt: str = "",
    image_latents: Latents | None = None,
    generator: torch.Generator | None = None,
    callback: StepCallback | None = None,
) -> Inversion:
    """Find the place of a video in the model's noise space, keeping the latents of every level.

    Args:
        denoiser: The model.
        latents: (b, f, c, h, w) clean latents; computed and kept in their own dtype, float32 in all normal use.
        schedule: The noise schedule.
        inverter: The method.
        prompt: The text of the inversion, empty by default; an inversion uses no guidance.
        image_latents: (b, f, c, h, w), what an image-to-video model is shown; ``None`` for a text-to-video model.
        generator: Source of the random numbers of a method that draws any.
        callback: Called after every step.

    Returns:
        The trajectory and what it takes to come back.
    """
    model, nfe = make_velocity_fn(denoiser, prompt, image_latents), 0

    def velocity_fn(latents: Latents, step: Step) -> Latents:
        nonlocal nfe
        nfe += 1
        return model(latents, step)

    state = inverter.init(latents, generator)
    levels = [latents]
    for i in reversed(range(len(schedule))):
        state = inverter.invert_step(velocity_fn, state, schedule, i)
        levels.append(state[0])
        if callback is not None:
            callback(schedule[i], state[0])
    residual = None
    if inverter.keep_residual:
        (denoised, *_) = inverter.denoise_step(velocity_fn, (levels[1],), schedule, len(schedule) - 1)
        residual = latents - denoised
    return Inversion(inverter, schedule, prompt, torch.stack(levels[::-1]), state, residual, nfe, image_latents)


def reconstruct(denoiser: Denoiser, inversion: Inversion, *, callback: StepCallback | None = None) -> Latents:
    """Come back from the noise under the inversion's own prompt and image, without guidance.

    Only the state at level 0 and the kept residual are used, never the levels in between.

    Args:
        denoiser: The model that inverted.
        inversion: Its result.
        callback: Called after every step.

    Returns:
        (b, f, c, h, w) clean latents.

    Raises:
        ValueError: One of the clean latents alone.
    """
    inversion.check_made("a reconstruction")
    velocity_fn, state = make_velocity_fn(denoiser, inversion.prompt, inversion.image_latents), inversion.state
    for step in inversion.schedule:
        state = inversion.inverter.denoise_step(velocity_fn, state, inversion.schedule, step.i)
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
    cache: StepCache | None = None,
    callback: StepCallback | None = None,
) -> Latents:
    """Rebuild the video under a new prompt.

    Args:
        denoiser: The model that inverted.
        inversion: The source video's inversion; one serves many requests. `Inversion.of_clean` will do where the editor
            needs no more.
        editor: How the new prompt meets the trajectory.
        request: The new prompt and its guidance.
        generator: Source of the random numbers of an editor that draws any.
        cache: Which steps are foretold instead of evaluated; ``None`` for none.
        callback: Called after every step.

    Returns:
        (b, f, c, h, w) clean latents.

    Raises:
        ValueError: An option of the editor that does not fit the model, the schedule or the request, or an inversion
            that was not made where the editor needs it.
    """
    tick = None if callback is None else (lambda step, latents: callback(step, latents[0]))
    (latents,) = edit_together(
        denoiser, inversion, editor, [request], generators=[generator], cache=cache, callback=tick
    )
    return latents


def edit_together(
    denoiser: Denoiser,
    inversion: Inversion,
    editor: Editor,
    requests: Sequence[EditRequest],
    *,
    generators: Sequence[torch.Generator | None],
    contexts: Sequence[Context | None] | None = None,
    cache: StepCache | None = None,
    callback: Callable[[Step, list[Latents]], None] | None = None,
) -> list[Latents]:
    """Rebuild the video under several prompts, all of them in one network pass a step.

    A branch that several requests have in common, the source's above all, is evaluated once: P guided prompts that
    share a source cost 2P + 1 NFE a step instead of 3P. Kernels may round differently for another number of prompts.

    Args:
        denoiser: The model that inverted.
        inversion: The source video's inversion.
        editor: How the new prompts meet the trajectory.
        requests: The new prompts and their guidance.
        generators: One a request: source of the random numbers of an editor that draws any.
        contexts: One a request, from `make_contexts`; ``None`` makes them here.
        cache: Which steps are foretold instead of evaluated, for all requests alike; ``None`` for none.
        callback: Called after every step with the latents of all requests.

    Returns:
        (b, f, c, h, w) clean latents, one a request.

    Raises:
        ValueError: See `edit`.
    """
    editor.check(denoiser.num_layers, len(inversion.schedule))
    if any(editor.needs(request, inversion.schedule, inversion.inverter) == "levels" for request in requests):
        inversion.check_made(f"an edit by {type(editor).__name__} with these options")
    if editor.velocity_mask is not None:
        requests = [
            replace(request, mask=find_mask(denoiser, inversion, request, editor.velocity_mask))
            if editor.finds_mask(request)
            else request
            for request in requests
        ]
    if contexts is None:
        contexts = make_contexts(denoiser, inversion, editor, requests)
    states = [
        replace(editor.start(inversion, request, generator, denoiser.num_layers), context=context)
        for request, generator, context in zip(requests, generators, contexts, strict=True)
    ]
    evaluate = denoiser if cache is None else CachedDenoiser(denoiser, cache)
    for step in list(inversion.schedule)[editor.get_first_step(len(inversion.schedule)) :]:
        if editor.evaluates(step, inversion.schedule):
            planned = [editor.branches(state, step, inversion) for state in states]
            merged, places = merge_branches([_show_image(branches, inversion) for branches, _ in planned])
            # Of all edits that read a source the same; one without a mask may read none where others have theirs.
            kv_scale = next((scale for _, scale in planned if scale is not None), None)
            velocities = evaluate(merged, step, kv_scale)
            states = [
                editor.update(state, [velocities[k] for k in place], step, inversion)
                for state, place in zip(states, places, strict=True)
            ]
        else:
            states = [editor.carry(state, step, inversion) for state in states]
        if callback is not None:
            callback(step, [state.latents for state in states])
    return [state.latents for state in states]


def make_contexts(
    denoiser: Denoiser, inversion: Inversion, editor: Editor, requests: Sequence[EditRequest]
) -> list[Context | None]:
    """Evaluate what edits attend to at all of their steps, once where several have it in common.

    Args:
        denoiser: The model.
        inversion: The source video's inversion.
        editor: Says what each edit attends to; see `Editor.make_context`.
        requests: The new prompts.

    Returns:
        One a request, ``None`` where its edit attends to nothing of the kind. It may serve any number of edits of the
        same requests, and takes memory as long as somebody has it.
    """
    held: dict[Any, Context] = {}
    contexts: list[Context | None] = []
    for request in requests:
        branch = editor.make_context(inversion, request)
        if branch is None:
            contexts.append(None)
            continue
        (branch,) = _show_image([branch], inversion)
        key = _make_key(0, [branch])
        if key not in held:
            held[key] = denoiser.hold(branch)
        contexts.append(held[key])
    return contexts


def sample(
    denoiser: Denoiser,
    noise: Latents,
    prompt: str,
    schedule: NoiseSchedule,
    guidance_scale: float,
    image_latents: Latents | None = None,
) -> Latents:
    """Walk from noise to clean latents by DDIM.

    Args:
        denoiser: The model.
        noise: (b, f, c, h, w) float32, unit normal.
        prompt: What the videos show.
        schedule: The steps.
        guidance_scale: Classifier-free guidance, >= 0; 1 turns it off.
        image_latents: (b, f, c, h, w), what an image-to-video model is shown; ``None`` for a text-to-video model.

    Returns:
        Clean latents in the shape of ``noise``.

    Source: Song et al., "Denoising Diffusion Implicit Models", equation 12, without noise (sigma 0).
    """
    latents = noise
    for step in schedule:
        branch = Branch(latents, prompt, guidance_scale=guidance_scale, image_latents=image_latents)
        (velocity,) = denoiser([branch], step)
        assert velocity is not None
        latents = denoise_step(latents, velocity, step)
    return latents


def merge_branches(lists: Sequence[Sequence[Branch]]) -> tuple[list[Branch], list[list[int]]]:
    """Put the branches of several edits into one list, what edits have in common only once.

    Args:
        lists: The branches of each edit; ``kv_source`` counts within an edit.

    Returns:
        The merged branches, ``kv_source`` counting among them; and for each edit the places of its branches.
    """
    merged: dict[Any, Branch] = {}
    places = []
    for branches in lists:
        keys: list[Any] = [_make_key(k, branches) for k in range(len(branches))]
        for key, branch in zip(keys, branches, strict=True):
            known = merged.setdefault(key, branch)
            # A velocity is needed when any edit needs it; the source of keys and values is found by its key below.
            merged[key] = replace(known, needs_velocity=known.needs_velocity or branch.needs_velocity)
        order = list(merged)
        places.append([order.index(key) for key in keys])
    order = list(merged)
    return [
        branch if branch.kv_source is None else replace(branch, kv_source=order.index(key[-1]))
        for key, branch in merged.items()
    ], places


def _show_image(branches: Sequence[Branch], inversion: Inversion) -> list[Branch]:
    """Show the branches that an editor gives no image of their own what the inversion was made under."""
    image = inversion.image_latents
    return [branch if branch.image_latents is not None else replace(branch, image_latents=image) for branch in branches]


def _make_key(k: int, branches: Sequence[Branch]) -> tuple[Any, ...]:
    """Equal for branches of several edits that are the same work: latents, image, prompts, scale, and what they read.

    Latents are the same when they have the same cache key or, without one, the same memory; so are images.

    The place in the edit is part of it: two branches of one edit are evaluated both, even where they are equal.
    """
    branch = branches[k]
    source = None if branch.kv_source is None else _make_key(branch.kv_source, branches)
    latents = branch.latents.data_ptr() if branch.cache_key is None else branch.cache_key
    image = None if branch.image_latents is None else branch.image_latents.data_ptr()
    context = None if branch.context is None else id(branch.context)
    texts = (branch.prompt, branch.negative_prompt, branch.guidance_scale)
    mask = None if branch.mask is None else branch.mask.data_ptr()
    return (k, latents, image, *texts, branch.timestep, context, mask, source)
