"""A callback draws contact sheets while a model trains: what it makes of the same noise, or of the same clips."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, WeightAveraging
from torch import nn

from ddim_lightning.callbacks.sheet_log import find_folder, log_sheet
from ddim_lightning.data.streams import make_generator
from ddim_lightning.diffusion.sampling import sample
from ddim_lightning.models.schedulers import make_noise_schedule
from ddim_lightning.models.vae import quantize
from ddim_lightning.module import DDIMInversionModule
from ddim_lightning.report.sheet import Row, make_sheet

_FPS = Fraction(8)  # CogVideoX's own rate; batches do not tell theirs


@runtime_checkable
class DrawsRows(Protocol):
    """A `DrawsRows` module makes the rows of its sheet itself."""

    def make_sheet_rows(self, batch: Mapping[str, Any]) -> tuple[list[Row], str]:
        """Return the rows of a sheet for the clips of a validation batch, and what they show."""
        ...


class SampleSheets(Callback):
    """`SampleSheets` draws a contact sheet at validations and at the end of a training.

    For `DDIMInversionModule` it holds clips sampled from noise under the captions of the first validation batch, of
    pairs those of the targets; `InversionCallback` shows edits. Any other module makes its rows itself, see
    `DrawsRows`. The noise is the same every time, so that sheets compare. They
    are drawn with averaged weights where a `WeightAveraging` callback keeps some.

    A sheet is ``sheets/step-000300.png`` in the logger's folder, or in the Trainer's ``default_root_dir`` where there
    is no logger; TensorBoard and loggers with a ``log_image`` get it as an image, too. The first process draws alone,
    so the weights must be whole on it: strategies that shard them will not do.

    Args:
        clips: Clips on a sheet, the first ones of the batch, >= 1; fewer where the batch has fewer.
        every_n_steps: Draws at the first validation after every n optimizer steps, >= 1; 1 draws at every validation.
        num_inference_steps: Steps from noise to a clip, >= 1. Other modules need none.
        guidance_scale: Classifier-free guidance of the clips from noise, >= 0; 1 turns it off.
        seed: Of the noise.

    Raises:
        ValueError: An argument out of its range.
    """

    def __init__(
        self,
        clips: int = 4,
        every_n_steps: int = 1,
        num_inference_steps: int = 20,
        guidance_scale: float = 3.0,
        seed: int = 0,
    ) -> None:
        counts = {"clips": clips, "every_n_steps": every_n_steps, "num_inference_steps": num_inference_steps}
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"{name}: must be at least 1, got {value}")
        if not 0 <= guidance_scale < math.inf:
            raise ValueError(f"guidance_scale: must be finite and not negative, got {guidance_scale}")
        self.clips, self.every_n_steps, self.seed = clips, every_n_steps, seed
        self.num_inference_steps, self.guidance_scale = num_inference_steps, guidance_scale
        self._folder = Path()
        self._batch: dict[str, Any] = {}
        self._validated_at = self._drawn_at = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the folder.

        Raises:
            TypeError: A module that is no `DDIMInversionModule` and makes no rows.
        """
        if not isinstance(pl_module, DDIMInversionModule | DrawsRows):
            name = type(pl_module).__name__
            raise TypeError(f"SampleSheets: must watch a DDIMInversionModule or one with make_sheet_rows, got {name}")
        self._folder = find_folder(trainer, "sheets")
        self._batch, self._validated_at, self._drawn_at = {}, -1, -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from here, so that a resumed training draws at the steps where an unbroken one would."""
        self._validated_at = trainer.global_step

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Mapping[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw after the first batch, while averaged weights are in place whatever the order of the callbacks."""
        if trainer.sanity_checking or batch_idx or dataloader_idx:
            return
        due = trainer.global_step // self.every_n_steps > self._validated_at // self.every_n_steps
        self._validated_at = trainer.global_step
        if trainer.is_global_zero:
            names = {name: name for name in ("latents", "frames", "prompts")}
            names |= {"target": "latents", "target_frames": "frames", "target_prompts": "prompts"}  # of pairs
            taken = {name: batch[given][: self.clips] for given, name in names.items() if given in batch}
            # Kept for the end of the training, off the device, where memory is dear.
            self._batch = {name: part.cpu() if isinstance(part, torch.Tensor) else part for name, part in taken.items()}
            if due:
                self._draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the final weights, unless the last validation drew them."""
        if not self._batch or self._drawn_at == trainer.global_step:
            return
        # Weight averaging has put its weights in place already, or is called after us: swapping is right in both cases.
        averaging = [callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]  # type: ignore[attr-defined]
        for callback in averaging:
            callback.on_validation_epoch_start(trainer, pl_module)
        self._draw(trainer, pl_module)
        for callback in averaging:
            callback.on_validation_epoch_end(trainer, pl_module)

    @torch.inference_mode()
    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # For rows that a module of one's own makes; Lightning's own context has ended where callbacks are called.
        with _evaluating(pl_module), trainer.precision_plugin.forward_context():
            if isinstance(pl_module, DDIMInversionModule):
                rows = self._sample(pl_module)
                what = (
                    f"{self.num_inference_steps} steps from noise, guidance {self.guidance_scale:g}, seed {self.seed}"
                )
            else:
                assert isinstance(pl_module, DrawsRows)
                rows, what = pl_module.make_sheet_rows(self._batch)
        step = trainer.global_step
        sheet = make_sheet(rows, title=f"step {step}", subtitle=what, fps=_FPS)
        log_sheet(trainer, sheet, self._folder, "sheet")
        self._drawn_at = step

    def _sample(self, module: DDIMInversionModule) -> list[Row]:
        """Sample a clip per caption, each by itself: no clip depends on how many there are."""
        engine, prompts = module.engine, list(self._batch["prompts"])
        engine.prompts.clear_cache()  # the text encoder may train, and have other weights now than a moment ago
        module.encode_prompts(prompts)
        clean = self._batch["latents"] if "latents" in self._batch else engine.encode(self._batch["frames"][0])
        # What is drawn is new and needs no padding: all latent frames are the clip's own.
        num_frames = (clean.shape[1] - 1) * engine.components.limits.temporal + 1
        schedule = make_noise_schedule(engine.components.scheduler, self.num_inference_steps)
        rows = []
        for k, prompt in enumerate(prompts):
            generator = make_generator(self.seed, "noise", k)
            noise = torch.randn((1, *clean.shape[1:]), generator=generator, dtype=torch.float32, device="cpu").to(
                engine.device
            )
            latents = sample(engine.denoiser, noise, prompt, schedule, self.guidance_scale)
            rows.append(Row(f"clip {k}", quantize(engine.decode(latents, num_frames)[0]), prompt))
        engine.prompts.clear_cache()
        return rows


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Have every layer in evaluation mode, and each in its own mode afterwards."""
    modes = {layer: layer.training for layer in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for layer, mode in modes.items():
            layer.training = mode
