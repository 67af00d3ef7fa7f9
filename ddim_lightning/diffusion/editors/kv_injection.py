"""K/V injection: the edited video also attends to the keys and values of the source's trajectory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from ddim_lightning.diffusion.editors.base import Editor, EditState
from ddim_lightning.diffusion.guidance import SCHEDULES
from ddim_lightning.diffusion.trajectory import Inversion
from ddim_lightning.types import Branch, EditRequest, Step, Strength


@dataclass(frozen=True)
class KVInjection(Editor):
    """The reference script's idea, started from the inverted latent and told what the source shows.

    At every step the latents of the stored trajectory pass through the network beside the edited ones, and the edited
    rows attend to their own and to the source's keys and values. The source's latents are always those of the
    trajectory: no error of the source branch can accumulate. Its keys and values are recomputed, never cached: for
    CogVideoX-5B at 49 x 480 x 720 they would take 9 GB a step.

    Args:
        layers: Half-open range of layers that read the source; ``None`` as the end is the last layer.
        steps: Half-open range of steps, counted from noise; outside it the source is not evaluated at all.
        strength: 0 (reads nothing) .. 1 (the script): log(strength) is added to the logits of the source's keys.
        source_rows: ``shared``: one source row under the source prompt, or the inversion's own prompt when there is
            none, read by all rows of the edit. ``paired``: the script's layout, one source row per row of the edit,
            under the negative and the edit prompt.
        initial: ``inverted`` starts from level 0 of the trajectory, ``random`` (the script) from fresh noise.
        guidance: ``constant``, or ``script_dynamic`` for parity with the script's ``use_dynamic_cfg``.

    Raises:
        ValueError: An option out of its range.

    Source: zai-org/CogVideo, ``inference/ddim_inversion.py``; compare Cao et al. 2023, "MasaCtrl", arXiv:2304.08465.
    """

    layers: tuple[int, int | None] = (0, None)
    steps: tuple[int, int | None] = (0, None)
    strength: float = 1.0
    source_rows: Literal["shared", "paired"] = "shared"
    initial: Literal["inverted", "random"] = "inverted"
    guidance: Literal["constant", "script_dynamic"] = "constant"

    def __post_init__(self) -> None:
        if not 0.0 <= self.strength <= 1.0:
            raise ValueError(f"strength: must lie in 0 .. 1, got {self.strength}")
        for name, (first, end) in (("layers", self.layers), ("steps", self.steps)):
            if first < 0 or (end is not None and end < first):
                raise ValueError(f"{name}: must be a range with 0 <= first <= end, got {(first, end)}")
        for name, value, allowed in (
            ("source_rows", self.source_rows, ("shared", "paired")),
            ("initial", self.initial, ("inverted", "random")),
            ("guidance", self.guidance, tuple(SCHEDULES)),
        ):
            if value not in allowed:
                raise ValueError(f"{name}: must be one of {', '.join(allowed)}, got {value!r}")

    def check(self, num_layers: int, num_steps: int) -> None:  # noqa: D102
        for name, (first, end), size in (("layers", self.layers, num_layers), ("steps", self.steps, num_steps)):
            if max(first + 1 if end is None else first, end or 0) > size:
                raise ValueError(f"editor.{name}: must end within the {size} that there are, got {(first, end)}")

    def start(  # noqa: D102
        self, inversion: Inversion, request: EditRequest, generator: torch.Generator | None, num_layers: int
    ) -> EditState:
        latents = inversion.state[0]
        if self.initial == "random":
            # Drawn on the CPU, so that a seed means the same noise on every device.
            latents = torch.randn(latents.shape, generator=generator, dtype=latents.dtype).to(latents.device)
        return EditState(latents, request, num_layers)

    def branches(self, state: EditState, step: Step, inversion: Inversion) -> tuple[list[Branch], Strength | None]:  # noqa: D102
        request, strength = state.request, self._strength(state.num_layers, step, len(inversion.table))
        scale = SCHEDULES[self.guidance](request.guidance_scale, step, inversion.table)
        target = Branch(
            state.latents, request.prompt, request.negative_prompt, scale, reads=None if strength is None else 1
        )
        if strength is None:
            return [target], None
        source = inversion.levels[step.i]
        if self.source_rows == "paired":
            return [target, Branch(source, request.prompt, request.negative_prompt, scale, wanted=False)], strength
        told = inversion.prompt if request.source_prompt is None else request.source_prompt
        return [target, Branch(source, told, wanted=False)], strength

    def count_calls(self, request: EditRequest, num_steps: int) -> int:  # noqa: D102
        guided = 1 if request.guidance_scale == 1.0 else 2
        source = guided if self.source_rows == "paired" else 1
        reads = self.strength > 0.0 and self.layers[0] != self.layers[1]
        reading = len(range(num_steps)[slice(*self.steps)]) if reads else 0
        return guided * num_steps + source * reading

    def _strength(self, num_layers: int, step: Step, num_steps: int) -> Strength | None:
        """Return the strength per layer at this step, ``None`` where no layer reads."""
        strength = torch.zeros(num_layers)
        strength[slice(*self.layers)] = self.strength
        return strength if step.i in range(num_steps)[slice(*self.steps)] and strength.any() else None
