"""Claims made without a GPU are held against one: memory by stage, the kernel of attention, and no waits in steps.

All within a minute, so that the first minute on a machine says whether the predictions hold: few steps, and the second
run of each stage that has any. On a CPU everything runs, and only the kernel can be told.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddim_lightning.diffusion.inversion import Inversion
from ddim_lightning.diffusion.inverters import DDIM
from ddim_lightning.diffusion.sampling import edit, invert
from ddim_lightning.models.loading import Components
from ddim_lightning.models.memory import Size, predict_peaks
from ddim_lightning.models.schedulers import make_noise_schedule
from ddim_lightning.models.vae import decode_latents, encode_video
from ddim_lightning.models.weight_files import Header
from ddim_lightning.network.denoiser import CogVideoXDenoiser
from ddim_lightning.network.kernels import resolve_attention
from ddim_lightning.network.network import Network
from ddim_lightning.types import EditRequest

from .arguments import add_attention, make_parser, read_count
from .counted_network import CountedNetwork
from .deadline import Deadline
from .edit_report import make_table
from .environment import read_block
from .loading import EDITOR, GUIDANCE_SCALE, PROMPTS, load_parts, make_video, name_model
from .measuring import list_kernels, read_clock, tell_kernel
from .output import tell_left_out, tell_origin, tell_place, write_growing

SCHEMA = "ddim-lightning/claims/2"
STEPPED = ("invert", "edit")
"""The stages whose passes are those of the transformer."""
CASES = ("invert", "kernels", "edit", "decode", "encode")
"""In the order of what they tell."""
TOLERANCE = 0.1
"""Share by which a peak may miss its prediction: what kernels need as workspace is not in it."""
FUSED = ("flash", "fmha", "sdpa", "scaled_dot_product")
"""Parts of the names of kernels that attend without writing the weights of attention to memory."""


class Work:
    """A `Work` is a loaded model and what it does in the stages, without a text encoder: embeddings are random.

    Args:
        args: Of the command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.device = args, torch.device(args.device)
        self.parts: Components = load_parts(args)
        self.network = CountedNetwork(Network(self.parts.transformer, resolve_attention(args.attention, self.device)))
        self.limits, config = self.parts.limits, self.parts.transformer.config
        frames = 1 + (self.limits.num_frames - 1) // self.limits.temporal
        scale = 2 ** (len(self.parts.vae.config.block_out_channels) - 1)
        self.shape = (1, frames, config.in_channels, self.limits.height // scale, self.limits.width // scale)
        generator = torch.Generator().manual_seed(args.seed)
        text = (1, config.max_text_seq_length, config.text_embed_dim)
        embeds = torch.randn(text, generator=generator).to(self.device, self.network.dtype)
        self.latents = torch.randn(self.shape, generator=generator).to(self.device)
        self.video = make_video(self.limits, args.seed)
        self.denoiser = CogVideoXDenoiser(self.network, lambda prompt: embeds)
        self.schedule = make_noise_schedule(self.parts.scheduler, args.steps)
        self.inversion: Inversion | None = None

    def run(self, stage: str) -> Tensor:
        """Run a stage once."""
        if stage == "encode":
            return encode_video(self.parts.vae, self.video)
        if stage == "decode":
            return decode_latents(self.parts.vae, self.latents)
        self.network.clear_cache()
        if stage == "invert" or self.inversion is None:
            self.inversion = invert(self.denoiser, self.latents, self.schedule, DDIM())
            return self.inversion.levels[0]
        request = EditRequest(PROMPTS[0], guidance_scale=GUIDANCE_SCALE)
        return edit(self.denoiser, self.inversion, EDITOR, request, generator=torch.Generator().manual_seed(0))

    def predict_peak(self, stage: str, rows: int) -> float:
        """Predict the peak of a stage by the closed form, in GiB; the whole model but the text encoder is loaded."""
        models = {"transformer": self.parts.transformer, "vae": self.parts.vae}
        headers = {
            part: {name: Header(tuple(tensor.shape), "") for name, tensor in model.state_dict().items()}
            for part, model in models.items()
        }
        configs = {part: model.config for part, model in models.items()}
        frames, height, width = self.limits.num_frames, self.limits.height, self.limits.width
        size = Size(frames, height, width, rows, self.network.dtype.itemsize)
        return predict_peaks(headers, configs, self.limits, size)["none"][stage]


@contextmanager
def watch_waits(device: torch.device) -> Iterator[list[str]]:
    """Collect the lines at which the host waits for a GPU; none on another device."""
    lines = list[str]()
    if device.type != "cuda":
        yield lines
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield lines
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for warning in caught:
        if "synchroniz" in str(warning.message):
            lines.append(f"{'/'.join(Path(warning.filename).parts[-2:])}:{warning.lineno}")


def measure_stage(work: Work, stage: str, predict: Callable[[str, int], float]) -> list[dict[str, Any]]:
    """Run a stage once to choose kernels, if it has steps, and once to measure.

    Returns:
        The claims about it: its peak of memory and, of steps, how often the host waits.
    """
    cuda, has_steps = work.device.type == "cuda", stage in STEPPED
    if has_steps:
        work.run(stage)
    if cuda:
        torch.cuda.synchronize(work.device)
        torch.cuda.reset_peak_memory_stats(work.device)
    start = read_clock(work.device)
    with watch_waits(work.device) as lines:
        output = work.run(stage)
    spent = read_clock(work.device) - start
    rows = max(work.network.rows) if has_steps else 1
    about = {"stage": stage, "rows": rows, "seconds": spent, "finite": bool(output.isfinite().all())}
    predicted = predict(stage, rows)
    peak = torch.cuda.max_memory_allocated(work.device) / 2**30 if cuda else None
    holds = None if peak is None else abs(peak - predicted) <= TOLERANCE * predicted
    claims = [{"claim": "peak GiB", "predicted": predicted, "measured": peak, "holds": holds, "seen": [], **about}]
    if has_steps:
        seen = [f"{line}, {lines.count(line)} times" for line in dict.fromkeys(lines)]
        waits = {"measured": len(lines), "holds": not lines} if cuda else {"measured": None, "holds": None}
        claims.append({"claim": "waits of the host", "predicted": 0, **waits, "seen": seen, **about})
    return claims


def measure_kernels(work: Work) -> list[dict[str, Any]]:
    """Say whether attention is one of the kernels that a pass spends most of its time in."""
    start = read_clock(work.device)
    kernels = list_kernels(work.network.repeat, work.device, 8)
    fused = [kernel for kernel in kernels if any(word in kernel["name"].lower() for word in FUSED)]
    about = {"stage": "invert", "rows": 1, "seconds": read_clock(work.device) - start, "finite": True}
    seen = [f"{tell_kernel(kernel['name'])} {kernel['ms']:.1f} ms" for kernel in kernels]
    return [
        {
            "claim": "kinds of fused attention among the kernels of a pass",
            "predicted": 1,
            "measured": len(fused),
            "holds": bool(fused),
            "seen": seen,
            **about,
        }
    ]


@torch.inference_mode()
def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Hold all claims against the device; yield the result after each stage, JSON-ready."""
    deadline, work = Deadline(args.budget), Work(args)
    claims = list[dict[str, Any]]()
    for case in deadline.take(CASES):
        found = measure_kernels(work) if case == "kernels" else measure_stage(work, case, work.predict_peak)
        for claim in found:
            print(f"{claim['stage']}: {tell_claim(claim)}", flush=True)
        claims += found
        yield {
            "schema": SCHEMA,
            "environment": read_block(args.commit),
            "settings": {
                "model": name_model(args),
                "latents": list(work.shape),
                "editor": repr(EDITOR),
                "tolerance": TOLERANCE,
                **{name: getattr(args, name) for name in ("steps", "dtype", "device", "attention", "seed")},
            },
            "claims": claims,
            **tell_left_out(deadline),
        }


def tell_claim(claim: Mapping[str, Any]) -> str:
    """Say in one line what was predicted, what was measured, and whether that holds."""
    measured = "not measured" if claim["measured"] is None else f"{claim['measured']:.4g} measured"
    verdict = {True: "holds", False: "DOES NOT HOLD", None: "not known"}[claim["holds"]]
    return f"{claim['claim']}: {claim['predicted']:.4g} predicted, {measured}: {verdict}"


def make_markdown(result: Mapping[str, Any]) -> str:
    """Write the report that a person reads."""
    settings = result["settings"]
    rows = [
        (
            claim["stage"],
            claim["claim"],
            str(claim["rows"]),
            f"{claim['predicted']:.4g}",
            "not measured" if claim["measured"] is None else f"{claim['measured']:.4g}",
            {True: "yes", False: "NO", None: ""}[claim["holds"]],
            f"{claim['seconds']:.2f}",
            ", ".join(claim["seen"]),
        )
        for claim in result["claims"]
    ]
    about = (
        f"{settings['model']} on {tell_place(result)}, latents {' x '.join(map(str, settings['latents']))}, "
        f"{settings['steps']} steps; a peak holds within {settings['tolerance']:.0%}. The text encoder is not loaded."
    )
    head = ("stage", "claim", "rows", "predicted", "measured", "holds", "seconds", "seen")
    return "\n".join(
        ["# Claims, held against the device", "", tell_origin(result), "", about, "", *make_table(head, rows), ""]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the report and write it; the exit status is 1 when an output is not finite."""
    parser = make_parser("claims", __doc__)
    parser.add_argument("--steps", type=read_count, default=2, help="steps of each direction (2)")
    add_attention(parser)
    args = parser.parse_args(argv)
    result = write_growing(args.output, measure(args), make_markdown)
    return 0 if all(claim["finite"] for claim in result["claims"]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
