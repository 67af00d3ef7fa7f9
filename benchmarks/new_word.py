"""The benchmark says what a few minutes of LoRA training teach: a color word that the tiny model was never trained on.

Scenes of that color, and as many of colors that are known, are written as mp4 files with captions, and a LoRA trains on
them with `Velocity`, as on anybody's clips. Edits to the word, of clips that no training has seen, are measured without
it and with it. What the LoRA costs the words that were known is measured on the edits of the development set.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning import Trainer

from ddim_lightning import Batches, DDIMInversionModule, Training, VideoDataModule
from ddim_lightning.data.mp4 import write_mp4
from ddim_lightning.data.streams import make_generator
from ddim_lightning.runtime.allocator import keep_freed_memory
from ddim_lightning.tiny.shapes import HELD_OUT_COLOR, render, sample_scene
from ddim_lightning.types import EditRequest

from .arguments import add_output, read_count
from .edit_quality import measure_video, sum_psnr
from .edit_report import make_table
from .edit_set import ShapesEdit, make_edit_set
from .environment import read_block
from .output import tell_origin, write_files

SCHEMA = "ddim-lightning/new-word/2"
BATCH, LEARNING_RATE, RANK, CRF = 16, 3e-3, 32, 10


def write_clips(folder: Path, count: int, seed: int) -> None:
    """Write clips, every second of the word and the others of known ones, each with its caption beside it."""
    for k in range(count):
        scene = sample_scene(make_generator(seed, "new word", k))
        scene = scene if k % 2 else replace(scene, color=HELD_OUT_COLOR)  # alone, it would become every color
        write_mp4(folder / f"{k:03}.mp4", render(scene), Fraction(8), CRF)
        (folder / f"{k:03}.txt").write_text(scene.caption, encoding="utf-8")


def make_edits(count: int) -> list[ShapesEdit]:
    """Make edits of trained scenes to the word, under seeds that no training has seen."""
    scenes = [sample_scene(make_generator(20, "edits to a new word", k)) for k in range(count)]
    return [
        ShapesEdit(f"word-{k:02}", "color", scene, replace(scene, color=HELD_OUT_COLOR))
        for k, scene in enumerate(scenes)
    ]


@torch.inference_mode()
def measure_edits(module: DDIMInversionModule, edits: Sequence[ShapesEdit]) -> dict[str, Any]:
    """Return PSNR in dB by region, and the share of videos whose color is read as asked for."""
    records = []
    for edit in edits:
        inversion = module.engine.invert(module.engine.encode(render(edit.source)))
        request = EditRequest(
            edit.target.caption, source_prompt=edit.source.caption, guidance_scale=module.guidance_scale
        )
        seed = make_generator(0, edit.id, 0).initial_seed()
        records.append(measure_video(module.engine.decode(module.engine.edit(inversion, request, seed=seed)), edit))

    hits = [record["seen"]["color"] == edit.target.color for record, edit in zip(records, edits, strict=True)]
    return {**sum_psnr(records), "color": sum(hits) / len(hits)}


def train(clips: Path, args: Any) -> tuple[DDIMInversionModule, dict[str, float]]:
    """Train a LoRA on a folder of clips; return the module and the seconds that it took."""
    training = Training(
        parts=("lora",), rank=RANK, learning_rate=LEARNING_RATE, weight_decay=0.0, warmup_steps=20, caption_dropout=0.1
    )
    module = DDIMInversionModule("tiny", training=training, seed=args.seed)
    cache = str(clips / "latents")
    data = VideoDataModule(clips, num_workers=0, batches=Batches(batch_size=BATCH, cache=cache, seed=args.seed))
    start, used = time.monotonic(), time.process_time()
    Trainer(
        accelerator="cpu",
        max_steps=args.steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
    ).fit(module, data)
    return module, {"seconds": time.monotonic() - start, "processor_seconds": time.process_time() - used}


def measure(args: Any) -> dict[str, Any]:
    """Train, measure before and after, and return the result, JSON-ready."""
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    edits = {"to the new word": make_edits(args.edits), "to known words": make_edit_set("dev", args.edits)}
    untrained = DDIMInversionModule.from_pretrained("tiny", device="cpu")
    rows = [{"edits": name, "lora": False, **measure_edits(untrained, some)} for name, some in edits.items()]
    with TemporaryDirectory() as folder:
        write_clips(Path(folder), args.clips, args.seed)
        module, spent = train(Path(folder), args)
    module.load("cpu")
    rows += [{"edits": name, "lora": True, **measure_edits(module, some)} for name, some in edits.items()]
    return {
        "schema": SCHEMA,
        "environment": read_block(args.commit),
        "settings": {
            "model": "tiny",
            "word": HELD_OUT_COLOR,
            "batch_size": BATCH,
            "rank": RANK,
            "learning_rate": LEARNING_RATE,
            "device": "cpu",
            "dtype": "float32",
            **{name: getattr(args, name) for name in ("steps", "clips", "edits", "threads", "seed")},
        },
        "training": spent,
        "rows": rows,
    }


def make_markdown(result: Mapping[str, Any]) -> str:
    """Write the report that a person reads."""
    settings, spent = result["settings"], result["training"]
    rows = [
        (
            row["edits"],
            "with" if row["lora"] else "without",
            *(f"{row[name]:.2f}" for name in ("whole", "inside", "outside")),
            f"{100 * row['color']:.0f} %",
        )
        for row in result["rows"]
    ]
    gain = next(row["whole"] for row in result["rows"] if row["lora"]) - result["rows"][0]["whole"]
    trained = (
        f"A LoRA of rank {settings['rank']} with `Velocity`: {settings['steps']} steps of {settings['batch_size']} of "
        f"{settings['clips']} clips, half of which show a {settings['word']} object, a color that the tiny model never "
        "saw: "
        f"{spent['seconds'] / 60:.1f} minutes, {spent['processor_seconds'] / 60:.1f} of processor time. Edits are the "
        f"model's recommended ones, {settings['edits']} of each kind; PSNR against the rendered truth in dB; color: "
        f"videos whose color is the one asked for."
    )
    return "\n".join(
        [
            "# A new word",
            "",
            f"**{gain:+.1f} dB** on edits to the word.",
            "",
            trained,
            "",
            *make_table(("edits", "LoRA", "whole", "inside", "outside", "color"), rows),
            "",
            tell_origin(result),
            "",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="ddim-lightning benchmark new_word", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--steps", type=read_count, default=700, help="of the training (700)")
    parser.add_argument("--clips", type=read_count, default=320, help="that are trained on (320)")
    parser.add_argument("--edits", type=read_count, default=20, help="of each kind (20)")
    parser.add_argument("--threads", type=read_count, default=2, help="CPU threads (2)")
    parser.add_argument("--seed", type=int, default=0, help="of clips and training (0)")
    add_output(parser)
    args = parser.parse_args(argv)
    result = measure(args)
    report = make_markdown(result)
    write_files(args.output, result, report)
    print(report, end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
