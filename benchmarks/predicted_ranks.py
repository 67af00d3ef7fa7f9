"""Predicts how much less work each process has when several share a clip, for CogVideoX-5B at 49 x 480 x 720.

The passes are those that inverters and editors ask for, their rows are split as `plan_rows` splits them, and their work
is the closed form of `benchmarks.flops`. Nothing is measured: what processes tell each other is not counted, nor that
a GPU may be less busy with fewer rows.

    python -m benchmarks.predicted_ranks
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.flops import count_hold, count_pass, make_sizes
from benchmarks.published import COGVIDEOX_5B_TRANSFORMER
from ddim_lightning.diffusion.editors import Editor, FlowEdit, InContextEdit, KVInjection
from ddim_lightning.diffusion.inversion import Inversion
from ddim_lightning.diffusion.inverters import DDIM
from ddim_lightning.diffusion.sampling import edit_together, invert, make_contexts
from ddim_lightning.models.schedulers import COGVIDEOX_5B_SCHEDULER, make_noise_schedule, make_schedulers
from ddim_lightning.network.denoiser import CogVideoXDenoiser
from ddim_lightning.network.held import Held, HeldOnDevice
from ddim_lightning.network.split_rows import plan_rows
from ddim_lightning.types import EditRequest

STEPS, RANKS = 50, (2, 4)
SIZES = make_sizes(COGVIDEOX_5B_TRANSFORMER)
CASES: dict[str, tuple[Editor, int, float]] = {
    "`FlowEdit`, guided": (FlowEdit(), 1, 6.0),
    "`FlowEdit`, two noises, guided": (FlowEdit(num_noise_samples=2), 1, 6.0),
    "`KVInjection`, one source row, guided": (KVInjection(initial="random"), 1, 6.0),
    "`KVInjection`, paired rows, guided": (KVInjection(initial="random", source_rows="paired"), 1, 6.0),
    "`KVInjection`, four prompts in one pass, guided": (KVInjection(initial="random"), 4, 6.0),
    "`InContextEdit`, not guided": (InContextEdit(), 1, 1.0),
    "`InContextEdit`, guided": (InContextEdit(), 1, 6.0),
}
"""Editor, prompts and guidance scale."""


@dataclass
class CountedRows:
    """A `CountedRows` stands where the network does, evaluates nothing, and counts the work of one process.

    Args:
        ranks: How many processes share the rows of a pass; the work is that of the busiest.
    """

    ranks: int
    dtype: torch.dtype = torch.float32
    num_layers: int = SIZES.layers
    in_channels: int = SIZES.in_channels
    passes: list[int] = field(default_factory=list)
    """Operations of each pass so far."""

    def __call__(self, latents: Tensor, prompt_embeds: Tensor, timestep: int, **layout: Any) -> Tensor:
        """Count the busiest share of a pass; see `Network`."""
        wanted, held = layout["wanted"], layout["held"]
        kv_scale = layout["kv_scale"]
        shares = [(latents.shape[0], wanted, layout["reads"])]
        if self.ranks > 1:
            shares = [(len(one.rows), one.wanted, one.reads) for one in plan_rows(wanted, layout["reads"], self.ranks)]
        counted = [
            count_pass(SIZES, rows, wanted=kept, reads=reads, kv_scale=kv_scale, held=held is not None).total
            for rows, kept, reads in shares
        ]
        self.passes.append(max(counted))
        return torch.zeros_like(latents[:wanted])

    def hold(self, latents: Tensor, prompt_embeds: Tensor, timestep: int) -> Held:
        """Count what every process evaluates; see `Network.hold`."""
        self.passes.append(count_hold(SIZES, latents.shape[0]).total)
        nothing = torch.zeros(latents.shape[0], 0, 1, 1)
        return HeldOnDevice([(nothing, nothing)] * SIZES.layers)


@torch.no_grad()
def count_job(editor: Editor, prompts: int, guidance_scale: float, ranks: int) -> tuple[int, int]:
    """Count the work of the busiest process: of the first step of an edit, and of an inversion and all edits.

    Args:
        editor: The editing method.
        prompts: How many edits are made in one pass.
        guidance_scale: Of the edits.
        ranks: How many processes share the clip.
    """
    rows, embeds = CountedRows(ranks), torch.zeros(1, 1, 1)
    denoiser = CogVideoXDenoiser(rows, lambda prompt: embeds)
    latents = torch.zeros(1, 1, SIZES.in_channels, 2, 2)  # their work is counted at full size
    schedule = make_noise_schedule(make_schedulers(COGVIDEOX_5B_SCHEDULER)[0], STEPS)
    requests = [EditRequest(f"edit {k}", source_prompt="source", guidance_scale=guidance_scale) for k in range(prompts)]
    inverter = DDIM()
    if any(editor.needs(request, schedule, inverter) == "levels" for request in requests):
        inversion = invert(denoiser, latents, schedule, inverter)
    else:
        inversion = Inversion.of_clean(latents, schedule, inverter, "", None)
    contexts = make_contexts(denoiser, inversion, editor, requests)
    before = len(rows.passes)
    generators = [torch.Generator().manual_seed(0) for _ in requests]
    edit_together(denoiser, inversion, editor, requests, generators=generators, contexts=contexts)
    return rows.passes[before], sum(rows.passes)


def make_table(cases: Sequence[str] = tuple(CASES)) -> str:
    """Make a Markdown table: work of one process over that of the busiest of several."""
    heads = [f"{what}, {ranks} GPUs" for what in ("edit step", "whole job") for ranks in RANKS]
    lines = [f"| {' | '.join(['edit', 'rows', *heads])} |", f"|---|{'---|' * (1 + len(heads))}"]
    for name in cases:
        alone = count_job(*CASES[name], 1)
        shared = [count_job(*CASES[name], ranks) for ranks in RANKS]
        ratios = [f"{alone[k] / one[k]:.2f}x" for k in (0, 1) for one in shared]
        row = count_pass(SIZES, 1).total
        lines.append(f"| {' | '.join([name, f'{alone[0] / row:.2f}', *ratios])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(make_table())
