"""The benchmark says what a step cache saves and what it costs, on edits whose truth is known to the pixel.

Editors run without a cache, with a larger ``eval_every`` where they have one, and with caches of several thresholds, on
the same clips from the same inversions and noise, with the tiny model on a CPU.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ddim_lightning.data.streams import make_generator
from ddim_lightning.diffusion.editors import Editor
from ddim_lightning.engine.trajectory import digest_model
from ddim_lightning.types import Latents

from .arguments import add_output, read_count
from .edit_quality import Clip, Engines, measure_video, sum_psnr
from .edit_report import make_table
from .edit_set import SPLITS, ShapesEdit, make_edit_set
from .edit_variants import (
    DEFAULT,
    DEFAULT_GUIDANCE,
    IN_CONTEXT,
    IN_CONTEXT_GUIDANCE,
    INJECTION,
    VARIANTS,
    Variant,
)
from .environment import read_block
from .measuring import relative_l2
from .output import tell_origin, write_files
from .plots import Line, plot_limits
from .records import merge_records, open_records

SCHEMA = "ddim-lightning/step-cache/2"
NO_CACHE = "no cache"
NOTES = (
    "- PSNR in dB against the rendered truth, from one mean squared error over all edits, over the *whole* frame and",
    "  *outside* the objects; *dB* is the change of the whole frame's.",
    "- *NFE* are those of the edit, *with inversion* those of its inversion, too.",
    "- *Edited* is the share of the words to change that the classifier then sees.",
    "- *Distance* is the relative L2 distance of the latents to those of the edit without a cache.",
    "- *Seconds* are processor time of the edit, on one thread.",
    "- *eval_every n* is the editor with that option, without a cache.",
)
LOSS_DB = 1.0
"""What a cache may lose."""


class Setting(NamedTuple):
    """A `Setting` is one way to run a case: its name, the editor, and the threshold of a cache if there is one."""

    name: str
    editor: Editor
    threshold: float | None = None


@dataclass(frozen=True)
class Case:
    """A `Case` is an editor with and without a step cache.

    Args:
        variant: How the clip is inverted, and the editor.
        guidance: Guidance scale.
        thresholds: Of the caches.
        eval_every: Of the editor without a cache, beside its own; ``None`` for an editor that has no such option.
    """

    variant: Variant
    guidance: float
    thresholds: tuple[float, ...]
    eval_every: int | None = None

    @property
    def settings(self) -> list[Setting]:
        """Without a cache, with fewer steps evaluated by the editor itself, and with each cache."""
        editor: Any = self.variant.editor
        found, every = [Setting(NO_CACHE, editor)], self.eval_every
        if every is not None:
            found.append(Setting(f"eval_every {every}", replace(editor, eval_every=every)))
        return found + [Setting(f"{threshold:g}", editor, threshold) for threshold in self.thresholds]


def _take_own_form(variant: Variant) -> Variant:
    return replace(variant, editor=variant.editor.fast())


CASES = {
    DEFAULT: Case(VARIANTS[DEFAULT], DEFAULT_GUIDANCE, (0.3, 0.5, 0.7), eval_every=4),
    "Denoise": Case(VARIANTS["plain inversion"], 3.0, (0.2, 0.3, 0.5, 0.8)),
    "DirectInversion": Case(VARIANTS["DirectInversion"], 3.0, (0.2, 0.3, 0.5, 0.8)),
    INJECTION: Case(_take_own_form(VARIANTS[INJECTION]), 6.0, (0.2, 0.3, 0.5, 0.8), eval_every=2),
    "in context, 4 steps": Case(VARIANTS[IN_CONTEXT], IN_CONTEXT_GUIDANCE, (0.8, 1.2)),
    "in context, 10 steps": Case(VARIANTS["in context, 10 steps"], IN_CONTEXT_GUIDANCE, (0.3, 0.5, 0.8)),
}
"""By name; K/V injection in the form that `fast` takes, which reads the source in the noisier half of the steps."""


@torch.inference_mode()
def measure_edit(engines: Engines, edit: ShapesEdit) -> dict[str, dict[str, Any]]:
    """Make all videos of one edit, and compare them with its truth and with the edit without a cache."""
    clip, rows = Clip(engines, edit), dict[str, dict[str, Any]]()
    seed = make_generator(0, edit.id, 0).initial_seed()
    for name, case in CASES.items():
        exact: Latents | None = None
        inversion, _ = clip.find_inversion(case.variant, seed)
        for setting in case.settings:
            variant = replace(case.variant, editor=setting.editor, step_cache=setting.threshold)
            engine = engines.prepare(variant)
            before, start = engine.nfe, time.process_time()
            latents = engine.edit(inversion, clip.make_request(variant, case.guidance), seed=seed)
            seconds = time.process_time() - start
            exact = latents if exact is None else exact
            measured = measure_video(clip.engine.decode(latents), edit)
            rows[f"{name}/{setting.name}"] = {
                **measured,
                "edited": [measured["seen"][word] == getattr(edit.target, word) for word in edit.changed],
                "inversion_nfe": inversion.nfe,
                "nfe": engine.nfe - before,
                "seconds": seconds,
                "relative_l2": relative_l2(latents, exact),
            }
    return rows


def summarize(name: str, case: Case, records: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Return the rows of a case, JSON-ready."""
    rows = []
    for setting in case.settings:
        found = [record[f"{name}/{setting.name}"] for record in records]
        words = [right for one in found for right in one["edited"]]
        psnr = sum_psnr(found)
        rows.append(
            {
                "setting": setting.name,
                "threshold": setting.threshold,
                "edited": sum(words) / len(words),
                **{f"{region}_db": psnr[region] for region in ("whole", "outside")},
                **{
                    cost: sum(one[cost] for one in found) / len(found)
                    for cost in ("nfe", "inversion_nfe", "seconds", "relative_l2")
                },
            }
        )
    return {"name": name, "guidance": case.guidance, "editor": repr(case.variant.editor), "rows": rows}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the edits of which there is no record yet, and return the result, JSON-ready."""
    torch.set_num_threads(args.threads)
    engines, edits = Engines("tiny", args.steps), make_edit_set(args.split, args.edits)
    settings = {
        "model": "tiny",
        "weights": digest_model(engines.plain.components, engines.plain.device),
        "split": args.split,
        "steps": args.steps,
        "cases": {name: repr(case) for name, case in CASES.items()},
    }
    records, known = open_records(args.records, settings), merge_records(args.records, settings)
    for edit in edits:
        if edit.id not in known:
            records.add(edit.id, measure_edit(engines, edit))
            print(edit.id, flush=True)
    known = merge_records(args.records, settings)
    return {
        "schema": SCHEMA,
        "environment": read_block(args.commit),
        "settings": {**{name: settings[name] for name in ("model", "split", "steps")}, "edits": len(edits)},
        "cases": [summarize(name, case, [known[edit.id] for edit in edits]) for name, case in CASES.items()],
    }


def compare(case: Mapping[str, Any], row: Mapping[str, Any]) -> tuple[float, float]:
    """Return how many times fewer evaluations a row of a case takes for its edit, and the dB that it gains."""
    exact = case["rows"][0]
    return exact["nfe"] / row["nfe"], row["whole_db"] - exact["whole_db"]


def find_best(case: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the cache that saves most at a loss of at most `LOSS_DB`; without a cache where there is none."""
    fitting = [row for row in case["rows"][1:] if row["threshold"] and compare(case, row)[1] >= -LOSS_DB]
    return min(fitting, key=lambda row: float(row["nfe"]), default=case["rows"][0])


def make_markdown(result: Mapping[str, Any]) -> str:
    """Write the report that a person reads."""
    settings = result["settings"]
    rows, best = [], []
    for case in result["cases"]:
        for row in case["rows"]:
            fewer, gained = compare(case, row)
            rows.append(
                (
                    case["name"],
                    row["setting"],
                    f"{row['nfe']:.0f}",
                    f"{fewer:.2f}",
                    f"{row['whole_db']:.2f}",
                    f"{gained:+.2f}",
                    f"{row['outside_db']:.2f}",
                    f"{row['edited']:.0%}",
                    f"{row['relative_l2']:.1e}",
                    f"{row['inversion_nfe'] + row['nfe']:.0f}",
                    f"{row['seconds']:.2f}",
                )
            )
        fewer, gained = compare(case, found := find_best(case))
        best.append((case["name"], found["setting"], f"{fewer:.2f}", f"{gained:+.2f}"))
    head = (
        *(
            "editor",
            "threshold",
            "NFE",
            "times fewer",
            "whole",
            "dB",
            "outside",
            "edited",
            "distance",
            "with inversion",
        ),
        "seconds",
    )
    said = f"{settings['edits']} edits of the {settings['split']} set, model {settings['model']}"
    lines = [
        "# What a step cache saves, and what it costs",
        "",
        tell_origin(result),
        "",
        f"{said}; edits that have no steps of their own in {settings['steps']} steps.",
        "",
        *NOTES,
        "",
        "## Thresholds",
        "",
        *make_table(head, rows),
        "",
        f"## The most that is saved at a loss of at most {LOSS_DB:g} dB",
        "",
        *make_table(("editor", "threshold", "times fewer NFE", "dB"), best),
        "",
        "![Decibels against evaluations saved](frontier.png)",
    ]
    return "\n".join(lines) + "\n"


def write_plots(folder: Path, result: Mapping[str, Any]) -> None:
    """Draw what each cache costs against what it saves."""
    lines = []
    for case, dash in zip(result["cases"], cycle(("-", "--", ":"))):
        caches = [case["rows"][0], *(row for row in case["rows"] if row["threshold"])]
        fewer, gained = zip(*(compare(case, row) for row in caches), strict=True)
        lines.append(Line(case["name"], fewer, gained, dash))
    plot_limits(
        folder / "frontier.png",
        lines,
        {f"{LOSS_DB:g} dB lost": -LOSS_DB},
        title="What a step cache costs, against what it saves",
        x_label="times fewer evaluations for the edit",
        y_label="change of the PSNR over the whole frame (dB)",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="ddim-lightning benchmark step_cache", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--split", choices=SPLITS, default="dev", help="choose on dev, report on test (dev)")
    parser.add_argument("--edits", type=read_count, default=20, help="how many, the kinds in turn (20)")
    parser.add_argument("--steps", type=read_count, default=50, help="of inversions, and of edits from them (50)")
    parser.add_argument("--threads", type=read_count, default=1, help="CPU threads (1)")
    parser.add_argument("--records", type=Path, required=True, metavar="DIR", help="keeps what is measured, to go on")
    add_output(parser)
    args = parser.parse_args(argv)
    result = measure(args)
    report = make_markdown(result)
    write_files(args.output, result, report, write_plots)
    print(report, end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
