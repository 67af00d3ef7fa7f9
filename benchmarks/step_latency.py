"""The benchmark takes the milliseconds of every step: of the inversion, the default edit, and edits with K/V injection.

Cases take turns. The first run of each picks kernels and, with ``--compile``, compiles: its samples are kept, and left
out of the summaries. Steps are summarized by their NFE, and stand beside the work of those in
closed form and, with ``--roof``, beside the rates that kernels alone have reached.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch._inductor.utils import fresh_cache

from ddim_lightning.diffusion.editors import Editor
from ddim_lightning.diffusion.inversion import Inversion
from ddim_lightning.diffusion.sampling import edit, invert
from ddim_lightning.engine.engine import InversionEngine
from ddim_lightning.network.denoiser import CogVideoXDenoiser
from ddim_lightning.network.network import Network
from ddim_lightning.runtime.timing import StepClock, summarize_ms
from ddim_lightning.types import EditRequest, Latents, Step

from .arguments import add_attention, add_steps, make_parser, read_count
from .counted_network import CountedNetwork
from .deadline import Deadline
from .edit_report import make_table
from .environment import read_block
from .flops import Flops, make_sizes
from .loading import EDITOR, PROMPTS, load_parts, make_engine, make_prompts, make_video, name_model
from .loading import GUIDANCE_SCALE as RECOMMENDED_SCALE
from .measuring import list_kernels, relative_l2, tell_kernel
from .output import tell_left_out, tell_origin, tell_place, write_growing
from .plots import Line, plot_steps
from .versus_reference import EDITORS, GUIDANCE_SCALE

SCHEMA = "ddim-lightning/step-latency/2"
EAGER, COMPILED = "eager", "compiled"


@dataclass(frozen=True)
class Case:
    """A `Case` is what is timed.

    Args:
        name: Its name.
        editor: The editor; ``None`` is the inversion.
        guidance_scale: Of the edit.
    """

    name: str
    editor: Editor | None = None
    guidance_scale: float = 1.0


CASES = (
    Case("inversion"),
    Case("default edit", EDITOR, RECOMMENDED_SCALE),
    *(Case(name, editor, GUIDANCE_SCALE) for name, editor in EDITORS.items()),
)


class Runner:
    """A `Runner` is a case by one engine, run again and again.

    Args:
        case: The case.
        variant: What the engine is called.
        engine: The engine.
    """

    def __init__(self, case: Case, variant: str, engine: InversionEngine) -> None:
        self.case, self.variant, self.engine = case, variant, engine
        assert isinstance(engine.network, Network)
        self.network = CountedNetwork(engine.network)
        self.runs: list[list[float]] = []
        """Milliseconds of every step of every run."""
        self.nfe: list[int] = []
        """NFE of every step."""
        self.work: list[Flops] = []
        """What those evaluations compute."""
        self.finite = True
        self._seen: dict[str, Any] = {}

    def look(self, eager: Network) -> dict[str, Any]:
        """Repeat one pass, the first time that it is asked: the kernels in it, and how far it is from an eager one."""
        if not self._seen:
            network = self.network
            same = network.network is eager
            distance = None if same else relative_l2(network.repeat().float(), network.repeat(eager).float())
            self._seen = {"relative_l2": distance, "kernels": list_kernels(network.repeat, self.engine.device)}
        return self._seen

    def run(self, latents: Latents, inversion: Inversion) -> None:
        """Run once: invert clean latents, or edit by a former inversion."""
        self.network.clear_cache()
        denoiser, schedule = CogVideoXDenoiser(self.network, self.engine.prompts), self.engine.schedule
        clock, ends = StepClock(self.engine.device), [0]

        def tick(step: Step, latents: Latents) -> None:
            clock.mark()
            ends.append(len(self.network.rows))

        if self.case.editor is None:
            output = invert(denoiser, latents, schedule, self.engine.inverter, callback=tick).levels[0]
        else:
            request = EditRequest(PROMPTS[0], guidance_scale=self.case.guidance_scale)
            generator = torch.Generator().manual_seed(0)
            output = edit(denoiser, inversion, self.case.editor, request, generator=generator, callback=tick)
        self.runs.append(clock.read_ms())
        work, steps = self.network.count_work(), list(pairwise(ends))
        self.nfe = [sum(self.network.rows[start:end]) for start, end in steps]
        self.work = [sum(work[start:end], Flops()) for start, end in steps]
        self.finite = self.finite and bool(output.isfinite().all())


def read_roof(folder: Path | None, tokens: int, args: argparse.Namespace) -> dict[str, float] | None:
    """Read the best rates of a result of `kernels`.

    Raises:
        ValueError: They are of other sizes, another dtype or another device.
    """
    if folder is None:
        return None
    measured = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    wanted = {"tokens": tokens, "dtype": args.dtype, "device": args.device}
    found = {name: measured["settings"][name] for name in wanted}
    if found != wanted:
        raise ValueError(f"roof: must be measured with {wanted}, got {found}")
    return {name: measured["roof"][name] for name in ("product_tflops", "attention_tflops")}


def summarize(runner: Runner, roof: Mapping[str, float] | None) -> list[dict[str, Any]]:
    """Summarize the timed steps by their NFE; a step without any only carries on.

    Returns:
        For each NFE how many ``steps`` of a run have it, their times, ``tflop`` of one, ``tflops``, the rate
        at the median, and ``of_roof``, the time that its products and its attention take at their best rates over the
        median.
    """
    summaries = []
    for nfe in sorted(set(runner.nfe) - {0}):
        places = [i for i, count in enumerate(runner.nfe) if count == nfe]
        times = summarize_ms([run[i] for run in runner.runs[1:] for i in places], warm_up=0)
        del times["step_ms"]
        work, seconds = runner.work[places[0]], times["step_ms_median"] / 1e3
        best = roof and work.linear / roof["product_tflops"] + work.attention / roof["attention_tflops"]
        summaries.append(
            {
                "nfe": nfe,
                "steps": len(places),
                **times,
                "tflop": work.total / 1e12,
                "tflops": work.total / 1e12 / seconds,
                "of_roof": best and best / 1e12 / seconds,
            }
        )
    return summaries


def describe(runner: Runner, eager: Network, roof: Mapping[str, float] | None) -> dict[str, Any]:
    """Return what is known of a case after two runs or more, JSON-ready.

    Args:
        runner: The case.
        eager: What a compiled network is compared with, on the inputs of one pass.
        roof: See `read_roof`.
    """
    cold, *warm = [sum(run) for run in runner.runs]
    return {
        "name": runner.case.name,
        "variant": runner.variant,
        "editor": None if runner.case.editor is None else repr(runner.case.editor),
        "guidance_scale": runner.case.guidance_scale,
        "nfe": runner.nfe,
        "step_ms": runner.runs,
        "cold_s": (cold - statistics.median(warm)) / 1e3,
        "by_nfe": summarize(runner, roof),
        "finite": runner.finite,
        **runner.look(eager),
    }


@torch.inference_mode()
def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Run all cases in turns; yield the result after each run that is timed, JSON-ready.

    Raises:
        ValueError: A roof that does not fit.
    """
    deadline, parts = Deadline(args.budget), load_parts(args)
    variants = (EAGER, COMPILED) if args.compile else (EAGER,)
    prompts = make_prompts(parts, torch.device(args.device), args.seed)
    engines = {
        name: make_engine(parts, args.steps, prompts=prompts, attention=args.attention, compiled=name == COMPILED)
        for name in variants
    }
    eager = engines[EAGER]
    latents = eager.encode(make_video(parts.limits, args.seed))
    sizes = make_sizes(parts.transformer.config, latents.shape)
    roof = read_roof(args.roof, sizes.tokens, args)
    inversion = eager.invert(latents)
    runners = [Runner(case, name, engine) for case in CASES for name, engine in engines.items()]
    network = eager.network
    assert isinstance(network, Network)
    settings = {
        "model": name_model(args),
        "parameters": sum(p.numel() for p in parts.transformer.parameters()),
        "latents": list(latents.shape),
        "tokens": sizes.tokens,
        "inverter": repr(eager.inverter),
        "clock": "CUDA events" if args.device.startswith("cuda") else "wall, one thread",
        "warm_up_runs": 1,
        "roof": roof,
        **{name: getattr(args, name) for name in ("steps", "rounds", "compile", "dtype", "device", "attention")},
        "seed": args.seed,
    }
    turns = [(turn, runner) for turn in range(1 + args.rounds) for runner in runners[:: -1 if turn % 2 else 1]]
    for turn, runner in deadline.take(turns, lambda run: f"round {run[0]} of {run[1].case.name}, {run[1].variant}"):
        print(f"round {turn} of {args.rounds}: {runner.case.name}, {runner.variant}", flush=True)
        runner.run(latents, inversion)
        if turn:
            yield {
                "schema": SCHEMA,
                "environment": read_block(args.commit),
                "settings": settings,
                "cases": [describe(runner, network, roof) for runner in runners if len(runner.runs) > 1],
                **tell_left_out(deadline),
            }


def make_markdown(result: Mapping[str, Any]) -> str:
    """Write the report that a person reads."""
    settings = result["settings"]
    measured = (
        f"{settings['model']} on {tell_place(result)}, latents {' x '.join(map(str, settings['latents']))}, "
        f"{settings['steps']} steps, kernel {settings['attention']}; clock: {settings['clock']}; "
        f"{settings['rounds']} timed runs in turns."
    )
    steps = [
        (
            case["name"],
            case["variant"],
            str(row["nfe"]),
            str(row["steps"]),
            *(f"{row[name]:.1f}" for name in ("step_ms_median", "step_ms_p10", "step_ms_p90")),
            f"{row['tflop']:.3g}",
            f"{row['tflops']:.3g}",
            "not measured" if row["of_roof"] is None else f"{row['of_roof']:.0%}",
        )
        for case in result["cases"]
        for row in case["by_nfe"]
    ]
    runs = [
        (
            case["name"],
            case["variant"],
            f"{statistics.median(map(sum, case['step_ms'][1:])) / settings['steps']:.1f}",
            f"{round(case['cold_s'], 1) + 0.0:.1f}",  # no minus before a zero
            "" if case["relative_l2"] is None else f"{case['relative_l2']:.1e}",
            ", ".join(f"{tell_kernel(kernel['name'])} {kernel['ms']:.1f} ms" for kernel in case["kernels"][:3]),
        )
        for case in result["cases"]
    ]
    explained = (
        "Steps of equal NFE are summarized together; those without any carry on what former steps found. *Of the "
        "roof* is the time that the products and the attention of a step take at the best rates of kernels alone. "
        "*Cold* is what the first run takes longer than a later one: choosing kernels, and compiling. *Distance* is "
        "the relative L2 distance of a compiled pass to the eager one on the same inputs. The kernels are those that "
        "the profiler saw in one pass."
    )
    head = ("case", "variant", "NFE", "steps", "ms", "p10", "p90", "TFLOP", "TFLOP/s", "of the roof")
    return "\n".join(
        [
            "# Latency by step",
            "",
            tell_origin(result),
            "",
            measured,
            "",
            *make_table(head, steps),
            "",
            *make_table(("case", "variant", "ms a step, all", "cold s", "distance", "kernels seen"), runs),
            "",
            explained,
            "",
            "![Milliseconds of every step](latency.png)",
            "",
        ]
    )


def write_plots(folder: Path, result: Mapping[str, Any]) -> None:
    """Draw the median of every step that evaluates the network, over the timed runs."""
    lines = []
    for case in result["cases"]:
        # An edit may begin later than at the first step, and all end at the last.
        first = result["settings"]["steps"] - len(case["nfe"]) + 1
        evaluated = [i for i, nfe in enumerate(case["nfe"]) if nfe]
        medians = [statistics.median(run[i] for run in case["step_ms"][1:]) for i in evaluated]
        dash = "-" if case["variant"] == EAGER else "--"
        lines.append(Line(f"{case['name']}, {case['variant']}", [first + i for i in evaluated], medians, dash))
    title = "Latency of the steps that evaluate the network"
    plot_steps(folder / "latency.png", lines, title=title, x_label="step", y_label="ms")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the report and write it; the exit status is 1 when a result is not finite."""
    parser = make_parser("step_latency", __doc__)
    add_steps(parser)
    parser.add_argument(
        "--rounds", type=read_count, default=3, help="timed runs of each case, after one that warms up (3)"
    )
    parser.add_argument("--compile", action="store_true", help="also compile the transformer's blocks")
    parser.add_argument("--roof", type=Path, metavar="FOLDER", help="result of `kernels` on this machine")
    add_attention(parser)
    args = parser.parse_args(argv)
    with fresh_cache():  # or what another run compiled would hide what it costs
        result = write_growing(args.output, measure(args), make_markdown, write_plots)
    return 0 if all(case["finite"] for case in result["cases"]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
