"""The engine puts a loaded model to work: encode, invert, reconstruct, edit, decode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddim_lightning.diffusion.editors import Editor
from ddim_lightning.diffusion.inversion import Inversion
from ddim_lightning.diffusion.inverters import Inverter
from ddim_lightning.diffusion.padding import pad_front
from ddim_lightning.diffusion.sampling import edit, invert, reconstruct
from ddim_lightning.diffusion.schedule import NoiseSchedule
from ddim_lightning.diffusion.step_cache import StepCache
from ddim_lightning.limits import count_latent_frames
from ddim_lightning.models.loading import Components
from ddim_lightning.models.text import PromptEncoder
from ddim_lightning.models.vae import decode_latents, encode_first_frame, encode_video, stream_decoded
from ddim_lightning.network.denoiser import CogVideoXDenoiser
from ddim_lightning.network.diffusers_network import DiffusersNetwork
from ddim_lightning.network.edit_adapter import EditAdapter
from ddim_lightning.network.network import Network
from ddim_lightning.network.quantized import QuantizedNetwork
from ddim_lightning.network.timestep_changes import measure_changes
from ddim_lightning.runtime.autocast import without_autocast
from ddim_lightning.runtime.clip_group import ClipGroup
from ddim_lightning.runtime.offload import Placement
from ddim_lightning.types import EditRequest, Frames, Latents, Stage, StepCallback, Video


@dataclass(frozen=True)
class InversionEngine:
    """An `InversionEngine` is a loaded model and the methods it is used with; it works on one clip at a time.

    `build_engine` makes one. All of its parts are finished before it is made. Networks compute in the dtype of their
    weights, autocast or not. Gradients are as the caller has them: latents that want a gradient get one, through any
    number of steps; weights are frozen. `ClipJob`, and with it every run, works without them.

    Args:
        components: The loaded diffusers objects.
        prompts: The prompt encoder.
        schedule: The noise schedule, for both directions.
        inverter: The inversion method.
        editor: The editing method.
        network: The forward pass of the transformer, as loaded.
        denoiser: Evaluates inversions and reconstructions.
        edit_denoiser: Evaluates edits; the same one, unless they run in another precision.
        inversion_prompt: The prompt of an inversion that is given no other; ``None`` where each clip brings its own.
        placement: Parks the weights that are not at work; ``None`` leaves all on the device.
        adapter: Acts in the transformer while edits are made; ``None`` where nothing does.
        step_cache: Threshold of the steps that edits skip; ``None`` where they skip none.
    """

    components: Components
    prompts: PromptEncoder
    schedule: NoiseSchedule
    inverter: Inverter
    editor: Editor
    network: Network | DiffusersNetwork
    denoiser: CogVideoXDenoiser
    edit_denoiser: CogVideoXDenoiser
    inversion_prompt: str | None = ""
    placement: Placement | None = None
    adapter: EditAdapter | None = None
    step_cache: float | None = None

    @property
    def device(self) -> torch.device:
        """Where the model works."""
        if self.placement is not None:
            return self.placement.device
        device: torch.device = self.components.transformer.device
        return device

    @property
    def group(self) -> ClipGroup:
        """The processes that work on a clip together; what is done outside of its `together` is not split."""
        return self.denoiser.group

    @property
    def nfe(self) -> int:
        """Number of function evaluations so far: one latent under one embedding through the transformer counts 1."""
        if self.edit_denoiser is self.denoiser:
            return self.denoiser.nfe
        return self.denoiser.nfe + self.edit_denoiser.nfe

    def make_step_cache(self) -> StepCache | None:
        """Return which steps edits skip, by the weights as they are now; ``None`` for none."""
        if self.step_cache is None:
            return None
        return StepCache(self.step_cache, measure_changes(self.components.transformer, self.schedule.timesteps))

    def count_windows(self, num_latent_frames: int) -> int:
        """Return how many windows a pass over a clip of so many latent frames takes; each has its own NFE."""
        windows = self.denoiser.windows
        return 1 if windows is None else len(windows.list_starts(num_latent_frames))

    def to(self, device: torch.device) -> None:
        """Move the model to another device; does nothing where it is there already.

        Raises:
            ValueError: A model whose weights are parked on the host for another device.
        """
        if self.placement is not None:
            self.placement.check(device)
            return
        for module in (self.components.transformer, self.components.vae):
            if next(module.parameters()).device != device:
                nn.Module.to(module, device)
        self.prompts.to(device)

    def to_device(self, part: str | None) -> None:
        """Bring the weights of a part to the device, and park all others; does nothing without a placement."""
        if self.placement is not None:
            self.placement.use(part)

    @contextmanager
    def stage(self, name: Stage, schedule: NoiseSchedule | None = None) -> Iterator[None]:
        """Run a stage of a clip on the weights as they are at its beginning, an edit with the adapter switched on.

        Args:
            name: The stage.
            schedule: Its own, where it is not the engine's.
        """
        adapter = self.adapter if name == "edit" else None
        with nullcontext() if adapter is None else adapter.acting():
            if name in ("invert", "reconstruct", "edit"):
                self.start_stage(schedule)
            yield
        if adapter is not None and isinstance(self.network, Network):
            self.network.clear_cache()  # the sums of an edit do not stay while it is decoded

    def start_stage(self, schedule: NoiseSchedule | None = None) -> None:
        """Make a forward pass ready for the weights as they are now, and for a schedule; see `Network.start_stage`."""
        if self.adapter is not None:
            self.adapter.prepare()
        quantized = self.edit_denoiser.network
        network = quantized if isinstance(quantized, QuantizedNetwork) else self.network
        network.start_stage((schedule or self.schedule).timesteps)

    def encode(self, video: Video | Frames) -> Latents:
        """Encode a video to latents by the posterior's mode.

        Args:
            video: (b, f, c, h, w) floats in 0 .. 1, or (f, c, h, w) uint8 frames; f is 4k + 1.

        Returns:
            (b, f, c, h, w) float32, as many latent frames as `count_latent_frames` says: for a model with temporal
            patches the first one may be there twice.

        Raises:
            ValueError: A number of frames of which the VAE would drop some, or four axes that are not uint8 frames.
        """
        if video.ndim == 4 and video.dtype != torch.uint8:
            raise ValueError(f"video: frames (f, c, h, w) must be uint8, got {str(video.dtype).removeprefix('torch.')}")
        video = video if video.ndim == 5 else video[None]
        temporal = self.components.limits.temporal
        if video.shape[1] % temporal != 1 % temporal:
            raise ValueError(f"video: its number of frames must be {temporal}k + 1, got {video.shape[1]}")
        self.to_device("vae")
        with without_autocast(self.device):
            return pad_front(encode_video(self.components.vae, video), self.components.limits.patch_frames)

    def encode_image(self, frame: Tensor, num_latent_frames: int) -> Latents:
        """Make the image latents that an image-to-video model is shown of a first frame; see `encode_first_frame`.

        Args:
            frame: (b, c, h, w) floats in 0 .. 1, or (c, h, w) uint8.
            num_latent_frames: Frames of the latents beside which they are shown.

        Raises:
            ValueError: Three axes that are not of uint8.
        """
        if frame.ndim == 3 and frame.dtype != torch.uint8:
            raise ValueError(f"frame: (c, h, w) must be uint8, got {str(frame.dtype).removeprefix('torch.')}")
        self.to_device("vae")
        with without_autocast(self.device):
            return encode_first_frame(self.components.vae, frame if frame.ndim == 4 else frame[None], num_latent_frames)

    def decode(self, latents: Latents, num_frames: int | None = None) -> Video:
        """Decode latents to (b, f, c, h, w) floats in 0 .. 1.

        Args:
            latents: Clean latents.
            num_frames: Frames of the video, 4k + 1. A model with temporal patches must be told, for its latents do not
                say how many of them `encode` has put in front.

        Raises:
            ValueError: No number of frames where one is needed, or one that other latents belong to.
        """
        latents = self._drop_padding(latents, num_frames)
        self.to_device("vae")
        with without_autocast(self.device):
            return decode_latents(self.components.vae, latents)

    def stream(self, latents: Latents, num_frames: int | None = None) -> Iterator[Video]:
        """Decode latents on any device, and yield a few frames at a time; see `decode`."""
        latents = self._drop_padding(latents, num_frames)
        self.to_device("vae")
        pieces = stream_decoded(self.components.vae, latents)
        while True:
            with without_autocast(self.device):  # not around a yield: it would hold for whoever takes the piece
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece

    def _drop_padding(self, latents: Latents, num_frames: int | None) -> Latents:
        """Return the latent frames that are the video's own."""
        limits = self.components.limits
        if num_frames is None:
            if limits.patch_frames > 1:
                raise ValueError("num_frames: must be given for a model with temporal patches, got None")
            return latents
        wanted, found = count_latent_frames(num_frames, limits), latents.shape[1]
        if num_frames % limits.temporal != 1 % limits.temporal or wanted != found:
            rule = f"must be {limits.temporal}k + 1, and make the latent frames at hand, {found}"
            raise ValueError(f"num_frames: {rule}, got {num_frames}")
        return latents[:, found - (num_frames - 1) // limits.temporal - 1 :]

    def invert(
        self,
        latents: Latents,
        *,
        prompt: str | None = None,
        image_latents: Latents | None = None,
        seed: int = 0,
        callback: StepCallback | None = None,
    ) -> Inversion:
        """Find the noise of clean latents (b, f, c, h, w); see `diffusion.sampling.invert`.

        Args:
            latents: Clean latents.
            prompt: The prompt of the inversion; the engine's own where it is ``None``.
            image_latents: What an image-to-video model is shown: `encode_image` of the video's first frame.
            seed: Seed of a method that draws random numbers.
            callback: Called after every step.
        """
        self.start_stage()
        prompt = self.inversion_prompt or "" if prompt is None else prompt
        generator = torch.Generator().manual_seed(seed)
        with _gradients_of(latents):
            return invert(
                self.denoiser,
                latents,
                self.schedule,
                self.inverter,
                prompt=prompt,
                image_latents=image_latents,
                generator=generator,
                callback=callback,
            )

    def reconstruct(self, inversion: Inversion, *, callback: StepCallback | None = None) -> Latents:
        """Come back from the noise; see `diffusion.sampling.reconstruct`."""
        self.start_stage(inversion.schedule)
        with _gradients_of(inversion.clean):
            return reconstruct(self.denoiser, inversion, callback=callback)

    def edit(
        self, inversion: Inversion, request: EditRequest, *, seed: int = 0, callback: StepCallback | None = None
    ) -> Latents:
        """Rebuild under a new prompt; see `diffusion.sampling.edit`."""
        generator = torch.Generator().manual_seed(seed)
        with self.stage("edit", inversion.schedule), _gradients_of(inversion.clean):
            return edit(
                self.edit_denoiser,
                inversion,
                self.editor,
                request,
                generator=generator,
                cache=self.make_step_cache(),
                callback=callback,
            )


def _gradients_of(latents: Latents) -> torch.set_grad_enabled:
    """Keep gradients where the latents want them; for those of adapters a whole sampling would stay in memory."""
    return torch.set_grad_enabled(torch.is_grad_enabled() and latents.requires_grad)
