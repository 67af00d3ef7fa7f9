"""Which layers carry the source's structure: each alone reads the source, and the edit is compared with the source.

An edit in which no layer reads the source is the zero of the scale, one in which all do its other end. In between,
layer by layer: how much closer to the source does the edit come when this layer, and no other, reads it?

What the numbers say: which layers pull the edit towards the source, in structure (SSIM of the luma), in pixels (PSNR)
and in latents. What they do not say: whether the edit still happened. A layer that copies the source and drops the edit
scores best in all three, and an edit that has to move something loses score by being right. Only where the truth is
known, in the world of shapes, the two are told apart: there a classifier reads back the words that the edit changes,
and the words that it should keep.

Compare Avrahami et al. 2024, "Stable Flow: Vital layers for training-free image editing", arXiv:2411.14430: there those
layers are vital whose removal, one at a time, changes a generated image most; here one layer at a time is injected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddim_lightning.tiny.shapes import WORDS, Scene
from ddim_lightning.tiny.shapes_classifier import classify
from ddim_lightning.diffusion.editors import KVInjection
from ddim_lightning.diffusion.sampling import edit
from ddim_lightning.engine.engine import InversionEngine
from ddim_lightning.metrics.functional import psnr, ssim
from ddim_lightning.types import Clip, EditRequest, Frames, Latents, Progress, Stage, Video

NONE, ALL = "none", "all"
"""What stands in place of a layer's number where no layer reads, and where all do."""

MEASURES = {"ssim": 1, "psnr_db": 1, "latent_error": -1, "edit_right": 1, "kept_right": 1}
"""The numbers of a `Score`, and whether more (1) or less (-1) of one is better."""

Judge = Callable[[int, Frames], tuple[float, float]]
"""(position of the prompt, edited frames) -> ``edit_right`` and ``kept_right`` of a `Score`."""


@dataclass
class Score:
    """How close one edit came to its source; not frozen, because Lightning rebuilds the dataclasses of a prediction.

    Args:
        clip: The clip's id.
        prompt: The edit's prompt.
        layers: The layer that read the source, or `NONE` or `ALL`.
        ssim: Structural similarity of the luma to the source's VAE round trip, -1 .. 1.
        psnr_db: PSNR against the source's VAE round trip in dB.
        latent_error: Distance of the edit's latents from the source's, relative to the source's norm.
        edit_right: Share of the words changed by the edit that a classifier sees in it, 0 .. 1; ``None`` without truth.
        kept_right: Likewise of the words that the edit should keep.
    """

    clip: str
    prompt: str
    layers: str
    ssim: float
    psnr_db: float
    latent_error: float
    edit_right: float | None = None
    kept_right: float | None = None


def make_editors(num_layers: int) -> dict[str, KVInjection]:
    """Make the editors of a scan by their `Score.layers`: none, each layer alone, all."""
    alone = {str(k): KVInjection(layers=(k, k + 1)) for k in range(num_layers)}
    return {NONE: KVInjection(layers=(0, 0)), **alone, ALL: KVInjection(layers=(0, num_layers))}


def make_judge(source: Scene, wanted: Sequence[Scene]) -> Judge:
    """Make the judge of a clip of the world of shapes.

    Args:
        source: The scene of the clip.
        wanted: The edited scene of each prompt; one to three of the four words differ from the source's.
    """

    def judge(position: int, frames: Frames) -> tuple[float, float]:
        seen, truth = classify(frames), wanted[position]
        changed = [name for name in WORDS if getattr(source, name) != getattr(truth, name)]
        right = {name: getattr(seen, name) == getattr(truth, name) for name in WORDS}
        kept = [right[name] for name in WORDS if name not in changed]
        return sum(right[name] for name in changed) / len(changed), sum(kept) / len(kept)

    return judge


@torch.no_grad()
def scan_clip(
    engine: InversionEngine,
    clip: Clip,
    guidance_scale: float,
    *,
    judge: Judge | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> list[Score]:
    """Invert a clip once, and edit it from there under each of its prompts: with no layer, each alone, and all.

    Args:
        engine: The loaded model; its own editor is not used.
        clip: The clip, with at least one prompt.
        guidance_scale: Of the edits; 1 turns guidance off.
        judge: Tells whether an edit is right, where the truth is known.
        on_progress: Called when an inversion or an edit starts and after each of its steps.

    Returns:
        The scores, prompt by prompt in the order of `make_editors`.

    Raises:
        ValueError: An edit that is not finite.
    """
    editors, num_steps = make_editors(engine.denoiser.num_layers), len(engine.schedule)
    texts = clip.negative_prompt, clip.source_prompt
    requests = [EditRequest(prompt, *texts, guidance_scale) for prompt in clip.prompts]
    invert_rows = engine.inverter.count_nfe(num_steps)
    edit_rows = [editor.count_nfe(request, engine.schedule) for request in requests for editor in editors.values()]
    make_tick = _TickMaker(clip.id, num_steps, invert_rows + sum(edit_rows), on_progress)
    source = engine.encode(clip.frames.to(engine.device))
    inversion = engine.invert(source, callback=make_tick("invert", "invert", invert_rows))
    reference = engine.decode(source)
    scores: list[Score] = []
    for position, request in enumerate(requests):
        for k, (layers, editor) in enumerate(editors.items(), 1):
            label = f"edit {position + 1}/{len(requests)}, {describe_layers(layers)} ({k}/{len(editors)})"
            tick = make_tick("edit", label, edit_rows[len(scores)])
            edited = edit(engine.denoiser, inversion, editor, request, callback=tick)
            if not edited.isfinite().all():
                raise ValueError(f"edit: values must stay finite, got infinity or NaN with {describe_layers(layers)}")
            video = engine.decode(edited)
            right = (None, None) if judge is None else judge(position, _quantize(video))
            scores.append(Score(clip.id, request.prompt, layers, *_compare(video, reference, edited, source), *right))
    return scores


def summarize(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Average the scores over clips, a clip's prompts first; a row each for none, each layer, and all.

    A row holds ``layers`` and for every measure ``mean``, ``spread`` (standard deviation over clips, of n - 1),
    ``gain`` (the mean of how much better it is than with no layer, clip by clip) and ``gain_spread``; a spread is
    ``None`` with a single clip, a measure ``None`` where nothing is known of it.
    """
    rows = []
    for layers in dict.fromkeys(score.layers for score in scores):
        row: dict[str, Any] = {"layers": layers}
        for measure, better in MEASURES.items():
            values, zeros = (_collect(scores, which, measure) for which in (layers, NONE))
            if values is None or zeros is None:
                row[measure] = None
                continue
            mean, spread = _average(values)
            gain, gain_spread = _average(better * (values - zeros))
            row[measure] = {"mean": mean, "spread": spread, "gain": gain, "gain_spread": gain_spread}
        rows.append(row)
    return rows


def rank_layers(rows: Sequence[dict[str, Any]]) -> list[int]:
    """List the layers from the one whose gain in SSIM is largest to the one whose is smallest."""
    gains = {int(row["layers"]): row["ssim"]["gain"] for row in rows if row["layers"] not in (NONE, ALL)}
    return sorted(gains, key=lambda layer: -gains[layer])


def describe_layers(layers: str) -> str:
    """Say which layers read: ``layer 3``, ``no layer`` or ``all layers``."""
    return {NONE: "no layer", ALL: "all layers"}.get(layers, f"layer {layers}")


class _TickMaker:
    """Makes the callbacks of the stages of a clip, and keeps count of the rows that are left."""

    def __init__(self, clip_id: str, num_steps: int, rows: int, on_progress: Callable[[Progress], None]) -> None:
        self.clip_id, self.num_steps, self.rows_left, self.on_progress = clip_id, num_steps, rows, on_progress

    def __call__(self, stage: Stage, label: str, rows: int) -> Callable[..., None]:
        self.rows_left -= rows
        done, rows_left, per_step = -1, self.rows_left, rows / self.num_steps

        def tick(*_: object) -> None:
            nonlocal done
            done += 1
            self.on_progress(Progress(self.clip_id, stage, label, done, self.num_steps, per_step, rows_left))

        tick()
        return tick


def _quantize(video: Video) -> Frames:
    return (video[0] * 255.0).round().to(torch.uint8).cpu()


def _compare(video: Video, reference: Video, latents: Latents, source: Latents) -> tuple[float, float, float]:
    error = float((latents - source).norm() / source.norm())
    return ssim(_luma(video[0]), _luma(reference[0])), psnr(video[0], reference[0]), error


def _luma(frames: Tensor) -> Tensor:
    """Weigh RGB (f, 3, h, w) to luma (f, 1, h, w), after ITU-R BT.601."""
    weights = frames.new_tensor([0.299, 0.587, 0.114])
    return (frames * weights[:, None, None]).sum(1, keepdim=True)


def _collect(scores: Sequence[Score], layers: str, measure: str) -> Tensor | None:
    """Collect a measure, (clips,) float64, each averaged over the clip's prompts; ``None`` where it is not known."""
    chosen = [score for score in scores if score.layers == layers]
    values: dict[str, list[float]] = {score.clip: [] for score in chosen}
    for score in chosen:
        if (value := getattr(score, measure)) is None:
            return None
        values[score.clip].append(value)
    return torch.tensor([sum(of_clip) / len(of_clip) for of_clip in values.values()], dtype=torch.float64)


def _average(values: Tensor) -> tuple[float, float | None]:
    return float(values.mean()), float(values.std()) if len(values) > 1 else None
