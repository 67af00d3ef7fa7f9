"""The scan says which layers carry the source's structure: each alone attends to it, and the edit is compared.

An edit in which no layer attends to the source is the zero of the scale, one in which all do its other end. In between,
layer by layer: how much closer to the source does the edit come when this layer, and no other, attends to it?

What the numbers say: which layers pull the edit towards the source, in structure (SSIM of the luma), in pixels (PSNR)
and in latents. What they do not say: whether the edit still happened. A layer that copies the source and drops the edit
scores best in all three, and an edit that has to move something loses score by being right. Only where the truth is
known, in the world of shapes, the two are told apart: there a classifier reads back the words that the edit changes,
and the words that it should keep.

Compare Avrahami et al. 2024, "Stable Flow: Vital layers for training-free image editing", arXiv:2411.14430: there those
layers are vital whose removal, one at a time, changes a generated image most; here one layer at a time is injected.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddim_lightning.data.video import read_clip
from ddim_lightning.diffusion.editors import KVInjection
from ddim_lightning.engine.engine import InversionEngine
from ddim_lightning.engine.parts import describe_part
from ddim_lightning.metrics.functional import psnr, ssim
from ddim_lightning.models.vae import quantize
from ddim_lightning.tiny.shapes import NUM_FRAMES, SIZE, WORDS, Scene
from ddim_lightning.tiny.shapes_classifier import classify
from ddim_lightning.tiny.shapes_datamodule import ShapesDataModule
from ddim_lightning.types import Clip, EditRequest, Frames, Latents, Video

from .arguments import read_count
from .bars import Panel, write_bars
from .environment import read_block
from .loading import load_engine
from .output import tell_origin, write_files

SCHEMA = "ddim-lightning/layer-scan/2"
NONE, ALL = "none", "all"
"""What stands in place of a layer's number where no layer attends to the source, and where all do."""

MEASURES = {"ssim": 1, "psnr_db": 1, "latent_error": -1, "edit_right": 1, "kept_right": 1}
"""The numbers of a `Score`, and whether more (1) or less (-1) of one is better."""

EDITS = ("color", "background")
"""What the edits of clips of shapes change: a new shape or direction would change the structure itself."""

_TITLES = {
    "ssim": "SSIM",
    "psnr_db": "PSNR in dB",
    "latent_error": "latent error",
    "edit_right": "new words right",
    "kept_right": "old words right",
}

Grade = Callable[[int, Frames], tuple[float, float]]
"""(position of the prompt, edited frames) -> ``edit_right`` and ``kept_right`` of a `Score`."""


@dataclass(frozen=True)
class Score:
    """A `Score` says how close one edit came to its source.

    Args:
        clip: The clip's id.
        prompt: The edit's prompt.
        layers: The layer that attended to the source, or `NONE` or `ALL`.
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


def make_grader(source: Scene, wanted: Sequence[Scene]) -> Grade:
    """Make a function that grades the edits of a clip of shapes by its words.

    Args:
        source: The scene of the clip.
        wanted: The edited scene of each prompt; one to three of the four words differ from the source's.
    """

    def grade(position: int, frames: Frames) -> tuple[float, float]:
        seen, truth = classify(frames), wanted[position]
        changed = [name for name in WORDS if getattr(source, name) != getattr(truth, name)]
        right = {name: getattr(seen, name) == getattr(truth, name) for name in WORDS}
        kept = [right[name] for name in WORDS if name not in changed]
        return sum(right[name] for name in changed) / len(changed), sum(kept) / len(kept)

    return grade


@torch.inference_mode()
def scan_clip(engine: InversionEngine, clip: Clip, guidance_scale: float, *, grade: Grade | None = None) -> list[Score]:
    """Invert a clip once, and edit it from there under each of its prompts: with no layer, each alone, and all.

    Args:
        engine: The loaded model; its own editor is not used.
        clip: The clip, with at least one prompt.
        guidance_scale: Guidance scale of the edits; 1 turns guidance off.
        grade: Says whether an edit is right, where the truth is known.

    Returns:
        The scores, prompt by prompt in the order of `make_editors`.

    Raises:
        ValueError: An edit that is not finite.
    """
    source = engine.encode(clip.frames.to(engine.device))
    inversion, reference = engine.invert(source), engine.decode(source)
    scores: list[Score] = []
    for position, prompt in enumerate(clip.prompts):
        request = EditRequest(prompt, clip.negative_prompt, clip.source_prompt, guidance_scale)
        for layers, editor in make_editors(engine.denoiser.num_layers).items():
            edited = replace(engine, editor=editor).edit(inversion, request)
            if not edited.isfinite().all():
                raise ValueError(f"edit: values must stay finite, got infinity or NaN with {describe_layers(layers)}")
            video = engine.decode(edited)
            right = (None, None) if grade is None else grade(position, quantize(video[0]))
            scores.append(Score(clip.id, prompt, layers, *_compare(video, reference, edited, source), *right))
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
    """Say which layers attend to the source: ``layer 3``, ``no layer`` or ``all layers``."""
    return {NONE: "no layer", ALL: "all layers"}.get(layers, f"layer {layers}")


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse arguments that do not belong together.

    Raises:
        ValueError: A video without a prompt, a text without a video, or a scale out of its range.
    """
    texts = {"prompt": args.prompt, "source_prompt": args.source_prompt}
    for name, text in texts.items():
        if args.video is None and text is not None:
            raise ValueError(f"{name}: needs a video, got {text!r}")
    if args.video is not None and not (args.prompt and all(prompt.strip() for prompt in args.prompt)):
        raise ValueError(f"prompt: must be given with a video, and not be blank, got {args.prompt!r}")
    if not (math.isfinite(args.guidance_scale) and args.guidance_scale >= 0):
        raise ValueError(f"guidance_scale: must be finite and not negative, got {args.guidance_scale}")


def make_clips(args: argparse.Namespace, engine: InversionEngine) -> list[tuple[Clip, Grade | None]]:
    """Make what is scanned: one video, or clips of shapes with what grades their edits.

    Raises:
        ValueError: A video that the model cannot take, or a model that does not make clips of shapes.
        OSError: The video cannot be read.
    """
    limits = engine.components.limits
    if args.video is None:
        if (limits.num_frames, limits.height, limits.width) != (NUM_FRAMES, SIZE, SIZE):
            raise ValueError(f"video: must be given for a model that is not of the tiny one's size, got {args.model!r}")
        data = ShapesDataModule(predict_clips=args.clips, edits=EDITS)
        grades = [make_grader(*scenes) for scenes in data.predict_scenes()]
        return list(zip(data.predict_dataloader(), grades, strict=True))
    size = {"height": limits.height, "width": limits.width}
    frames, fps, _ = read_clip(args.video, limits=limits, start=0, num_frames=None, stride=1, fit="crop", **size)
    return [(Clip(Path(args.video).stem, frames, fps, tuple(args.prompt), args.source_prompt), None)]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Scan every clip and return the result, JSON-ready."""
    engine = load_engine(args.model, args.steps)
    scores: list[Score] = []
    clips = make_clips(args, engine)
    for clip, grade in clips:
        scores += scan_clip(engine, clip, args.guidance_scale, grade=grade)
        print(f"{clip.id}: {len(scores)} edits so far", flush=True)
        for sentence in engine.prompts.get_warnings([*clip.prompts, clip.source_prompt or ""]):
            print(f"warning: {clip.id}: {sentence}", file=sys.stderr)
    rows = summarize(scores)
    return {
        "schema": SCHEMA,
        "environment": read_block(args.commit),
        "settings": {
            "model": args.model,
            "steps": args.steps,
            "guidance_scale": args.guidance_scale,
            "inverter": describe_part(engine.inverter),
            "video": None if args.video is None else Path(args.video).name,
            "clips": len(clips),
        },
        "nfe": engine.nfe,
        "ranking": rank_layers(rows),
        "layers": rows,
        "scores": [asdict(score) for score in scores],
    }


def write_plots(folder: Path, result: Mapping[str, Any]) -> None:
    """Draw what each layer does as bars."""
    none, *shown = result["layers"]
    panels = []
    for measure in MEASURES:
        if none[measure] is None:
            continue
        # Shares of right words speak for themselves; the others are compared with the edit in which no layer reads.
        share = measure.endswith("_right")
        panels.append(
            Panel(
                _TITLES[measure] + (", share; dashed: with no layer" if share else ": closer to the source by"),
                [row[measure]["mean" if share else "gain"] for row in shown],
                [None if share else row[measure]["gain_spread"] for row in shown],
                baseline=none[measure]["mean"] if share else None,
                limits=(0.0, 1.0) if share else None,
            )
        )
    bars = (
        "bars: mean over clips; lines: standard deviation"
        if result["settings"]["clips"] > 1
        else "one clip, hence no spread"
    )
    subtitle = f"{describe_settings(result)}\n{bars}"
    names, title = [row["layers"] for row in shown], "Layer scan: one layer at a time reads the source"
    write_bars(folder / "layers.png", names, panels, title=title, subtitle=subtitle, axis="layer")


def make_markdown(result: Mapping[str, Any]) -> str:
    """Write the report that a person reads."""
    explained = (
        f"{describe_settings(result)}, {result['nfe']} NFE. In each row that layer alone attends to the keys and "
        "values of the source. SSIM of the luma, PSNR and the relative L2 distance of the latents compare the edit "
        "with the source's VAE round trip; *closer* is how much nearer it is than with no layer, mean and standard "
        "deviation over clips. A layer that copies the source and drops the edit is the closest of all: read the "
        "numbers beside the share of words that a classifier finds right, the new ones, which the edit changes, and "
        "the old ones, which it keeps."
    )
    lines = [
        "# Layer scan",
        "",
        tell_origin(result),
        "",
        explained,
        "",
        _make_table(result["layers"]),
        "",
        f"Layers by their gain in SSIM: {', '.join(map(str, result['ranking']))}",
        "",
        "![The same as bars](layers.png)",
    ]
    return "\n".join(lines) + "\n"


def _make_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table, padded so that it can be read as it is."""
    measures = [measure for measure in MEASURES if rows[0][measure] is not None]
    lines = [["layer"]]
    for measure in measures:
        lines[0] += [_TITLES[measure]] if measure.endswith("_right") else [_TITLES[measure], "closer"]
    for row in rows:
        cells = [row["layers"]]
        for measure in measures:
            cells += _format_cells(measure, row[measure], is_zero=row["layers"] == NONE)
        lines.append(cells)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    padded = [
        "| " + " | ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    return "\n".join([padded[0], "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|", *padded[1:]])


def _format_cells(measure: str, numbers: Mapping[str, float | None], *, is_zero: bool) -> list[str]:
    if measure.endswith("_right"):
        return [f"{numbers['mean']:.0%}"]
    digits = 2 if measure == "psnr_db" else 3
    spread = numbers["gain_spread"]
    gain = f"{numbers['gain']:+.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")
    return [f"{numbers['mean']:.{digits}f}", "" if is_zero else gain]


def describe_settings(result: Mapping[str, Any]) -> str:
    """Return what was scanned, in a few words."""
    settings = result["settings"]
    clips = "clips of shapes" if settings["clips"] > 1 else "clip of shapes"
    what = f"{settings['clips']} {clips}" if settings["video"] is None else settings["video"]
    return f"{settings['model']}, {settings['steps']} steps, guidance {settings['guidance_scale']:g}, {what}"


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.layer_scan", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--model", default="tiny", help="'tiny' (bundled) or a folder (tiny)")
    parser.add_argument("--video", help="a video to scan instead of clips of shapes")
    parser.add_argument("--prompt", action="append", help="of the video's edit; repeat it for more edits")
    parser.add_argument("--source-prompt", help="what the video shows")
    parser.add_argument("--clips", type=read_count, default=8, help="clips of shapes (8)")
    parser.add_argument("--steps", type=read_count, default=25, help="steps of each direction (25)")
    parser.add_argument("--guidance-scale", type=float, default=3.0, help="of the edits (3)")
    parser.add_argument("--threads", type=read_count, default=1, help="CPU threads (1)")
    parser.add_argument("--commit", help="of a copy that is no checkout; with -dirty where files were changed")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for JSON, Markdown and the plot")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Scan, print the report and write the files."""
    args = make_parser().parse_args(argv)
    check_arguments(args)
    torch.set_num_threads(args.threads)
    result = measure(args)
    report = make_markdown(result)
    print(report)
    write_files(args.output, result, report, write_plots)
    return 0


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


if __name__ == "__main__":
    raise SystemExit(main())
