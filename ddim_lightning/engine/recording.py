"""An inversion and an edit are made without computing, to record what they ask of the network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddim_lightning.diffusion.editors import Editor
from ddim_lightning.diffusion.inverters import Inverter
from ddim_lightning.diffusion.sampling import edit, invert
from ddim_lightning.diffusion.schedule import NoiseSchedule
from ddim_lightning.network.denoiser import CogVideoXDenoiser
from ddim_lightning.network.held import Held, HeldOnDevice
from ddim_lightning.network.layout import RowLayout
from ddim_lightning.types import EditRequest


class Recorder:
    """A `Recorder` stands where the network does, evaluates nothing, and notes which row layouts are asked for."""

    def __init__(self, dtype: torch.dtype, num_layers: int, in_channels: int, out_channels: int) -> None:
        self.dtype, self.num_layers, self.in_channels, self.out_channels = dtype, num_layers, in_channels, out_channels
        self.seen: dict[RowLayout, None] = {}

    def __call__(self, latents: Tensor, prompt_embeds: Tensor, timestep: int, **settings: Any) -> Tensor:
        """Note the layout of rows, and find zeros; see `Network`."""
        layout = make_layout(latents, settings.get("wanted"), settings.get("reads", ()))
        self.seen[layout] = None
        return torch.zeros_like(latents[: layout.wanted, :, : self.out_channels])

    def hold(self, latents: Tensor, prompt_embeds: Tensor, timestep: int) -> Held:
        """Hold nothing; see `Network`."""
        nothing = torch.zeros(latents.shape[0], 0, 1, 1)
        return HeldOnDevice([(nothing, nothing)] * self.num_layers)


def make_layout(latents: Tensor, wanted: int | None, reads: tuple[int, ...]) -> RowLayout:
    """Return the layout of a call of the network."""
    return RowLayout(latents.shape[0], latents.shape[0] if wanted is None else wanted, tuple(reads))


def record_layouts(
    inverter: Inverter,
    editor: Editor,
    schedule: NoiseSchedule,
    *,
    num_layers: int,
    size: tuple[int, int, int, int],
    channels: int,
    guidance_scale: float,
) -> list[RowLayout]:
    """Record the row layouts of an inversion and an edit, without a model.

    Args:
        inverter: The inversion method.
        editor: The editing method.
        schedule: The noise levels.
        num_layers: Of the transformer.
        size: (f, in_channels, h, w) of the rows.
        channels: Of the latents; a row has more where an image is shown beside them.
        guidance_scale: Of the edit.
    """
    embeds = torch.zeros(1, 1, 1)
    recorder = Recorder(torch.float32, num_layers, size[1], channels)
    denoiser = CogVideoXDenoiser(recorder, lambda prompt: embeds, merges=False)
    rehearse(
        denoiser, inverter, editor, schedule, latents=torch.zeros(1, size[0], channels, *size[2:]),
        shows_image=size[1] != channels, guidance_scale=guidance_scale,
    )  # fmt: skip
    return list(recorder.seen)


@torch.no_grad()
def rehearse(
    denoiser: CogVideoXDenoiser,
    inverter: Inverter,
    editor: Editor,
    schedule: NoiseSchedule,
    *,
    latents: Tensor,
    shows_image: bool,
    guidance_scale: float,
) -> None:
    """Invert and edit latents, for what the denoiser's network is asked on the way.

    Args:
        denoiser: Over a network that computes nothing, or little.
        inverter: The inversion method.
        editor: The editing method.
        schedule: The noise levels.
        latents: (1, f, c, h, w).
        shows_image: Whether the model is shown an image beside the latents.
        guidance_scale: Of the edit.
    """
    generator = torch.Generator().manual_seed(0)
    image = latents if shows_image else None
    inversion = invert(denoiser, latents, schedule, inverter, image_latents=image, generator=generator)
    request = EditRequest("edit", source_prompt="source", guidance_scale=guidance_scale)
    edit(denoiser, inversion, editor, request, generator=generator)
