"""The benchmark says what the bundled adapter keeps where nothing is to change, and what it does with unknown words.

An edit of a clip to its own caption should return it: it is compared with the round trip through the VAE. Edits to a
color that no training had, and to pairs of color and shape that none had, are compared with their rendered truth.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ddim_lightning import DDIMInversionModule, InContextEdit, Inversion
from ddim_lightning.data.streams import make_generator
from ddim_lightning.models.source import BUNDLED_ADAPTER
from ddim_lightning.runtime.allocator import keep_freed_memory
from ddim_lightning.tiny.shapes import HELD_OUT_COLOR, HELD_OUT_PAIRS, render, sample_scene
from ddim_lightning.types import EditRequest, Latents

from .arguments import add_output, read_count
from .edit_quality import measure_video, sum_psnr
from .edit_report import make_table
from .edit_set import ShapesEdit, make_edit_set
from .environment import read_block
from .output import tell_origin, write_files

SCHEMA = "ddim-lightning/in-context/2"
RESIDUALS = (0.0, 0.5, 1.0)


def make_held_out(count: int) -> dict[str, list[ShapesEdit]]:
    """Make edits of trained scenes to what was kept out of all trainings."""
    scenes = [sample_scene(make_generator(20, "held out", k)) for k in range(count)]
    pairs = [HELD_OUT_PAIRS[k % len(HELD_OUT_PAIRS)] for k in range(count)]
    return {
        f"color {HELD_OUT_COLOR}": [
            ShapesEdit(f"color-{k:02}", "color", scene, replace(scene, color=HELD_OUT_COLOR))
            for k, scene in enumerate(scenes)
        ],
        "pairs of color and shape": [
            ShapesEdit(f"pair-{k:02}", "both", scene, replace(scene, color=color, shape=shape))
            for k, (scene, (color, shape)) in enumerate(zip(scenes, pairs, strict=True))
        ],
    }


def edit(module: DDIMInversionModule, latents: Latents, source: str, target: str, seed: int) -> Latents:
    """Edit clean latents by the module's editor."""
    engine = module.engine
    inversion = Inversion.of_clean(latents, engine.schedule, engine.inverter)
    request = EditRequest(target, source_prompt=source, guidance_scale=module.guidance_scale)
    return engine.edit(inversion, request, seed=seed)


@torch.inference_mode()
def measure_identity(module: DDIMInversionModule, edits: Sequence[ShapesEdit]) -> float:
    """Return the PSNR in dB of edits to the source's own caption against the VAE round trip, over all clips."""
    errors = []
    for one in edits:
        latents, seed = module.engine.encode(render(one.source)), make_generator(0, one.id, 0).initial_seed()
        copy = edit(module, latents, one.source.caption, one.source.caption, seed)
        errors.append((module.engine.decode(copy) - module.engine.decode(latents)).double().square().mean())
    error = float(torch.stack(errors).mean())
    return -10 * math.log10(max(error, 1e-12))


@torch.inference_mode()
def measure_edits(module: DDIMInversionModule, edits: Sequence[ShapesEdit]) -> dict[str, float]:
    """Return PSNR in dB by region, and the share of videos in which all changed words are right."""
    records = []
    for one in edits:
        latents, seed = module.engine.encode(render(one.source)), make_generator(0, one.id, 0).initial_seed()
        edited = edit(module, latents, one.source.caption, one.target.caption, seed)
        records.append(measure_video(module.engine.decode(edited), one))

    right = [
        all(record["seen"][word] == getattr(one.target, word) for word in one.changed)
        for record, one in zip(records, edits, strict=True)
    ]
    return {**sum_psnr(records), "right": sum(right) / len(right)}


def read_curve(metrics: Path) -> list[dict[str, float]]:
    """Read the validation loss of a training by step from what Lightning's CSVLogger wrote."""
    with metrics.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{"step": int(row["step"]) + 1, "val_loss": float(row["val/loss"])} for row in rows if row.get("val/loss")]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure all and return the result, JSON-ready."""
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    load, edits = partial(DDIMInversionModule.from_pretrained, "tiny", device="cpu", lora=BUNDLED_ADAPTER), args.edits
    identity = [
        {
            "identity_residual": residual,
            "psnr_db": measure_identity(
                load(editor=InContextEdit(identity_residual=residual)), make_edit_set("test", edits)
            ),
        }
        for residual in RESIDUALS
    ]
    module = load()
    held_out = [
        {"edits": name, "count": len(some), **measure_edits(module, some)}
        for name, some in make_held_out(max(1, edits // 4)).items()
    ]
    return {
        "schema": SCHEMA,
        "environment": read_block(args.commit),
        "settings": {
            "model": "tiny",
            "adapter": BUNDLED_ADAPTER,
            "steps": module.schedule.num_inference_steps,
            "guidance_scale": module.guidance_scale,
            "identity_residual": getattr(module.editor, "identity_residual", 0.0),
            "edits": edits,
        },
        "identity": identity,
        "held_out": held_out,
        "curve": [] if args.metrics is None else read_curve(args.metrics),
    }


def make_markdown(result: Mapping[str, Any]) -> str:
    """Write the report that a person reads."""
    settings = result["settings"]
    used = f"{settings['steps']} steps, guidance {settings['guidance_scale']:g}"
    identity = [(f"{row['identity_residual']:g}", f"{row['psnr_db']:.2f}") for row in result["identity"]]
    held_out = [
        (
            row["edits"],
            f"{row['count']}",
            *(f"{row[name]:.2f}" for name in ("whole", "inside", "outside")),
            f"{row['right']:.0%}",
        )
        for row in result["held_out"]
    ]
    compared = (
        f"{settings['edits']} sources of the test set; PSNR in dB against the round trip through the VAE, from one "
        "mean squared error. With the whole residual the source returns exactly."
    )
    unknown = (
        f"With a residual of {settings['identity_residual']:g}; PSNR in dB against the rendered truth; right: videos "
        "in which all changed words are."
    )
    lines = [
        "# The bundled adapter, where nothing is to change and where words are new",
        "",
        tell_origin(result),
        "",
        f"`{settings['adapter']}`, {used}. Edits to known words are in [edit-quality](../edit-quality/README.md).",
        "",
        "## Edits to the clip's own caption",
        "",
        compared,
        "",
        *make_table(("identity_residual", "PSNR (dB)"), identity),
        "",
        "## Edits to what no training had",
        "",
        unknown,
        "",
        *make_table(("edits", "count", "whole", "inside", "outside", "right"), held_out),
    ]
    if result["curve"]:
        curve = [(f"{row['step']:,}", f"{row['val_loss']:.4f}") for row in result["curve"]]
        lines += ["", "## Training", "", "Loss on 40 groups that are not trained on, by step:", ""]
        lines += make_table(("step", "validation loss"), curve)
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="ddim-lightning benchmark in_context", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--edits", type=read_count, default=80, help="to the own caption; a quarter to new words (80)")
    parser.add_argument("--metrics", type=Path, metavar="CSV", help="metrics.csv of the training, for its curve")
    parser.add_argument("--threads", type=read_count, default=1, help="CPU threads (1)")
    add_output(parser)
    args = parser.parse_args(argv)
    result = measure(args)
    report = make_markdown(result)
    write_files(args.output, result, report)
    print(report, end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
