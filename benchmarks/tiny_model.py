"""The benchmark says how good and how fast the tiny model is: VAE round trips and videos from noise.

Clips and prompts come from the world of shapes under seeds that no training has seen; a classifier reads color, shape,
background and direction back from the frames.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from ddim_lightning.data.streams import make_generator
from ddim_lightning.diffusion.sampling import sample
from ddim_lightning.metrics.functional import psnr
from ddim_lightning.models.loading import Components, load_components
from ddim_lightning.models.schedulers import make_noise_schedule
from ddim_lightning.models.vae import decode_latents, encode_video, quantize
from ddim_lightning.network.denoiser import CogVideoXDenoiser
from ddim_lightning.network.network import Network
from ddim_lightning.report.sheet import Row, write_sheet
from ddim_lightning.tiny.shapes import WORDS, Scene, render, sample_scene
from ddim_lightning.tiny.shapes_classifier import Labels, classify
from ddim_lightning.types import Branch

from .environment import read_block
from .loading import make_prompts
from .output import tell_origin

SCHEMA = "ddim-lightning/tiny-model/2"
SHEET_ROWS = 16
WARM_UP = 2
REPEATS = 10


def draw_scenes(count: int, seed: int) -> list[Scene]:
    """Draw scenes of trained words under seeds of their own."""
    return [sample_scene(make_generator(seed, "test", i)) for i in range(count)]


def count_right(scenes: Sequence[Scene], labels: Sequence[Labels]) -> dict[str, int]:
    """Return for each kind of word how many clips show the one of their caption."""
    pairs = list(zip(scenes, labels, strict=True))
    return {word: sum(getattr(seen, word) == getattr(scene, word) for scene, seen in pairs) for word in WORDS}


def measure_vae(parts: Components, scenes: Sequence[Scene]) -> dict[str, Any]:
    """Send rendered clips through the latents and back."""
    decibels, labels = [], []
    for scene in scenes:
        frames = render(scene)
        decoded = quantize(decode_latents(parts.vae, encode_video(parts.vae, frames[None]))[0])
        decibels.append(psnr(decoded / 255, frames / 255))
        labels.append(classify(decoded))
    return {
        "clips": len(scenes),
        "psnr_db_mean": statistics.mean(decibels),
        "psnr_db_worst": min(decibels),
        "right": count_right(scenes, labels),
        "psnr_db": decibels,
    }


def measure_samples(
    parts: Components, denoiser: CogVideoXDenoiser, scenes: Sequence[Scene], args: argparse.Namespace
) -> dict[str, Any]:
    """Make a clip from noise for each caption, label it, and write the sheet."""
    schedule = make_noise_schedule(parts.scheduler, args.steps)
    labels, rows = [], []
    for i, scene in enumerate(scenes):
        noise = torch.randn(find_size(parts), generator=make_generator(args.seed, "noise", i))
        frames = quantize(
            decode_latents(parts.vae, sample(denoiser, noise, scene.caption, schedule, args.guidance_scale))[0]
        )
        seen = classify(frames)
        labels.append(seen)
        wrong = [f"{word}: {getattr(seen, word)}" for word in WORDS if getattr(seen, word) != getattr(scene, word)]
        rows.append(Row("wrong" if wrong else "right", frames, scene.caption, ", ".join(wrong)))
    write_sheet(
        args.output / "sheet.png",
        rows[:SHEET_ROWS],
        title=f"{args.model}: from noise under a caption, as the classifier sees it",
        subtitle=f"{args.steps} steps, guidance {args.guidance_scale:g}, seed {args.seed}",
        fps=Fraction(8),
    )
    clips = [{"prompt": scene.caption, **vars(seen)} for scene, seen in zip(scenes, labels, strict=True)]
    return {"prompts": len(scenes), "right": count_right(scenes, labels), "clips": clips}


def find_size(parts: Components) -> tuple[int, ...]:
    """Return the size of one clip's latents, (1, f, c, h, w)."""
    config, limits = parts.transformer.config, parts.limits
    frames = (limits.num_frames - 1) // limits.temporal + 1
    return 1, frames, config.in_channels, config.sample_height, config.sample_width


def measure_speed(parts: Components, denoiser: CogVideoXDenoiser) -> dict[str, Any]:
    """Time one row of the transformer, one decoding and one encoding, again and again."""
    step, video = make_noise_schedule(parts.scheduler, 2)[1], render(draw_scenes(1, 0)[0])[None]
    latents = torch.randn(find_size(parts), generator=torch.Generator().manual_seed(0))
    acts: dict[str, Callable[[], object]] = {
        "row_ms": lambda: denoiser([Branch(latents, "")], step),
        "decode_ms": lambda: decode_latents(parts.vae, latents),
        "encode_ms": lambda: encode_video(parts.vae, video),
    }
    load = os.getloadavg()[0]  # before anything is timed: what others did on this machine
    measured: dict[str, Any] = {"load_average": load, "cpus": os.cpu_count(), "threads": torch.get_num_threads()}
    for name, act in acts.items():
        samples = []
        for _ in range(WARM_UP + REPEATS):
            start = time.perf_counter()
            act()
            samples.append((time.perf_counter() - start) * 1e3)
        kept = samples[WARM_UP:]
        measured[name] = {"median": statistics.median(kept), "fastest": min(kept), "samples": samples}
    return measured


@torch.inference_mode()
def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure everything and return the result, JSON-ready."""
    parts = load_components(args.model, device=torch.device("cpu"), dtype=torch.float32)
    prompts = make_prompts(parts, torch.device("cpu"))
    denoiser = CogVideoXDenoiser(Network(parts.transformer), prompts)
    modules = {"transformer": parts.transformer, "text_encoder": prompts.load(), "vae": parts.vae}
    return {
        "schema": SCHEMA,
        "environment": read_block(args.commit),
        "settings": {
            "parameters": {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()},
            **{name: getattr(args, name) for name in ("model", "clips", "prompts", "guidance_scale", "steps", "seed")},
        },
        "speed": measure_speed(parts, denoiser),
        "vae": measure_vae(parts, draw_scenes(args.clips, args.seed)),
        "samples": measure_samples(parts, denoiser, draw_scenes(args.prompts, args.seed), args),
    }


def make_markdown(result: dict[str, Any]) -> str:
    """Write the summary a person reads."""
    vae, samples, speed, settings = (result[name] for name in ("vae", "samples", "speed", "settings"))
    lines = [
        "# The tiny model, measured",
        "",
        tell_origin(result),
        "",
        f"| right in | VAE round trip, {vae['clips']} clips | from noise, {samples['prompts']} prompts |",
        "|---|---|---|",
        *(
            f"| {word} | {vae['right'][word] / vae['clips']:.0%} | {samples['right'][word] / samples['prompts']:.0%} |"
            for word in WORDS
        ),
        "",
        f"- VAE round trip: {vae['psnr_db_mean']:.2f} dB in the mean, {vae['psnr_db_worst']:.2f} dB in the worst clip",
        f"- from noise: {settings['steps']} steps, guidance {settings['guidance_scale']:g}, seed {settings['seed']}",
        "- [the clips from noise](sheet.png)",
        f"- {speed['threads']} thread(s), load average {speed['load_average']:.1f} on {speed['cpus']} CPUs: "
        + ", ".join(
            f"{name.removesuffix('_ms')} {speed[name]['median']:.1f} ms (fastest {speed[name]['fastest']:.1f})"
            for name in ("row_ms", "decode_ms", "encode_ms")
        ),
    ]
    return "\n".join(lines) + "\n"


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tiny_model", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--model", default="tiny", help="'tiny' (bundled) or a folder (tiny)")
    parser.add_argument("--clips", type=int, default=64, help="clips through the VAE (64)")
    parser.add_argument("--prompts", type=int, default=64, help="clips from noise (64)")
    parser.add_argument("--guidance-scale", type=float, default=2.0, help="of all clips from noise (2)")
    parser.add_argument("--steps", type=int, default=50, help="steps from noise (50)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    parser.add_argument("--seed", type=int, default=0, help="of scenes and noise (0)")
    parser.add_argument("--commit", help="of a copy that is no checkout; with -dirty where files were changed")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for JSON, Markdown and sheet")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the summary and write the files; the exit status is 1 when a round trip is not finite."""
    args = make_parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    args.output.mkdir(parents=True, exist_ok=True)
    result = measure(args)
    summary = make_markdown(result)
    (args.output / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (args.output / "README.md").write_text(summary, encoding="utf-8")
    print(summary, end="")
    return 0 if all(math.isfinite(decibels) for decibels in result["vae"]["psnr_db"]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
