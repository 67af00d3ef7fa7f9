"""The two forward passes of the transformer take turns at the same rows: ours, and diffusers' with rows that read.

Both are `Runtime.forward`. A round runs every form of a pass by each of them; ratios are those of a round.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._inductor.utils import fresh_cache

from ddim_lightning.engine.config import Forward
from ddim_lightning.network.diffusers_network import DiffusersNetwork
from ddim_lightning.network.network import Network

from .arguments import add_attention, make_parser, read_count
from .deadline import Deadline
from .edit_report import make_table
from .environment import read_block
from .loading import PROMPTS, copy_parts, load_parts, make_engine, make_prompts, make_video, name_model
from .measuring import name_clock, read_clock, relative_l2
from .output import tell_left_out, tell_origin, tell_place, write_growing

SCHEMA = "ddim-lightning/forward-passes/2"
FUSED, PASSES, FULL_PASSES, TIMESTEP = "fused, eager", 3, 1, 500
"""What all are compared with; passes of a sample, and at full size; the timestep of their rows."""


@dataclass(frozen=True)
class Form:
    """A `Form` is the layout of the rows of a pass.

    Args:
        name: What has it.
        rows: How many.
        wanted: How many of them, the first, have velocities that are wanted.
        reads: For each of the first rows the row that it reads.
    """

    name: str
    rows: int
    wanted: int
    reads: tuple[int, ...] = ()


FORMS = (
    Form("one row", 1, 1),
    Form("four rows", 4, 4),
    Form("two rows that read two", 4, 2, (2, 3)),
)


@torch.inference_mode()
def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Time all forms by all passes in turns; yield the result after each form, JSON-ready."""
    deadline, device = Deadline(args.budget), torch.device(args.device)
    parts = load_parts(args)
    prompts = make_prompts(parts, device, args.seed)
    networks: dict[str, Network | DiffusersNetwork] = {}
    forwards: tuple[Forward, ...] = ("fused", "diffusers")
    for forward in forwards:
        for way in ("eager", "compiled") if args.compile else ("eager",):
            # Blocks are compiled, and processors set, in place.
            own = parts if forward == "fused" else copy_parts(parts)
            engine = make_engine(
                own, 1, prompts=prompts, attention=args.attention, forward=forward, compiled=way == "compiled"
            )
            networks[f"{forward}, {way}"] = engine.network
    latents = make_engine(parts, 1, prompts=prompts).encode(make_video(parts.limits, args.seed))
    rows = latents.to(parts.transformer.dtype).expand(4, -1, -1, -1, -1).contiguous()
    embeds = torch.cat([prompts(prompt) for prompt in PROMPTS]).to(rows)

    def run(form: Form, network: Network | DiffusersNetwork) -> Tensor:
        wanted, count = form.wanted, form.rows
        return network(rows[:count], embeds[:count], TIMESTEP, wanted=wanted, reads=form.reads)

    found: list[dict[str, Any]] = []
    passes = FULL_PASSES if args.full_size else PASSES
    for form in deadline.take(FORMS, lambda form: form.name, lambda form: form.rows):
        found += time_form(networks, form.name, partial(run, form), args.rounds, passes)
        yield {
            "schema": SCHEMA,
            "environment": read_block(args.commit),
            "settings": {
                "model": name_model(args),
                "latents": list(latents.shape),
                "clock": name_clock(device),
                "passes": passes,
                **{name: getattr(args, name) for name in ("rounds", "dtype", "device", "attention", "seed")},
            },
            "rows": found,
            **tell_left_out(deadline),
        }


def time_form(
    networks: Mapping[str, Network | DiffusersNetwork],
    form: str,
    run: Callable[[Network | DiffusersNetwork], Tensor],
    rounds: int,
    passes: int,
) -> list[dict[str, Any]]:
    """Time a form of a pass by all networks, in turns.

    Args:
        networks: By name; that of `FUSED` is among them.
        form: Its name.
        run: Runs one pass.
        rounds: Timed rounds, after one that warms up.
        passes: Of a sample.

    Returns:
        For each network its samples; what it needs after the weights changed, before it runs at full speed; the ratio
        of its time to that of `FUSED` in every round, and the distance of its velocities.
    """
    samples: dict[str, list[float]] = {name: [] for name in networks}
    anew: dict[str, list[float]] = {name: [] for name in networks}
    for turn in range(rounds + 1):
        for name in list(networks)[:: -1 if turn % 2 else 1]:
            network = networks[name]
            device = network.transformer.device
            start = read_clock(device)
            network.start_stage()
            run(network)
            first = read_clock(device) - start
            start = read_clock(device)
            for _ in range(passes):
                run(network)
            spent = (read_clock(device) - start) / passes
            samples[name].append(spent * 1e3)
            anew[name].append((first - spent) * 1e3)
    exact, rows = run(networks[FUSED]).float(), []
    for name, network in networks.items():
        ratios = [own / fused for own, fused in zip(samples[name][1:], samples[FUSED][1:], strict=True)]
        output = run(network).float()
        rows.append(
            {
                "form": form,
                "forward": name,
                "pass_ms": samples[name],
                "stage_ms": anew[name],
                "ratios": ratios,
                "median": statistics.median(ratios),
                "lowest": min(ratios),
                "highest": max(ratios),
                "relative_l2": relative_l2(output, exact),
                "finite": bool(output.isfinite().all()),
            }
        )
    return rows


def make_markdown(result: Mapping[str, Any]) -> str:
    """Write the report that a person reads."""
    settings = result["settings"]
    rows = [
        (
            row["form"],
            row["forward"],
            f"{statistics.median(row['pass_ms'][1:]):.1f}",
            f"{row['median']:.2f}",
            f"{row['lowest']:.2f} - {row['highest']:.2f}",
            f"{row['stage_ms'][0]:.0f}",
            f"{statistics.median(row['stage_ms'][1:]):.1f}",
            f"{row['relative_l2']:.1e}",
        )
        for row in result["rows"]
    ]
    head = ("rows", "forward", "ms a pass", "times the time", "range", "first ms", "stage ms", "distance")
    measured = (
        f"{settings['model']} on {tell_place(result)}, latents {' x '.join(map(str, settings['latents']))}, kernel "
        f"{settings['attention']}; clock: {settings['clock']}; {settings['rounds']} rounds in turns of "
        f"{settings['passes']} passes."
    )
    explained = (
        f"*Times the time* is the time of a pass over that of {FUSED} in the same round. *First* is what the very "
        "first pass takes longer, compiling with it; *stage* is what the first pass of every later stage takes "
        "longer: ours gathers the weights, and works out what the timestep decides. *Distance* is the relative L2 "
        f"distance of the velocities to those of {FUSED}."
    )
    return "\n".join(
        [
            "# The two forward passes",
            "",
            tell_origin(result),
            "",
            measured,
            "",
            *make_table(head, rows),
            "",
            explained,
            "",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the report and write it; the exit status is 1 when a velocity is not finite."""
    parser = make_parser("forward_passes", __doc__)
    parser.add_argument("--rounds", type=read_count, default=10, help="timed rounds, after one that warms up (10)")
    parser.add_argument("--compile", action="store_true", help="also compile the transformer's blocks")
    add_attention(parser)
    args = parser.parse_args(argv)
    with fresh_cache():  # or what another run compiled would hide what it costs
        result = write_growing(args.output, measure(args), make_markdown)
    return 0 if all(row["finite"] for row in result["rows"]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
