"""The benchmark sets frames, resolution and steps against time, beside what the count of operations predicts.

One row without guidance, as an inversion evaluates it, on random latents. The prediction is the closed form at the rate
of the largest point of each list: where small points lie above it, time goes into something else than products.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ddim_lightning.diffusion.inverters import DDIM
from ddim_lightning.diffusion.sampling import invert
from ddim_lightning.models.loading import Components
from ddim_lightning.models.schedulers import make_noise_schedule
from ddim_lightning.network.denoiser import CogVideoXDenoiser
from ddim_lightning.network.kernels import resolve_attention
from ddim_lightning.network.network import Network
from ddim_lightning.runtime.timing import read_memory_gib

from .arguments import add_attention, make_parser, read_count
from .deadline import Deadline
from .edit_report import make_table
from .environment import read_block
from .flops import count_pass, make_sizes
from .loading import load_parts, name_model
from .measuring import name_clock, read_clock
from .output import tell_left_out, tell_origin, write_growing
from .plots import Line, plot_limits

SCHEMA = "ddim-lightning/scaling/2"
TINY = {
    "frames": ((1, 16, 16), (2, 16, 16), (3, 16, 16), (5, 16, 16)),
    "resolution": ((3, 8, 8), (3, 16, 16), (3, 24, 24)),
}
FULL = {
    "frames": ((1, 60, 90), (4, 60, 90), (7, 60, 90), (13, 60, 90)),
    "resolution": ((13, 30, 46), (13, 44, 66), (13, 60, 90)),
}
"""Latent frames, height and width of the points of each list."""
STEPS = (5, 10, 25)


def measure_size(network: Network, size: Sequence[int], args: argparse.Namespace) -> dict[str, Any]:
    """Time passes of one row at a size, after one that warms up.

    Args:
        network: The model.
        size: Latent frames, height and width.
        args: Rounds, device, dtype and seed.
    """
    config, device = network.transformer.config, torch.device(args.device)
    frames, height, width = size
    shape = (1, frames, config.in_channels, height, width)
    generator = torch.Generator().manual_seed(args.seed)
    latents = torch.randn(shape, generator=generator).to(device, network.dtype)
    text = (1, config.max_text_seq_length, config.text_embed_dim)
    embeds = torch.randn(text, generator=generator).to(device, network.dtype)
    if device.type == "cuda":  # pragma: no cover - cuda
        torch.cuda.reset_peak_memory_stats(device)
    samples = []
    for _ in range(1 + args.rounds):
        start = read_clock(device)
        velocity = network(latents, embeds, 500)
        samples.append((read_clock(device) - start) * 1e3)
    flops = count_pass(make_sizes(config, shape), 1)
    return {
        "size": list(size),
        "tokens": make_sizes(config, shape).tokens,
        "row_ms": samples,
        "linear_flop": flops.linear,
        "attention_flop": flops.attention,
        "memory": read_memory_gib(device) if device.type == "cuda" else None,
        "finite": bool(velocity.isfinite().all()),
    }


def measure_steps(parts: Components, network: Network, steps: int, args: argparse.Namespace) -> dict[str, Any]:
    """Time whole inversions without a residual in a number of steps, after one that warms up."""
    config, device = parts.transformer.config, torch.device(args.device)
    frames, height, width = (FULL if args.full_size else TINY)["resolution"][1]
    generator = torch.Generator().manual_seed(args.seed)
    latents = torch.randn(1, frames, config.in_channels, height, width, generator=generator).to(device)
    embeds = torch.randn(1, config.max_text_seq_length, config.text_embed_dim, generator=generator).to(device)
    denoiser = CogVideoXDenoiser(network, lambda prompt: embeds)
    schedule, samples = make_noise_schedule(parts.scheduler, steps), []
    for _ in range(1 + min(args.rounds, 3)):
        start = read_clock(device)
        invert(denoiser, latents, schedule, DDIM())
        samples.append((read_clock(device) - start) * 1e3)
    return {"steps": steps, "inversion_ms": samples}


def tell_median(row: Mapping[str, Any]) -> float:
    """Return the median without the warm-up, in milliseconds."""
    return float(statistics.median(row["row_ms"][1:]))


def predict(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the milliseconds of every point at the rate of the last, the largest."""
    work = [row["linear_flop"] + row["attention_flop"] for row in rows]
    return [tell_median(rows[-1]) * flop / work[-1] for flop in work]


@torch.inference_mode()
def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure every point; yield the result after each, JSON-ready."""
    deadline, device = Deadline(args.budget), torch.device(args.device)
    parts = load_parts(args)
    network = Network(parts.transformer, resolve_attention(args.attention, device))
    lists: dict[str, Sequence[Any]] = {**(FULL if args.full_size else TINY), "steps": STEPS}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in lists}
    points = [(name, point) for name, points in lists.items() for point in points]

    def count_work(point: tuple[str, Any]) -> float:
        size, passes = (lists["resolution"][1], point[1]) if point[0] == "steps" else (point[1], 1)
        shape = (1, size[0], network.in_channels, *size[1:])
        return passes * count_pass(make_sizes(parts.transformer.config, shape), 1).total

    for name, point in deadline.take(points, lambda point: f"{point[0]} {point[1]}", count_work):
        if name == "steps":
            found[name].append(measure_steps(parts, network, point, args))
        else:
            found[name].append(measure_size(network, point, args))
        yield {
            "schema": SCHEMA,
            "environment": read_block(args.commit),
            "settings": {
                "model": name_model(args),
                "clock": name_clock(device),
                **{name: getattr(args, name) for name in ("rounds", "dtype", "device", "attention", "seed")},
            },
            **found,
            **tell_left_out(deadline),
        }


def make_markdown(result: Mapping[str, Any]) -> str:
    """Write the report that a person reads."""
    settings = result["settings"]
    lines = [
        "# Frames, resolution and steps",
        "",
        tell_origin(result),
        "",
        f"{settings['model']}, one row, {settings['dtype']}; clock: {settings['clock']}; {settings['rounds']} rounds.",
    ]
    for name in filter(result.get, ("frames", "resolution")):
        rows = [
            (
                " x ".join(map(str, row["size"])),
                str(row["tokens"]),
                f"{row['linear_flop'] / 1e9:.2f}",
                f"{row['attention_flop'] / 1e9:.2f}",
                f"{tell_median(row):.1f}",
                f"{expected:.1f}",
                "not measured" if row["memory"] is None else f"{row['memory']['peak_gib']:.2f}",
            )
            for row, expected in zip(result[name], predict(result[name]), strict=True)
        ]
        head = ("latents", "tokens", "linear GFLOP", "attention GFLOP", "ms a row", "predicted", "peak GiB")
        lines += ["", f"## {name.capitalize()}", "", *make_table(head, rows), "", f"![{name}]({name}.png)"]
    medians = [(row["steps"], statistics.median(row["inversion_ms"][1:])) for row in result["steps"]]
    spent = [(str(steps), f"{ms:.0f}", f"{ms / steps:.1f}") for steps, ms in medians]
    lines += ["", "## Steps", "", *make_table(("steps", "inversion ms", "ms a step"), spent), ""]
    return "\n".join(lines)


def write_plots(folder: Path, result: Mapping[str, Any]) -> None:
    """Draw what was measured and what was predicted over the tokens of a row."""
    for name in filter(result.get, ("frames", "resolution")):
        rows = result[name]
        tokens = [row["tokens"] for row in rows]
        lines = [
            Line("measured", tokens, [tell_median(row) for row in rows]),
            Line("predicted from the count", tokens, predict(rows), dash="--"),
        ]
        title = f"Time of a row over its tokens: {name}"
        plot_limits(folder / f"{name}.png", lines, {}, title=title, x_label="tokens", y_label="ms a row")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the report and write it; the exit status is 1 when a velocity is not finite."""
    parser = make_parser("scaling", __doc__)
    parser.add_argument("--rounds", type=read_count, default=10, help="timed passes of each point (10)")
    add_attention(parser)
    args = parser.parse_args(argv)
    result = write_growing(args.output, measure(args), make_markdown, write_plots)
    return 0 if all(row["finite"] for name in ("frames", "resolution") for row in result[name]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
