"""The reference script and this package are timed in turns: the same weights, the same inputs, one process.

``--script`` names zai-org/CogVideo's ``inference/ddim_inversion.py``, which runs as it is. On a CPU the bundled tiny
model is measured in CPU time on one thread; ``--full-size`` is CogVideoX-5B's exact architecture with random weights.
Sampling and prompt encoding count, the VAE does not.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddim_lightning.diffusion.editors import KVInjection
from ddim_lightning.diffusion.inversion import Inversion
from ddim_lightning.diffusion.inverters import DDIM
from ddim_lightning.diffusion.sampling import edit_together
from ddim_lightning.engine.engine import InversionEngine
from ddim_lightning.models.loading import Components
from ddim_lightning.types import Branch, EditRequest

from .arguments import add_attention, make_parser, read_count
from .deadline import Deadline
from .edit_report import make_table
from .environment import read_block
from .loading import EDITOR, PROMPTS, TINY, copy_parts, load_parts, make_engine, make_prompts, name_model
from .measuring import name_clock, read_clock, relative_l2
from .output import tell_left_out, tell_origin, write_growing
from .reference_script import Reference, apply_block_compile, load_script

SCHEMA = "ddim-lightning/versus-reference/2"
GUIDANCE_SCALE = 6.0
SCRIPT, COMPILED_SCRIPT = "script", "script, blocks compiled"
"""Names of the two ways to run the script."""
ROWS, TIMESTEP, PASSES, FULL_PASSES = (1, 2, 4), 500, 20, 1
"""Rows of the passes that are compared alone, their timestep, and passes of a sample, and of one at full size."""

GOALS = (
    ("inversion step", "inversion", "eager", SCRIPT, 1.8),
    ("inversion step", "inversion", "compiled", SCRIPT, 2.0),
    ("end to end, the script's four rows", "four rows", "eager", SCRIPT, 1.35),
    ("end to end, the script's four rows", "four rows", "compiled", SCRIPT, 1.5),
    ("end to end, shared row", "shared row", "compiled", SCRIPT, 1.65),
    ("end to end, the script's four rows", "four rows", "compiled", COMPILED_SCRIPT, 1.25),
    ("four edits of one inversion, one pass", "four prompts", "compiled", SCRIPT, 3.0),
    ("end to end, the default edit, which reads no inversion", "default edit", "compiled", SCRIPT, 2.5),
    ("end to end, shared row, what may change alone under a mask", "masked edit", "compiled", SCRIPT, 1.9),
)
"""(what, case, our variant, against, at least how many times as fast) on a CPU with the tiny model."""


@dataclass(frozen=True)
class Case:
    """A `Case` is one thing to time.

    Args:
        name: ``variant: case``.
        run: Does it once.
    """

    name: str
    run: Callable[[], Any]


EDITORS = {
    "four rows": KVInjection(source_rows="paired", initial="random"),
    "shared row": KVInjection(source_rows="shared", initial="random"),
}
"""What the script does on its way down, from noise: with its four rows, and with three."""
MASKED = KVInjection(source_rows="shared", initial="random", outside="source")
MASKED_SHARE = 0.2
"""What the edit under a mask does, and the share of every frame inside."""


def make_cases(reference: Reference, engines: dict[str, InversionEngine], inputs: dict[str, Tensor]) -> list[Case]:
    """List what is timed; prompts are encoded anew every time, as the script does."""
    latents, noise, trajectory = inputs["latents"], inputs["noise"], inputs["trajectory"]

    def invert(engine: InversionEngine) -> Any:
        engine.prompts.clear_cache()
        return engine.invert(latents)

    def edit(engine: InversionEngine, inversion: Any, prompts: Sequence[str], mask: Tensor | None = None) -> Any:
        engine.prompts.clear_cache()
        requests = [EditRequest(prompt, guidance_scale=GUIDANCE_SCALE, mask=mask) for prompt in prompts]
        generators = [torch.Generator().manual_seed(0) for _ in requests]
        return edit_together(engine.edit_denoiser, inversion, engine.editor, requests, generators=generators)

    cases = [
        Case(f"{SCRIPT}: inversion", lambda: reference.invert(latents)),
        Case(f"{SCRIPT}: edit", lambda: reference.edit(noise, trajectory, PROMPTS[0])),
    ]
    for name, engine in engines.items():
        variant, _, rows = name.partition(", ")
        inversion = engine.invert(latents)
        if rows == "four rows":
            cases.append(Case(f"{variant}: inversion", lambda engine=engine: invert(engine)))  # type: ignore[misc]
        cases.append(
            Case(
                f"{variant}: edit, {rows}",
                lambda engine=engine, inversion=inversion: edit(engine, inversion, PROMPTS[:1]),  # type: ignore[misc]
            )
        )
        if rows == "shared row":
            cases.append(
                Case(
                    f"{variant}: four edits, one pass",
                    lambda engine=engine, inversion=inversion: edit(engine, inversion, PROMPTS),  # type: ignore[misc]
                )
            )
            masked, default = replace(engine, editor=MASKED), replace(engine, editor=EDITOR)
            mask, clean = make_mask(latents), Inversion.of_clean(latents, engine.schedule, engine.inverter)
            cases += [
                Case(f"{variant}: edit under a mask", partial(edit, masked, inversion, PROMPTS[:1], mask)),
                Case(f"{variant}: default edit", partial(edit, default, clean, PROMPTS[:1])),
            ]
    return cases


def make_mask(latents: Tensor) -> Tensor:
    """Make a mask of `MASKED_SHARE` of every frame: whole rows of patches from the top."""
    _, frames, _, height, width = latents.shape
    mask = torch.zeros(1, frames, 1, height, width)
    mask[..., : 2 * round(MASKED_SHARE * height / 2), :] = 1.0
    return mask.to(latents)


def combine(samples: Mapping[str, list[float]]) -> dict[str, dict[str, list[float]]]:
    """Return, for each variant and case, the seconds of every round; the last may have been left out of some."""
    both: dict[str, dict[str, list[float]]] = {}
    for variant in dict.fromkeys(name.partition(": ")[0] for name in samples):
        up = samples[f"{variant}: inversion"]

        def end(edit: str, up: list[float] = up, variant: str = variant) -> list[float]:
            return [a + b for a, b in zip(up, samples[f"{variant}: {edit}"], strict=False)]

        both[variant] = {"inversion": up}
        if variant in (SCRIPT, COMPILED_SCRIPT):
            both[variant] |= dict.fromkeys(("four rows", "shared row", "masked edit", "default edit"), end("edit"))
            # One run of the script makes one edit.
            both[variant]["four prompts"] = [len(PROMPTS) * value for value in end("edit")]
        else:
            both[variant] |= {rows: end(f"edit, {rows}") for rows in EDITORS}
            both[variant]["four prompts"] = end("four edits, one pass")
            both[variant]["masked edit"] = end("edit under a mask")
            both[variant]["default edit"] = samples[f"{variant}: default edit"]
    return both


def compare(times: dict[str, dict[str, list[float]]], variant: str, against: str, case: str) -> dict[str, Any]:
    """Return the ratio of every round and their median: what the script needs over what we need."""
    pairs = zip(times[against][case], times[variant][case], strict=False)
    ratios = [theirs / ours for theirs, ours in pairs]
    return {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios), "rounds": ratios}


def time_equal_rows(
    parts: Components, engine: InversionEngine, inputs: dict[str, Tensor], count: int, rounds: int, passes: int
) -> dict[str, Any]:
    """Time our forward pass and diffusers' on the same rows, in turns: the part of a ratio that is not fewer rows.

    Both evaluate all rows of one pass, whose velocities are all needed, and nothing is read.

    Args:
        parts: The model, with diffusers' own processors.
        engine: Ours, eager.
        inputs: Latents of one row.
        count: Rows of a pass.
        rounds: Timed rounds, after one that warms up.
        passes: Of a sample.

    Returns:
        The ratio of every round, their median, and the relative L2 distance of the velocities.
    """
    transformer, device = parts.transformer, inputs["latents"].device
    latents = inputs["latents"].to(transformer.dtype).expand(count, -1, -1, -1, -1).contiguous()
    embeds = engine.prompts(PROMPTS[0]).to(transformer.dtype).expand(count, -1, -1).contiguous()
    table = engine.network.get_rotary(latents)
    rotary = None if table is None else (table[0][embeds.shape[1] :], table[1][embeds.shape[1] :])
    timestep = torch.full((count,), TIMESTEP, device=device)

    def ours() -> Tensor:
        return engine.network(latents, embeds, TIMESTEP)

    def theirs() -> Tensor:
        velocity: Tensor = transformer(latents, embeds, timestep, image_rotary_emb=rotary, return_dict=False)[0]
        return velocity

    ratios = []
    for turn in range(rounds + 1):
        spent = {}
        for act in (ours, theirs) if turn % 2 else (theirs, ours):
            start = read_clock(device)
            for _ in range(passes):
                act()
            spent[act.__name__] = read_clock(device) - start
        if turn:
            ratios.append(spent["theirs"] / spent["ours"])
    return {
        "rows": count,
        "median": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "rounds": ratios,
        "relative_l2": relative_l2(ours().float(), theirs().float()),
    }


def measure_deviation(reference: Reference, engine: InversionEngine, inputs: dict[str, Tensor]) -> dict[str, float]:
    """Return the relative L2 distance of our guided velocity to the script's, in one step on the same latents.

    The first, the middle and the last step; and the whole inversion, which adds up what every step rounds.
    """
    found, schedule = {}, engine.schedule
    for i in sorted({0, len(schedule) // 2, len(schedule) - 1}):
        source = inputs["trajectory"][len(schedule) - 1 - i].float()
        theirs = reference.predict_pair(inputs["noise"], source, schedule[i].timestep, PROMPTS[0])
        branches = [
            Branch(inputs["noise"], PROMPTS[0], "", GUIDANCE_SCALE, kv_source=1),
            Branch(source, PROMPTS[0], "", GUIDANCE_SCALE, needs_velocity=False),
        ]
        (ours, _) = engine.denoiser(branches, schedule[i])
        assert ours is not None
        found[f"guided velocity, step {i}"] = relative_l2(ours, theirs)
    inverted = engine.invert(inputs["latents"]).levels[0]
    found["inverted latent"] = relative_l2(inverted, inputs["trajectory"][-1].float())
    return found


@torch.no_grad()
def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Time all cases in turns, every second round backwards; yield the result each time it has grown, JSON-ready.

    A first round warms up. Times are CPU time of the process on a CPU, which other programs of the machine disturb
    least; wall time on a GPU.
    """
    deadline, device = Deadline(args.budget), torch.device(args.device)
    parts, script = load_parts(args), load_script(args.script)
    tokens = args.text_tokens or parts.transformer.config.max_text_seq_length
    size = (1, args.frames, parts.transformer.config.in_channels, *args.size)
    generator = torch.Generator().manual_seed(args.seed)
    inputs = {name: torch.randn(size, generator=generator).to(device) for name in ("latents", "noise")}
    prompts = make_prompts(parts, device, args.seed)
    reference = Reference(script, parts, prompts.load(), args.steps, GUIDANCE_SCALE, tokens)
    inputs["trajectory"] = reference.invert(inputs["latents"])
    variants = ("eager",) if args.no_compile else ("eager", "compiled")
    engines = {
        f"{variant}, {rows}": make_engine(
            parts,
            args.steps,
            prompts=prompts,
            inverter=DDIM(),
            editor=editor,
            attention=args.attention,
            compiled=variant == "compiled",
        )
        for variant in variants
        for rows, editor in EDITORS.items()
    }
    deviations = {
        variant: measure_deviation(reference, engines[f"{variant}, four rows"], inputs) for variant in variants
    }
    cases = make_cases(reference, engines, inputs)
    if not args.full_size and not args.no_compile:
        # A model of its own: its compiled blocks must not serve the script as it is. One for each direction, since a
        # swap of processors compiles anew.
        for direction in ("inversion", "edit"):
            compiled = Reference(script, copy_parts(parts), prompts.load(), args.steps, GUIDANCE_SCALE, tokens)
            cases.append(_make_compiled_case(compiled, direction, inputs))
    samples: dict[str, list[float]] = {case.name: [] for case in cases}
    equal_rows: list[dict[str, Any]] = []
    turns: list[tuple[int, Case | int]] = [
        (turn, case) for turn in range(args.rounds + 1) for case in cases[:: 1 if turn % 2 else -1]
    ]
    turns += [(0, count) for count in ROWS]
    for turn, case in deadline.take(turns, tell_turn):
        print(tell_turn((turn, case)), flush=True)
        if isinstance(case, Case):
            start = read_clock(device)
            case.run()
            spent = read_clock(device) - start
            if turn:
                samples[case.name].append(spent)
        else:
            passes = FULL_PASSES if args.full_size else PASSES
            equal_rows.append(time_equal_rows(parts, engines["eager, four rows"], inputs, case, args.rounds, passes))
        if ratios := make_ratios(samples):
            yield {
                "schema": SCHEMA,
                "environment": read_block(args.commit),
                "settings": {
                    "model": name_model(args),
                    "script": args.script.name,
                    "latents": size,
                    "text_tokens": tokens,
                    "clock": name_clock(device),
                    **{
                        name: getattr(args, name)
                        for name in ("steps", "rounds", "dtype", "device", "attention", "seed")
                    },
                },
                "deviations": deviations,
                "samples_s": {name: found for name, found in samples.items() if found},
                "ratios": ratios,
                "equal_rows": equal_rows,
                **tell_left_out(deadline),
            }


def tell_turn(turn: tuple[int, Case | int]) -> str:
    """Return the name of a round of a case, or of passes over a number of equal rows."""
    number, case = turn
    return f"round {number} of {case.name}" if isinstance(case, Case) else f"{case} equal rows"


def make_ratios(samples: Mapping[str, list[float]]) -> list[dict[str, Any]]:
    """Compare what `GOALS` name, as far as both sides have been timed."""
    times = combine(samples)
    return [
        {"what": what, "case": case, "variant": variant, "against": against, **compare(times, variant, against, case)}
        for what, case, variant, against, _ in GOALS
        if times.get(against, {}).get(case) and times.get(variant, {}).get(case)
    ]


def _make_compiled_case(reference: Reference, direction: str, inputs: dict[str, Tensor]) -> Case:
    transformer = reference.pipeline.transformer
    if direction == "inversion":
        apply_block_compile(transformer.transformer_blocks)
        return Case(f"{COMPILED_SCRIPT}: inversion", lambda: reference.invert(inputs["latents"]))
    for block in transformer.transformer_blocks:
        block.attn1.set_processor(reference.script.CogVideoXAttnProcessor2_0ForDDIMInversion())
    apply_block_compile(transformer.transformer_blocks)
    return Case(
        f"{COMPILED_SCRIPT}: edit",
        lambda: reference.edit(inputs["noise"], inputs["trajectory"], PROMPTS[0], compiled=True),
    )


def make_markdown(result: Mapping[str, Any]) -> str:
    """Write the report that a person reads."""
    settings, goals = result["settings"], {goal[:4]: goal[4] for goal in GOALS}
    on_goal = (settings["model"], settings["device"], settings["dtype"]) == (TINY, "cpu", "float32")
    rows = []
    for ratio in result["ratios"]:
        goal = goals[ratio["what"], ratio["case"], ratio["variant"], ratio["against"]]
        rows.append(
            (
                ratio["what"],
                ratio["variant"],
                ratio["against"],
                f"{ratio['median']:.2f}",
                f"{ratio['lowest']:.2f} - {ratio['highest']:.2f}",
                (f"{goal:g} {'met' if ratio['median'] >= goal else 'NOT MET'}") if on_goal else "",
            )
        )
    deviations = [
        (name, *(f"{found[name]:.1e}" for found in result["deviations"].values()))
        for name in result["deviations"]["eager"]
    ]
    sizes = " x ".join(map(str, settings["latents"]))
    measured = (
        f"{settings['model']}, latents {sizes}, {settings['text_tokens']} text tokens, {settings['steps']} steps "
        f"each way, {settings['dtype']}, guidance {GUIDANCE_SCALE:g}; clock: {settings['clock']}; {settings['rounds']} "
        "rounds in turns. How many times as fast as the script:"
    )
    explained = (
        "*End to end* is prompt encoding, inversion and one edit, without the VAE. The shared row is another method: "
        "one source row instead of the script's two. *Four edits* stand against four runs of the script. An inversion "
        "step of the script evaluates two equal rows and ours one, which gives the same numbers: only a part of that "
        "ratio is the forward pass."
    )
    if any(ratio["case"] == "masked edit" for ratio in result["ratios"]):
        explained += (
            f" *Under a mask* of {MASKED_SHARE:.0%} of every frame the shared row's edit is evaluated inside alone; "
            "the script knows no masks. *The default edit* is what is recommended for the tiny model, at the script's "
            "guidance."
        )
    equal = [
        (str(r["rows"]), f"{r['median']:.2f}", f"{r['lowest']:.2f} - {r['highest']:.2f}", f"{r['relative_l2']:.1e}")
        for r in result.get("equal_rows", ())
    ]
    alone = (
        "",
        "## Our forward pass against diffusers' at equal rows",
        "",
        "One eager pass over the same rows, in turns. How many times as fast as diffusers' own:",
        "",
        *make_table(("rows", "median", "lowest - highest", "distance"), equal),
    )
    return "\n".join(
        [
            "# The reference script and this package, side by side",
            "",
            tell_origin(result),
            "",
            measured,
            "",
            *make_table(("what", "ours", "against", "median", "lowest - highest", "goal"), rows),
            "",
            explained,
            "",
            "Relative L2 distance to the script on the same inputs, guidance applied:",
            "",
            *make_table(("what", *result["deviations"]), deviations),
            *(alone if equal else ()),
            "",
        ]
    )


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser("versus_reference", __doc__)
    parser.add_argument("--script", type=Path, required=True, help="path of the reference's ddim_inversion.py")
    parser.add_argument("--no-compile", action="store_true", help="leave out what is compiled, ours and the script's")
    parser.add_argument("--steps", type=read_count, default=50, help="steps of each direction (50)")
    parser.add_argument("--rounds", type=read_count, default=8, help="timed rounds, after one that warms up (8)")
    parser.add_argument("--text-tokens", type=int, help="tokens of the script's prompts (the model's own length)")
    parser.add_argument("--frames", type=int, help="latent frames (the model's own)")
    parser.add_argument("--size", type=int, nargs=2, help="latent height and width (the model's own)")
    add_attention(parser)
    args = parser.parse_args(argv)
    args.frames = args.frames or (13 if args.full_size else 3)
    args.size = args.size or ((60, 90) if args.full_size else (16, 16))
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the report and write it."""
    args = read_arguments(argv)
    write_growing(args.output, measure(args), make_markdown)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
