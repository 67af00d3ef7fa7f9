"""The benchmark says what training with `InversionConsistency` does to round trips, and what it trades for them.

The same LoRA trains with `Velocity` alone and with `InversionConsistency` beside it, at several weights, on the same
clips, from the same draws. Round trips are by plain DDIM, on clips that no training has seen.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning import Trainer

from ddim_lightning import DDIM, DDIMInversionModule, InversionConsistency, Schedule, Training, Velocity
from ddim_lightning.models.source import BUNDLED
from ddim_lightning.runtime.allocator import keep_freed_memory
from ddim_lightning.tiny.latents_datamodule import ShapesLatentsDataModule

from .arguments import add_output, read_count
from .edit_report import make_table
from .environment import read_block
from .output import tell_origin, write_files

SCHEMA = "ddim-lightning/consistency/2"
BATCH, LEARNING_RATE, RANK = 16, 1e-3, 16


@torch.inference_mode()
def measure_module(module: DDIMInversionModule, data: ShapesLatentsDataModule) -> dict[str, float]:
    """Return the relative L2 distance of plain DDIM's round trips, over all clips, and the velocity loss."""
    engine, lost, whole = module.engine, 0.0, 0.0
    for batch in data.val_dataloader():
        for latents in batch["latents"]:
            returned = engine.reconstruct(engine.invert(latents[None]))
            lost += float((returned - latents).double().square().sum())
            whole += float(latents.double().square().sum())
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    (logged,) = trainer.validate(module, data, verbose=False)
    return {
        "round_trip": (lost / whole) ** 0.5,
        "velocity_loss": logged.get("val/loss/Velocity", logged["val/loss"]),
    }


def train(weight: float, data: ShapesLatentsDataModule, args: argparse.Namespace) -> DDIMInversionModule:
    """Train a LoRA; a weight of 0 trains with `Velocity` alone."""
    consistency = [InversionConsistency(weight=weight)] if weight else []
    training = Training(
        parts=("lora",),
        rank=RANK,
        objectives=(Velocity(), *consistency),
        learning_rate=LEARNING_RATE,
        weight_decay=0.0,
        warmup_steps=20,
    )
    schedule = Schedule(num_inference_steps=args.inversion_steps)
    module = DDIMInversionModule("tiny", inverter=DDIM(), schedule=schedule, training=training, seed=args.seed)
    Trainer(
        accelerator="cpu",
        max_steps=args.steps,
        max_epochs=-1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
    ).fit(module, data)
    module.load("cpu")
    return module


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Train at every weight, and return the result, JSON-ready."""
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    rows = []
    with TemporaryDirectory() as folder:
        data = ShapesLatentsDataModule(
            str(BUNDLED / "vae"),
            f"{folder}/latents.safetensors",
            scenes=args.clips,
            val_scenes=args.val_clips,
            batch_size=BATCH,
            dtype="float32",
            seed=args.seed,
        )
        untrained = DDIMInversionModule(
            "tiny", inverter=DDIM(), schedule=Schedule(num_inference_steps=args.inversion_steps), training=Training()
        )
        data.prepare_data()
        data.setup("fit")
        untrained.load("cpu")
        rows.append({"weight": None, **measure_module(untrained, data)})
        for weight in (0.0, *args.weights):
            rows.append({"weight": weight, **measure_module(train(weight, data, args), data)})
            print(rows[-1], flush=True)
    return {
        "schema": SCHEMA,
        "environment": read_block(args.commit),
        "settings": {
            "model": "tiny",
            "batch_size": BATCH,
            "rank": RANK,
            "learning_rate": LEARNING_RATE,
            **{name: getattr(args, name) for name in ("steps", "clips", "val_clips", "inversion_steps", "seed")},
        },
        "rows": rows,
    }


def make_markdown(result: Mapping[str, Any]) -> str:
    """Write the report that a person reads."""
    settings, rows = result["settings"], result["rows"]
    alone = next(row for row in rows if row["weight"] == 0)
    table = []
    for row in rows:
        name = (
            "before" if row["weight"] is None else "0, `Velocity` alone" if not row["weight"] else f"{row['weight']:g}"
        )
        changes = (f"{row[key] / alone[key] - 1:+.0%}" for key in ("round_trip", "velocity_loss"))
        table.append((name, f"{row['round_trip']:.4f}", f"{row['velocity_loss']:.5f}", *changes))
    said = (
        f"A LoRA of rank {settings['rank']}, {settings['steps']} steps of {settings['batch_size']} of "
        f"{settings['clips']} clips; learning rate {settings['learning_rate']:g}. Round trip: relative L2 distance of "
        f"the latents of {settings['val_clips']} other clips from what plain DDIM in {settings['inversion_steps']} "
        "steps brings back. Velocity loss: of the same clips. Changes are against the same training without "
        "`InversionConsistency`."
    )
    head = ("weight", "round trip", "velocity loss", "round trip changes", "velocity loss changes")
    return "\n".join(["# Training for inversion", "", tell_origin(result), "", said, "", *make_table(head, table), ""])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="ddim-lightning benchmark consistency", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--weights", type=float, nargs="+", default=[10.0, 100.0, 1000.0], help="of the objective")
    parser.add_argument("--steps", type=read_count, default=200, help="of every training (200)")
    parser.add_argument("--clips", type=read_count, default=256, help="that are trained on (256)")
    parser.add_argument("--val-clips", type=read_count, default=32, help="that are measured (32)")
    parser.add_argument("--inversion-steps", type=read_count, default=50, help="of inversions (50)")
    parser.add_argument("--threads", type=read_count, default=1, help="CPU threads (1)")
    parser.add_argument("--seed", type=int, default=0, help="of clips and trainings (0)")
    add_output(parser)
    args = parser.parse_args(argv)
    result = measure(args)
    report = make_markdown(result)
    write_files(args.output, result, report)
    print(report, end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
