"""A loaded model and its six acts, without Lightning: load, encode, invert, reconstruct, edit, decode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from ddim_lightning.diffusion.editors import Editor
from ddim_lightning.diffusion.inverters import Inverter
from ddim_lightning.diffusion.loop import edit, edit_together, invert, reconstruct
from ddim_lightning.diffusion.schedule import StepTable
from ddim_lightning.diffusion.trajectory import Inversion
from ddim_lightning.models.attention import Attention
from ddim_lightning.models.conditioning import PromptEncoder
from ddim_lightning.models.denoiser import CogVideoXDenoiser
from ddim_lightning.models.kernels import MeasuredAttention
from ddim_lightning.models.loading import Components
from ddim_lightning.models.network import Network
from ddim_lightning.models.quantized import Precision
from ddim_lightning.models.quantized_network import QuantizedNetwork
from ddim_lightning.models.vae import decode_latents, encode_video
from ddim_lightning.runtime.memory import Placement
from ddim_lightning.types import EditRequest, Frames, Latents, StepCallback, Video


@dataclass
class InversionEngine:
    """A loaded model and how it is to be used; one clip at a time.

    Args:
        components: The loaded model.
        prompts: Its prompt encoder.
        table: The step table, for both directions.
        inverter: The way up.
        editor: How new prompts meet the trajectory.
        inversion_prompt: The text of an inversion that is told no other; ``None`` where each clip brings its own.
        attention: The kernel, from `resolve_attention`; ``None`` for PyTorch's own.
        precision: Of the large products in the transformer's blocks, while edits are made; see `models.quantized`.
        quantize_inversion: Whether inversions and reconstructions are made in that precision, too.
        placement: Parks the weights that are not at work, see `apply_memory`; ``None`` leaves all on the device.
    """

    components: Components
    prompts: PromptEncoder
    table: StepTable
    inverter: Inverter
    editor: Editor
    inversion_prompt: str | None = ""
    attention: Attention | MeasuredAttention | None = None
    precision: Precision = "none"
    quantize_inversion: bool = False
    placement: Placement | None = None

    def __post_init__(self) -> None:
        self.network = Network(self.components.transformer, self.attention)
        self.quantized = None if self.precision == "none" else QuantizedNetwork(self.network, self.precision)
        everywhere = self.quantized if self.quantized is not None and self.quantize_inversion else self.network
        self.denoiser = CogVideoXDenoiser(everywhere, self.prompts)

    @property
    def device(self) -> torch.device:
        """Where the model works."""
        if self.placement is not None:
            return self.placement.device
        device: torch.device = self.components.transformer.device
        return device

    def move(self, device: torch.device) -> None:
        """Move the model to another device; does nothing where it is there already."""
        if self.placement is not None:
            self.placement.check(device)
            return
        parts = self.components
        modules: list[nn.Module | None] = [parts.transformer, parts.vae, parts.text_encoder]
        for module in modules:
            if module is not None and next(module.parameters()).device != device:
                module.to(device)
                self.prompts.move(device)

    def bring(self, part: str | None) -> None:
        """Bring the weights of a part to the device, and park all others; does nothing without a placement."""
        if self.placement is not None:
            self.placement.use(part)

    def encode(self, video: Video | Frames) -> Latents:
        """Encode (b, f, c, h, w) floats in 0 .. 1, or (f, c, h, w) uint8 frames, to latents by the posterior's mode."""
        self.bring("vae")
        return encode_video(self.components.vae, video if video.ndim == 5 else video[None])

    def decode(self, latents: Latents) -> Video:
        """Decode latents to (b, f, c, h, w) floats in 0 .. 1."""
        self.bring("vae")
        return decode_latents(self.components.vae, latents)

    def invert(
        self, latents: Latents, *, prompt: str | None = None, seed: int = 0, callback: StepCallback | None = None
    ) -> Inversion:
        """Find the noise of clean latents (b, f, c, h, w); see `diffusion.loop.invert`.

        Args:
            latents: Clean latents.
            prompt: The text of the inversion; the engine's own where it is ``None``.
            seed: Of a method that draws random numbers.
            callback: Called after every step.
        """
        return invert(
            self.denoiser,
            latents,
            self.table,
            self.inverter,
            prompt=(self.inversion_prompt or "") if prompt is None else prompt,
            generator=torch.Generator().manual_seed(seed),
            callback=callback,
        )

    def reconstruct(self, inversion: Inversion, *, callback: StepCallback | None = None) -> Latents:
        """Come back from the noise; see `diffusion.loop.reconstruct`."""
        return reconstruct(self.denoiser, inversion, callback=callback)

    def edit(
        self, inversion: Inversion, request: EditRequest, *, seed: int = 0, callback: StepCallback | None = None
    ) -> Latents:
        """Rebuild under a new prompt; see `diffusion.loop.edit`."""
        generator = torch.Generator().manual_seed(seed)
        with self._in_precision() as denoiser:
            return edit(denoiser, inversion, self.editor, request, generator=generator, callback=callback)

    def edit_together(
        self,
        inversion: Inversion,
        requests: Sequence[EditRequest],
        *,
        seed: int = 0,
        callback: Callable[..., None] | None = None,
    ) -> list[Latents]:
        """Rebuild under several prompts, in one network pass a step; see `diffusion.loop.edit_together`."""
        generators = [torch.Generator().manual_seed(seed) for _ in requests]
        with self._in_precision() as denoiser:
            return edit_together(denoiser, inversion, self.editor, requests, generators=generators, callback=callback)

    @contextmanager
    def _in_precision(self) -> Iterator[CogVideoXDenoiser]:
        """Have the one denoiser, which counts all rows, ask the network of the edits for a while."""
        before = self.denoiser.network
        if self.quantized is not None:
            self.denoiser.network = self.quantized
        try:
            yield self.denoiser
        finally:
            self.denoiser.network = before
