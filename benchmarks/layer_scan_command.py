"""The body of ``layer_scan``: scan the layers of a model, and write what was found as JSON, a table and a plot."""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning import LightningDataModule

from ddim_lightning.tiny.shapes import NUM_FRAMES, SIZE, Scene
from ddim_lightning.diffusion.editors import KVInjection
from ddim_lightning.module import DDIMInversionModule
from ddim_lightning.report.environment import read_environment
from benchmarks.bars import Panel, write_bars
from ddim_lightning.cli.running import make_video_data, predict
from ddim_lightning.tiny.shapes_datamodule import ShapesDataModule
from ddim_lightning.types import UnreadableClip, Clip
from benchmarks.layer_scan import MEASURES, NONE, Score, make_judge, rank_layers, scan_clip, summarize
from ddim_lightning.writer import make_output_dir

SCHEMA = "ddim-lightning/layer_scan/1"
_EDITS = ("color", "background")  # of the shapes: a new shape or direction would change the structure itself
_DONE = 0

_TITLES = {
    "ssim": "SSIM",
    "psnr_db": "PSNR in dB",
    "latent_error": "latent error",
    "edit_right": "new words right",
    "kept_right": "old words right",
}


def layer_scan(args: argparse.Namespace) -> int:
    """Scan the layers of a model on one video or on clips of moving shapes.

    Args:
        args: What `cli.make_parser` reads for ``layer_scan``.

    Returns:
        The exit status.

    Raises:
        ValueError: The video or a prompt will not do, the model does not make clips of shapes, or an argument is out of
            its range.
        OSError: The video cannot be read, or the output folder not be written to.
    """
    settings = {"num_inference_steps": args.num_inference_steps, "guidance_scale": args.guidance_scale}
    module = _ScanModule(args.model, editor=KVInjection(), on_error="raise", **settings)
    data = _make_shapes_data(args, module) if args.video is None else make_video_data(args, module)
    folder = make_output_dir(args.output)
    scans: list[list[Score]] = predict(
        module, data, accelerator=args.accelerator, quiet=args.quiet, as_json=args.json, return_predictions=True
    )
    scores = [score for scan in scans for score in scan]
    rows = summarize(scores)
    report = {
        "schema": SCHEMA,
        "settings": module.describe() | {"video": args.video, "clips": len(scans)},
        "environment": read_environment(),
        "calls": module.engine.denoiser.rows,
        "ranking": rank_layers(rows),
        "layers": rows,
        "scores": [asdict(score) for score in scores],
    }
    files = _write_report(folder, report)
    if args.json:
        print(_to_json(report | {"files": [str(file) for file in files]}))
    elif not args.quiet:
        print(_make_table(rows), _tell_ranking(report), "", *files, sep="\n")
    return _DONE


class _ScanModule(DDIMInversionModule):
    """Scans each clip where its parent would reconstruct and edit it."""

    def __init__(self, model: str, **settings: Any) -> None:
        super().__init__(model, **settings)
        self.scenes: Mapping[str, tuple[Scene, Sequence[Scene]]] = {}

    def predict_step(self, batch: Clip | UnreadableClip, batch_idx: int) -> list[Score]:  # type: ignore[override]
        """Scan one clip."""
        if isinstance(batch, UnreadableClip):
            raise ValueError(batch.reason)
        texts = [*batch.prompts, batch.negative_prompt, batch.source_prompt or ""]
        for sentence in [*batch.warnings, *self.engine.prompts.get_warnings(texts)]:
            warnings.warn(f"{batch.id}: {sentence}", stacklevel=1)
        judge = make_judge(*self.scenes[batch.id]) if batch.id in self.scenes else None
        return scan_clip(self.engine, batch, self.guidance_scale, judge=judge, on_progress=self._report)

    def describe(self) -> dict[str, Any]:
        """Return the settings that a scan depends on, JSON-ready."""
        names = ("model", "num_inference_steps", "timestep_spacing", "guidance_scale", "inverter", "editor")
        settings = self._get_settings()
        return {name: settings[name] for name in (*names, "inversion_prompt", "dtype", "device")}


def _make_shapes_data(args: argparse.Namespace, module: _ScanModule) -> LightningDataModule:
    if args.clips < 1:
        raise ValueError(f"clips: must be at least 1, got {args.clips}")
    limits = module.video_limits
    size = limits.num_frames, limits.height, limits.width
    if size != (NUM_FRAMES, SIZE, SIZE):
        raise ValueError(f"video: must be given for a model that is not of the tiny one's size, got {args.model!r}")
    data = ShapesDataModule(predict_clips=args.clips, edits=_EDITS)
    ids = [clip.id for clip in data.predict_dataloader()]
    module.scenes = dict(zip(ids, data.predict_scenes(), strict=True))
    return data


def _write_report(folder: Path, report: Mapping[str, Any]) -> list[Path]:
    """Write the JSON, the plot where there is matplotlib, and the table; the files, in this order."""
    files = [folder / "layer_scan.json", folder / "layer_scan.png", folder / "layer_scan.md"]
    files[0].write_text(_to_json(report, indent=2) + "\n", encoding="utf-8")
    try:
        _write_plot(files[1], report)
    except ImportError:
        print("warning: no plot without matplotlib: pip install 'ddim-lightning[plots]'", file=sys.stderr)
        files[1].unlink(missing_ok=True)  # of another run
        del files[1]
    files[-1].write_text(_make_markdown(report, plot=len(files) == 3), encoding="utf-8")
    return files


def _write_plot(path: Path, report: Mapping[str, Any]) -> None:
    none, *shown = report["layers"]
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
        if report["settings"]["clips"] > 1
        else "one clip, hence no spread"
    )
    subtitle = f"{_tell_settings(report)}\n{bars}"
    names, title = [row["layers"] for row in shown], "Layer scan: one layer at a time reads the source"
    write_bars(path, names, panels, title=title, subtitle=subtitle, axis="layer")


def _make_markdown(report: Mapping[str, Any], *, plot: bool) -> str:
    lines = [
        "# Layer scan scan",
        "",
        f"{_tell_settings(report)}, {report['calls']} network calls. In each row that layer alone reads the keys",
        "and values of the source. SSIM of the luma, PSNR and the relative L2 distance of the latents compare the edit",
        "with the source's VAE round trip; *closer* is how much nearer it is than with no layer, mean and standard",
        "deviation over clips. A layer that copies the source and drops the edit is the closest of all: read the",
        "numbers beside the edits, or, for clips of shapes, beside the share of words that a classifier finds right:",
        "the new ones, which the edit changes, and the old ones, which it keeps.",
        "",
        _make_table(report["layers"]),
        "",
        _tell_ranking(report),
        *(["", "![The same as bars](layer_scan.png)"] if plot else []),
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


def _tell_settings(report: Mapping[str, Any]) -> str:
    settings = report["settings"]
    clips = "clips of shapes" if settings["clips"] > 1 else "clip of shapes"
    what = f"{settings['clips']} {clips}" if settings["video"] is None else Path(settings["video"]).name
    steps = f"{settings['num_inference_steps']} steps, guidance {settings['guidance_scale']:g}"
    return f"{settings['model']}, {steps}, {what}"


def _tell_ranking(report: Mapping[str, Any]) -> str:
    return f"Layers by their gain in SSIM: {', '.join(str(layer) for layer in report['ranking'])}"


def _to_json(report: Mapping[str, Any], indent: int | None = None) -> str:
    return json.dumps(_without_infinity(report), indent=indent, ensure_ascii=False, allow_nan=False)


def _without_infinity(value: Any) -> Any:
    """Replace what JSON cannot say, the PSNR of equal videos for one, by ``None``."""
    if isinstance(value, Mapping):
        return {name: _without_infinity(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_infinity(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
