"""How many rows of a pass go through a block together is what the device has room for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ddim_lightning.diffusion.editors import Editor
from ddim_lightning.diffusion.inverters import Inverter
from ddim_lightning.diffusion.schedule import NoiseSchedule
from ddim_lightning.engine.recording import record_layouts
from ddim_lightning.models.memory import fit_rows
from ddim_lightning.network.layout import RowLayout, count_video_tokens

RESERVE = 0.125
"""Share of a GPU's memory that rows leave free, for what no count of tensors knows: pieces of the allocator, workspaces
of kernels, blocks that are streamed, the driver."""


def get_room(device: torch.device) -> float:
    """Return the bytes of a GPU that rows may take, of those that are free or kept for reuse; elsewhere infinity."""
    if device.type != "cuda":
        return math.inf
    free, total = torch.cuda.mem_get_info(device)  # pragma: no cover - cuda
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # pragma: no cover - cuda
    return free + kept - RESERVE * total  # pragma: no cover - cuda


def find_widest(
    inverter: Inverter, editor: Editor, schedule: NoiseSchedule, *, num_layers: int, guidance_scale: float
) -> RowLayout:
    """Find the widest pass of an inversion and an edit, without a model."""
    layouts = record_layouts(
        inverter,
        editor,
        schedule,
        num_layers=num_layers,
        size=(1, 1, 2, 2),
        channels=1,
        guidance_scale=guidance_scale,
    )
    return max(layouts, key=lambda layout: (layout.rows, len(set(layout.reads))))


class FittingRows:
    """`FittingRows` are all rows of a pass where they fit, else the largest groups that do.

    It is decided when a pass of its kind comes for the first time, and stays so: all steps of a run round alike.

    Args:
        config: Of the transformer.
        most: Most rows of a group whatever is free; ``None`` goes by what is free.
        get_room: Returns the bytes of a device that they may take.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        most: int | None = None,
        get_room: Callable[[torch.device], float] = get_room,
    ) -> None:
        self.width = int(config["num_attention_heads"]) * int(config["attention_head_dim"])
        self.config, self.most, self.get_room = config, most, get_room
        self._decided: dict[tuple[RowLayout, torch.Size, int], int] = {}

    def __call__(self, layout: RowLayout, latents: Tensor, prompt_embeds: Tensor) -> int:
        """Return how many rows go together; see `Network.choose_rows`."""
        if self.most is not None:
            return self.most
        key = (layout, latents.shape, prompt_embeds.shape[1])
        if key not in self._decided:
            _, frames, _, height, width = latents.shape
            tokens = prompt_embeds.shape[1] + count_video_tokens(self.config, frames, height, width)
            tensor = tokens * self.width * latents.element_size()
            self._decided[key] = fit_rows(layout.rows, len(set(layout.reads)), self.get_room(latents.device) / tensor)
        return self._decided[key]
