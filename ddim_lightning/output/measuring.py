"""Pairs of videos are measured one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from ddim_lightning.metrics.latents import compare_files
from ddim_lightning.metrics.measurer import Measurer, load_measurer
from ddim_lightning.metrics.measures import DEFAULT, LATENTS, MEASURES, Networks
from ddim_lightning.output.comparison import Comparison
from ddim_lightning.output.measured import Measured
from ddim_lightning.output.pair_frames import FrameRule, read_pieces
from ddim_lightning.output.pairs import RECONSTRUCTION, Pair


def load_measures(comparison: Comparison, networks: Networks, pairs: Sequence[Pair]) -> Measurer:
    """Load the measures that are asked for, or by default all that might be made of these pairs.

    Args:
        comparison: What is asked for, and where it is measured.
        networks: Where networks lie.
        pairs: What is compared.

    Raises:
        ValueError: A device that is not here.
    """
    names = [name for name in comparison.metrics or DEFAULT if name != LATENTS]
    if not comparison.metrics and not any(pair.prompt for pair in pairs):
        names = [name for name in names if "prompt" not in MEASURES[name].needs]
    device = comparison.accelerator.replace("gpu", "cuda")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        got = f"{comparison.accelerator!r}: {str(error).partition(chr(10))[0]}"
        raise ValueError(f"accelerator: must be one that is here, got {got}") from error
    measurer = load_measurer(names, networks, device)
    if LATENTS in comparison.metrics and not any(pair.latents for pair in pairs):
        rule = "must lie beside both videos as NAME.safetensors, or be the trajectories of two runs"
        measurer = replace(measurer, missing={**measurer.missing, LATENTS: f"latents: {rule}, got none"})
    return measurer


def measure_pair(pair: Pair, measurer: Measurer, comparison: Comparison) -> Measured:
    """Measure a pair; what cannot be read or measured is told in its problems, and costs nothing else.

    Args:
        pair: What is compared.
        measurer: What measures frames.
        comparison: Which frames, and what was asked for by name.
    """
    numbers: dict[str, float] = {}
    problems: list[str] = []
    notes: list[str] = []
    try:
        if pair.video is not None and pair.reference is not None and measurer.names:
            rule = FrameRule(comparison.num_frames, comparison.stride, comparison.fit)
            clip = measurer.start(pair.prompt)
            has_inside = pair.mask is None
            for piece in read_pieces(pair.reference, pair.video, pair.mask, rule):
                clip.add(piece)
                has_inside = has_inside or (piece.mask is not None and bool(piece.mask.any()))
            numbers, problems, notes = clip.read(), clip.problems, clip.notes
            if not has_inside:
                notes.append(f"masks: nothing of {pair.mask} is white (luma above half), so that all is outside")
            failed = {name for sentence in problems for name in sentence.partition(":")[0].split(", ")}
            problems += _find_unmeasured(
                pair, comparison, [name for name in measurer.names if name not in failed], numbers
            )
        if pair.latents is not None and (not comparison.metrics or LATENTS in comparison.metrics):
            numbers |= compare_files(*pair.latents)
    except (OSError, ValueError) as error:
        problems.append(" ".join(str(error).split()))
    return Measured(pair, numbers, problems, notes)


def _find_unmeasured(
    pair: Pair, comparison: Comparison, names: Sequence[str], numbers: Mapping[str, float]
) -> list[str]:
    """Say which masks and prompts are not there, and why what was asked for by name has no number."""
    lacks = {"mask"} if pair.mask is None else set()
    if pair.prompt is None and not pair.name.endswith(RECONSTRUCTION):  # whose prompt a run need not know
        lacks.add("prompt")
    given = {"mask": comparison.masks, "prompt": comparison.prompts}
    found = [f"{need}s: none is there by this name" for need in sorted(lacks) if given[need] is not None]
    for name in names if comparison.metrics else ():
        if not set(MEASURES[name].numbers) & set(numbers):
            needs = set(MEASURES[name].needs) & {"mask", "prompt"}
            if missing := sorted(needs & lacks):
                found += [f"{name}: {need}s must be given" for need in missing if given[need] is None]
            elif "prompt" not in needs or pair.prompt is not None:
                found.append(f"{name}: says nothing of these frames")
    return found
