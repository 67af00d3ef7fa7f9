"""K/V injection and direct inversion share a branch of the source beside the edit, with its keys and values."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace
from typing import Literal

import torch

from ddim_lightning.diffusion.editors.base import EditState, check_choice, check_kv_scale, get_source_prompt
from ddim_lightning.diffusion.editors.denoise import Denoise
from ddim_lightning.diffusion.editors.places import Range, check_fits, check_range, pick
from ddim_lightning.diffusion.inversion import Inversion
from ddim_lightning.diffusion.inverters.base import Inverter
from ddim_lightning.diffusion.schedule import NoiseSchedule
from ddim_lightning.types import Branch, EditRequest, KVScale, Latents, Needs, Step


@dataclass(frozen=True)
class SourceBranch(Denoise):
    """A `SourceBranch` editor passes the stored trajectory through the network beside the edit, which may attend to it.

    The source's latents are those of the trajectory at every step, so that no error of the source can accumulate. Its
    keys and values are recomputed, never cached: for CogVideoX-5B at 49 x 480 x 720 they would take 9 GB a step.

    Args:
        first_step: See `Editor`; likewise ``guidance``, ``guidance_steps``, ``negative`` and ``velocity_mask``.
        initial: See `Denoise`; likewise ``order``.
        layers: Half-open range of layers that attend to the source, by position or as shares; ``None`` as the end is
            the last layer.
        steps: Half-open range of steps that attend to the source, counted from noise, likewise.
        kv_scale: 0 (attends to nothing of the source) .. 1 (fully): log(kv_scale) is added to the logits of its keys.
        source_rows: ``shared``: the source is evaluated once, for all of the edit. ``paired``: the reference script's
            layout, once under the negative prompt and once under the source's text.
        source_text: Text of the source: ``source`` the source prompt, or the inversion's own prompt when there is none;
            ``inversion`` the inversion's own; ``edit`` the edit's; ``auto`` is ``edit`` for paired rows, as the script
            has it, and ``source`` for a shared one.
        outside: Whose tokens the network sees outside a mask: ``edit`` evaluates the edit's own there, too; ``source``
            takes those of the source, in every layer and at every step, and evaluates the edit inside alone, for less
            work.

    Raises:
        ValueError: An option out of its range.
    """

    layers: Range = (0, None)
    steps: Range = (0, None)
    kv_scale: float = 1.0
    source_rows: Literal["shared", "paired"] = "shared"
    source_text: Literal["auto", "source", "inversion", "edit"] = "auto"
    outside: Literal["edit", "source"] = "edit"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_kv_scale(self.kv_scale)
        check_range("layers", self.layers)
        check_range("steps", self.steps)
        check_choice("source_rows", self.source_rows, ("shared", "paired"))
        check_choice("source_text", self.source_text, ("auto", "source", "inversion", "edit"))
        check_choice("outside", self.outside, ("edit", "source"))

    def check(self, num_layers: int, num_steps: int) -> None:  # noqa: D102
        super().check(num_layers, num_steps)
        check_fits("layers", self.layers, num_layers)
        check_fits("steps", self.steps, num_steps)

    def branches(self, state: EditState, step: Step, inversion: Inversion) -> tuple[list[Branch], KVScale | None]:  # noqa: D102
        kv_scale = self._make_kv_scale(state.num_layers, step, len(inversion.schedule))
        mask = self.get_token_mask(state.request)
        if kv_scale is None and mask is not None:  # nothing is read of the source, which stands outside the mask
            kv_scale = torch.zeros(state.num_layers, dtype=torch.float32, device="cpu")
        kv_source = None if kv_scale is None else 1
        target = self.make_target(state.latents, state.request, step, inversion.schedule, kv_source)
        if kv_scale is None:
            return [target], None
        target = replace(target, mask=mask)
        source = self.make_source(inversion.levels[step.i], target, state.request, inversion)
        return [target, replace(source, needs_velocity=False)], kv_scale

    def make_source(self, latents: Latents, target: Branch, request: EditRequest, inversion: Inversion) -> Branch:
        """Make the branch of the source beside that of the edited video."""
        source = get_source_prompt(request, inversion)
        text = {"edit": request.prompt, "inversion": inversion.prompt, "source": source}[self._text]
        if self.source_rows == "paired":
            image = inversion.image_latents
            return replace(target, latents=latents, prompt=text, kv_source=None, image_latents=image, mask=None)
        return Branch(latents, text)

    def list_attending_steps(self, num_steps: int) -> range:
        """Return the positions of the steps that attend to the source."""
        attends = self.kv_scale > 0.0 and self.layers[0] != self.layers[1]
        return pick(self.steps, num_steps) if attends else range(0)

    def list_source_steps(self, request: EditRequest, num_steps: int) -> range:
        """Return the positions of the steps that need the source's tokens: all of them where it is outside a mask."""
        masked = request.mask is not None or self.finds_mask(request)
        return range(num_steps) if self.splits_tokens and masked else self.list_attending_steps(num_steps)

    def count_source_nfe(self, target_nfe: list[int], needed: Container[int], together: int) -> int:
        """Return the NFE of the source at the steps that need it, evaluated once for all requests if it can be."""
        paired = self.source_rows == "paired"
        per_step = [nfe if paired else min(nfe, 1) for nfe in target_nfe]
        return (together if self._text == "edit" else 1) * sum(nfe for i, nfe in enumerate(per_step) if i in needed)

    @property
    def splits_tokens(self) -> bool:  # noqa: D102
        return self.outside == "source"

    @property
    def _text(self) -> str:
        """Which text the source is evaluated under, once ``auto`` is resolved."""
        auto = "edit" if self.source_rows == "paired" else "source"
        return auto if self.source_text == "auto" else self.source_text

    def _make_kv_scale(self, num_layers: int, step: Step, num_steps: int) -> KVScale | None:
        """Return the kv_scale per layer at this step, ``None`` where no layer attends to the source."""
        kv_scale = torch.zeros(num_layers, dtype=torch.float32, device="cpu")
        kv_scale[list(pick(self.layers, num_layers))] = self.kv_scale
        return kv_scale if step.i in pick(self.steps, num_steps) and kv_scale.any() else None

    def count_nfe(self, request: EditRequest, schedule: NoiseSchedule, together: int = 1) -> int:  # noqa: D102
        target_nfe = self.count_target_nfe(request, schedule)
        needed = self.list_source_steps(request, len(schedule))
        return together * sum(target_nfe) + self.count_source_nfe(target_nfe, needed, together)

    def needs(self, request: EditRequest, schedule: NoiseSchedule, inverter: Inverter) -> Needs:
        """Return ``levels`` where the source is evaluated at any step, for it is at them; see also `Denoise`."""
        of_target = sum(self.count_target_nfe(request, schedule))
        return "levels" if self.count_nfe(request, schedule) > of_target else super().needs(request, schedule, inverter)
