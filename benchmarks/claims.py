"""Claims made without a GPU are held against one: memory by stage, the kernel of attention, and no waits in steps.

All within a minute, so that the first minute on a machine says whether the predictions hold: few steps, once, in which
the edit is guided throughout. The first step picks kernels and brings tables to the device; waits count behind it. On a
CPU everything runs, and only the kernel can be told.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
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
from ddim_lightning.types import EditRequest, Latents, Step, StepCallback

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
GUIDED = replace(EDITOR, guidance_steps=(0.0, None))
"""The recommended editor with its widest pass at every step."""
TOLERANCE = 0.1
"""Share by which a peak may miss its prediction: what kernels need as workspace is not in it."""
PREDICTED = Path(__file__).parent / "results" / "predicted-memory" / "result.json"
"""What an emulated device has predicted at full size; without it the closed form predicts."""
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
        self.emulated = read_emulated(PREDICTED) if args.full_size and args.dtype == "bfloat16" else {}

    def run(self, stage: str, tick: StepCallback) -> Tensor:
        """Run a stage once.

        Args:
            stage: One of `CASES`.
            tick: Called after every step, where there are any.
        """
        if stage == "encode":
            return encode_video(self.parts.vae, self.video)
        if stage == "decode":
            return decode_latents(self.parts.vae, self.latents)
        self.network.clear_cache()
        if stage == "invert" or self.inversion is None:
            self.inversion = invert(self.denoiser, self.latents, self.schedule, DDIM(), callback=tick)
            return self.inversion.levels[0]
        request = EditRequest(PROMPTS[0], guidance_scale=GUIDANCE_SCALE)
        generator = torch.Generator().manual_seed(0)
        return edit(self.denoiser, self.inversion, GUIDED, request, generator=generator, callback=tick)

    def predict_peak(self, stage: str, rows: int) -> float:
        """Predict the peak of a stage in GiB; the whole model but the text encoder is loaded."""
        if stage in self.emulated:
            return self.emulated[stage]
        models = {"transformer": self.parts.transformer, "vae": self.parts.vae}
        headers = {
            part: {name: Header(tuple(tensor.shape), "") for name, tensor in model.state_dict().items()}
            for part, model in models.items()
        }
        configs = {part: model.config for part, model in models.items()}
        frames, height, width = self.limits.num_frames, self.limits.height, self.limits.width
        size = Size(frames, height, width, rows, self.network.dtype.itemsize)
        return predict_peaks(headers, configs, self.limits, size)["none"][stage]


def read_emulated(path: Path) -> dict[str, float]:
    """Read the peaks by stage that an emulated device has predicted with all weights on it; none without a result."""
    if not path.exists():
        return {}
    presets = json.loads(path.read_text(encoding="utf-8"))["presets"]
    return {stage: peak for row in presets if row["preset"] == "none" for stage, peak in row["peak_gib"].items()}


class Waits:
    """The `Waits` are the lines at which the host waits for a GPU between the first step and the last.

    Args:
        device: The device; of another than a GPU nothing is known.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._caught: list[warnings.WarningMessage] = []
        self._ends: list[int] = []

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Watch what runs inside."""
        with warnings.catch_warnings(record=True) as self._caught:
            warnings.simplefilter("always")
            if self._cuda:
                torch.cuda.set_sync_debug_mode("warn")
            try:
                yield
            finally:
                if self._cuda:
                    torch.cuda.set_sync_debug_mode("default")

    def tick(self, step: Step, latents: Latents) -> None:
        """Note the end of a step."""
        self._ends.append(len(self._caught))

    def list_lines(self) -> list[str] | None:
        """Return the lines; ``None`` where they are not known, or there are no steps."""
        if not self._cuda or len(self._ends) < 2:
            return None
        waits = [one for one in self._caught[self._ends[0] : self._ends[-1]] if "synchroniz" in str(one.message)]
        return [f"{'/'.join(Path(one.filename).parts[-2:])}:{one.lineno}" for one in waits]


def measure_stage(work: Work, stage: str) -> list[dict[str, Any]]:
    """Run a stage once.

    Returns:
        The claims about it: its peak of memory and, of steps, how often the host waits.
    """
    cuda, waits = work.device.type == "cuda", Waits(work.device)
    if cuda:
        torch.cuda.synchronize(work.device)
        torch.cuda.reset_peak_memory_stats(work.device)
    start = read_clock(work.device)
    with waits.watch():
        output = work.run(stage, waits.tick)
    spent = read_clock(work.device) - start
    rows = max(work.network.rows) if stage in STEPPED else 1
    about = {"stage": stage, "rows": rows, "seconds": spent, "finite": bool(output.isfinite().all())}
    predicted = work.predict_peak(stage, rows)
    peak = torch.cuda.max_memory_allocated(work.device) / 2**30 if cuda else None
    holds = None if peak is None else abs(peak - predicted) <= TOLERANCE * predicted
    claims = [{"claim": "peak GiB", "predicted": predicted, "measured": peak, "holds": holds, "seen": [], **about}]
    if stage in STEPPED:
        lines = waits.list_lines()
        seen = [f"{line}, {lines.count(line)} times" for line in dict.fromkeys(lines)] if lines else []
        found = {"measured": None, "holds": None} if lines is None else {"measured": len(lines), "holds": not lines}
        claims.append({"claim": "waits of the host in steps", "predicted": 0, **found, "seen": seen, **about})
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
        found = measure_kernels(work) if case == "kernels" else measure_stage(work, case)
        for claim in found:
            print(f"{claim['stage']}: {tell_claim(claim)}", flush=True)
        claims += found
        yield {
            "schema": SCHEMA,
            "environment": read_block(args.commit),
            "settings": {
                "model": name_model(args),
                "latents": list(work.shape),
                "editor": repr(GUIDED),
                "tolerance": TOLERANCE,
                "predicted_by": "an emulated device" if work.emulated else "the closed form",
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
        f"{settings['steps']} steps. Peaks are predicted by {settings['predicted_by']} and hold within "
        f"{settings['tolerance']:.0%}; the text encoder is not loaded."
    )
    head = ("stage", "claim", "rows", "predicted", "measured", "holds", "seconds", "seen")
    return "\n".join(
        ["# Claims, held against the device", "", tell_origin(result), "", about, "", *make_table(head, rows), ""]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the report and write it; the exit status is 1 when an output is not finite."""
    parser = make_parser("claims", __doc__)
    parser.add_argument("--steps", type=read_count, default=3, help="steps of each direction, at least 2 (3)")
    add_attention(parser)
    args = parser.parse_args(argv)
    result = write_growing(args.output, measure(args), make_markdown)
    return 0 if all(claim["finite"] for claim in result["claims"]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
