"""A plan says, before any work, which stages a clip goes through, what they cost, and what was asked for in vain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ddim_lightning.diffusion.masks import count_probe_nfe
from ddim_lightning.engine.clip_rules import find_unread
from ddim_lightning.engine.config import Outputs
from ddim_lightning.engine.engine import InversionEngine
from ddim_lightning.engine.rehearsal import count_edit_nfe
from ddim_lightning.metrics.measures import MEASURES
from ddim_lightning.network.quantized import QuantizedNetwork
from ddim_lightning.types import Clip, EditRequest


@dataclass(frozen=True)
class ClipPlan:
    """A `ClipPlan` is what is known of the work on a clip before it begins.

    Args:
        inverts: Whether there is to be an inversion, made or stored; without one nothing but the edits is made.
        stored: The file of a former run's trajectory that is taken instead of inverting, if there is one.
        invert_nfe: NFE of the inversion, in all windows, as are the others.
        reconstruct_nfe: Of the reconstruction.
        edit_nfe: Of all edits.
        warnings: Sentences for the user.
    """

    inverts: bool
    stored: Path | None
    invert_nfe: int
    reconstruct_nfe: int
    edit_nfe: int
    warnings: tuple[str, ...]

    @property
    def nfe(self) -> int:
        """Of all stages."""
        return self.invert_nfe + self.reconstruct_nfe + self.edit_nfe


def make_plan(
    engine: InversionEngine,
    clip: Clip,
    requests: Sequence[EditRequest],
    outputs: Outputs,
    *,
    batch_prompts: bool,
    num_windows: int,
) -> ClipPlan:
    """Plan the work on a clip.

    There is an inversion where it is what is wanted (a clip without prompts, a reconstruction, a trajectory to save),
    and where the editor reads more of it than the clean latents.

    Args:
        engine: The loaded model.
        clip: The clip.
        requests: Its edits.
        outputs: What is made beside the edits.
        batch_prompts: Whether all edits are made in one pass.
        num_windows: How many windows a pass over the clip takes.

    Raises:
        ValueError: A request without something that the editor needs.
    """
    # Here it only counts whether there is a mask; it comes to the latents' size once they are there.
    masked = [replace(request, mask=clip.mask) for request in requests]
    needs = [engine.editor.needs(request, engine.schedule, engine.inverter) for request in masked]
    inverts = not requests or outputs.reconstruct or outputs.save_trajectory or "levels" in needs
    warnings = _find_ignored(engine, clip, requests, outputs, inverts) + _check_requests(engine, requests)
    stored = None
    if inverts and outputs.trajectory_dir is not None:
        path = Path(outputs.trajectory_dir, clip.id, "trajectory.safetensors")
        if path.is_file():
            stored = path
        else:
            warnings.append(f"trajectory_dir: {path} is not there, so the clip was inverted")
    num_steps = len(engine.schedule)
    edit_nfe = _count_edit_nfe(engine, masked, batch_prompts)
    if (
        requests
        and engine.step_cache
        and edit_nfe == _count_edit_nfe(replace(engine, step_cache=None), masked, batch_prompts)
    ):
        warnings.append(f"step_cache: skips no step of these edits; a higher one skips more, got {engine.step_cache:g}")
    return ClipPlan(
        inverts=inverts,
        stored=stored,
        invert_nfe=num_windows * engine.inverter.count_nfe(num_steps) if inverts and stored is None else 0,
        reconstruct_nfe=num_windows * num_steps if outputs.reconstruct else 0,
        edit_nfe=num_windows * edit_nfe,
        warnings=tuple(warnings),
    )


def _count_edit_nfe(engine: InversionEngine, requests: Sequence[EditRequest], batch_prompts: bool) -> int:
    """Return the NFE of all edits in one window."""
    if not requests:
        return 0
    sources = {request.source_prompt for request in requests}
    # Which steps are skipped, and what edits of several descriptions share, depends on more than an editor can say.
    if engine.step_cache is not None or len(sources) > 1:
        return count_edit_nfe(engine, requests, batch_prompts)
    editor, count = engine.editor, len(requests)
    together = count if batch_prompts else 1
    shared = editor.context_nfe  # by all passes, though each pass counts it
    nfe = shared + count // together * (editor.count_nfe(requests[0], engine.schedule, together) - shared)
    return nfe + (count * count_probe_nfe(engine.schedule) if editor.finds_mask(requests[0]) else 0)


def _find_ignored(
    engine: InversionEngine, clip: Clip, requests: Sequence[EditRequest], outputs: Outputs, inverts: bool
) -> list[str]:
    """Return a warning for each thing that was asked for and has no effect beside something else."""
    ignored = []
    if requests and clip.negative_prompt and requests[0].guidance_scale == 1.0:
        ignored.append("negative_prompt: has no effect at a guidance_scale of 1, which turns guidance off")
    if requests and clip.mask is not None and engine.editor.velocity_mask is not None:
        ignored.append("velocity_mask: has no effect on a clip that brings a mask")
    masked = clip.mask is not None or engine.editor.velocity_mask is not None
    if requests and engine.editor.splits_tokens and not masked:
        ignored.append("outside: has no effect on a clip without a mask")
    if not requests and clip.first_frame is not None:
        ignored.append("first_frame: has no effect on a clip without prompts")
    if not requests and engine.edit_denoiser is not engine.denoiser:
        ignored.append("precision: has no effect on a clip without prompts, unless with quantize_inversion")
    if not requests and engine.step_cache is not None:
        ignored.append("step_cache: has no effect on a clip without prompts")
    given = {"mask": clip.mask is not None, "prompt": bool(requests or clip.source_prompt)}
    for name in outputs.metrics:
        lacks = [need for need in MEASURES[name].needs if not given.get(need, True)]
        ignored += [f"metrics: {name} has no effect on a clip without a {need}" for need in lacks]
    if not inverts:
        quantizes = engine.edit_denoiser is engine.denoiser and isinstance(engine.denoiser.network, QuantizedNetwork)
        for_it = {"trajectory_dir": outputs.trajectory_dir is not None, "quantize_inversion": quantizes}
        why = f"has no effect where no inversion is made; {type(engine.editor).__name__} reads none here"
        ignored += [f"{name}: {why}" for name, given in for_it.items() if given]
    return [*ignored, *find_unread(engine)] if requests else ignored


def _check_requests(engine: InversionEngine, requests: Sequence[EditRequest]) -> list[str]:
    """Return the editor's warnings about the requests, each once."""
    prompt = engine.inversion_prompt or ""  # without one the source prompt, whose lack stops the clip
    found = [w for request in requests for w in engine.editor.check_request(request, engine.schedule, prompt)]
    return list(dict.fromkeys(found))
