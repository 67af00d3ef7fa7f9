"""One inversion and one edit of 49 x 480 x 720 with CogVideoX-5B's exact architecture, timed step by step.

The weights are random, those of the text encoder too: nothing is downloaded, every kernel runs at its real size, and
the picture means nothing. ``--tiny`` runs the same code on the bundled model, on a CPU if need be.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from ddim_lightning.diffusion.editors import KVInjection
from ddim_lightning.diffusion.inverters import UniInv
from ddim_lightning.diffusion.loop import edit, invert
from ddim_lightning.models.conditioning import PromptEncoder
from ddim_lightning.models.denoiser import CogVideoXDenoiser
from ddim_lightning.models.kernels import resolve_attention
from ddim_lightning.models.loading import Components, load_components
from ddim_lightning.models.network import Network
from ddim_lightning.models.published import make_random_5b
from ddim_lightning.models.schedulers import make_step_table
from ddim_lightning.models.vae import decode_latents, encode_video
from ddim_lightning.runtime.compile import apply_compile
from ddim_lightning.runtime.timing import StageTimer, StepClock, summarise_ms
from ddim_lightning.types import Branch, EditRequest, Latents, Step, VideoLimits

from .environment import read_block

SCHEMA = "ddim-lightning/full-size/1"
PROMPT = "a blue square moving left on a yellow background"
GUIDANCE_SCALE = 6.0
WARM_UP = 1
"""Steps left out of the summaries: they pick kernels and, with ``--compile``, compile. Their samples are kept."""


def list_kernels(denoiser: CogVideoXDenoiser, latents: Latents, step: Step, count: int = 5) -> list[dict[str, Any]]:
    """Return what one call under one prompt spends most of its device time in, by the profiler."""
    cuda = latents.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
        denoiser([Branch(latents, "")], step)
    spent = [(e.self_device_time_total if cuda else e.self_cpu_time_total, e.key) for e in profiler.key_averages()]
    return [{"name": name, "ms": us / 1e3} for us, name in sorted(spent, reverse=True)[:count]]


def describe(latents: Tensor) -> dict[str, Any]:
    """Return what can be said of latents that random weights made: whether they are finite, and how large."""
    return {"finite": bool(latents.isfinite().all()), "std": float(latents.double().std())}


def load(args: argparse.Namespace) -> Components:
    """Load the tiny model, or make the full one at random."""
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    if args.tiny:
        parts = load_components("tiny", device=device, dtype=dtype)
    else:
        parts = make_random_5b(device=device, dtype=dtype, seed=args.seed)
    return parts


def make_video(limits: VideoLimits, seed: int) -> Tensor:
    """Make noise, (1, f, 3, h, w) uint8, at the model's own size."""
    size = (1, limits.num_frames, 3, limits.height, limits.width)
    return torch.randint(256, size, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def encode_prompts(parts: Components) -> PromptEncoder:
    """Encode the prompts of the inversion and of the edit, then release the text encoder."""
    assert parts.tokenizer is not None
    assert parts.text_encoder is not None
    prompts = PromptEncoder(parts.tokenizer, parts.text_encoder, parts.transformer.config.max_text_seq_length)
    for prompt in ("", PROMPT):
        prompts(prompt)
    prompts.release()
    parts.text_encoder = None
    return prompts


@torch.inference_mode()
def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run every stage once and return the result, JSON-ready."""
    device = torch.device(args.device)
    timer = StageTimer(device)
    with timer.stage("load"):
        parts = load(args)
    video = make_video(parts.limits, args.seed)
    table, inverter, editor = make_step_table(parts.scheduler, args.steps), UniInv(), KVInjection()
    with timer.stage("text"):
        prompts = encode_prompts(parts)
    network = Network(parts.transformer, resolve_attention(args.attention, device))
    if args.compile:
        apply_compile(network, True)
    denoiser = CogVideoXDenoiser(network, prompts)
    with timer.stage("encode"):
        latents = encode_video(parts.vae, video)
    with timer.stage("invert"):
        inversion_clock = StepClock(device)
        inversion = invert(denoiser, latents, table, inverter, callback=inversion_clock)
    inversion_rows, denoiser.rows = denoiser.rows, 0
    with timer.stage("edit"):
        edit_clock = StepClock(device)
        request = EditRequest(PROMPT, guidance_scale=GUIDANCE_SCALE)
        edited = edit(denoiser, inversion, editor, request, callback=edit_clock)
    edit_rows = denoiser.rows
    with timer.stage("decode"):
        decoded = decode_latents(parts.vae, edited)
    return {
        "schema": SCHEMA,
        "environment": read_block(args.commit),
        "settings": {
            "model": "tiny" if args.tiny else "CogVideoX-5B's architecture, random weights",
            "parameters": sum(p.numel() for p in parts.transformer.parameters()),
            "size": tuple(video.shape),
            "latents": tuple(latents.shape),
            "text_tokens": prompts.max_length,
            "inverter": repr(inverter),
            "editor": repr(editor),
            "guidance_scale": GUIDANCE_SCALE,
            "warm_up_steps": WARM_UP,
            **{name: getattr(args, name) for name in ("steps", "dtype", "attention", "compile", "seed")},
        },
        "inversion": {"rows": inversion_rows, **summarise_ms(inversion_clock.read_ms(), WARM_UP)},
        "edit": {"rows": edit_rows, **summarise_ms(edit_clock.read_ms(), WARM_UP)},
        "seconds": dict(timer.seconds),
        "peak_gib": timer.peak_gib,
        "kernels": list_kernels(denoiser, latents, table[0]),
        "deviations": {
            name: describe(tensor)
            for name, tensor in (
                ("latents", latents),
                ("noise", inversion.levels[0]),
                ("edited", edited),
                ("decoded", decoded),
            )
        },
    }


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.full_size", description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="the bundled model instead of the 5B architecture")
    parser.add_argument("--steps", type=int, default=50, help="steps of the inversion and of the edit (50)")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument(
        "--dtype", default="bfloat16" if cuda else "float32", choices=("bfloat16", "float16", "float32")
    )
    parser.add_argument("--attention", default="auto", help="a kernel's name, or the path of a function")
    parser.add_argument("--compile", action="store_true", help="compile the transformer's blocks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commit", help="the commit measured, where the code is no checkout")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a summary and write the JSON; the exit status is 1 when a result is not finite."""
    args = make_parser().parse_args(argv)
    result = measure(args)
    for stage in ("inversion", "edit"):
        part = result[stage]
        low, middle, high = part["step_ms_p10"], part["step_ms_median"], part["step_ms_p90"]
        print(f"{stage:10} {middle:10.1f} ms a step (p10 {low:.1f}, p90 {high:.1f}), {part['rows']} rows")
    for stage, seconds in result["seconds"].items():
        peak = result["peak_gib"].get(stage)
        print(f"{stage:10} {seconds:10.2f} s" + ("" if peak is None else f", peak {peak:.2f} GiB"))
    for kernel in result["kernels"]:
        print(f"{kernel['ms']:10.2f} ms in {kernel['name']}")
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if all(part["finite"] for part in result["deviations"].values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
