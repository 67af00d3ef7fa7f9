"""The whole job of a module runs under a real Trainer on the emulated device, and the device learns of its stages."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping, Sequence

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader

from ddim_lightning.module import DDIMInversionModule
from ddim_lightning.report.console import silent_lightning
from ddim_lightning.types import Clip, ClipResult, Progress

from .device import EmulatedDevice

LOADING = ("load", "prompts")
"""Stages before the first clip: the model is loaded, the prompts of the run are encoded."""
WORKING = ("encode", "invert", "reconstruct", "edit", "decode")
"""Stages of a clip."""
STAGES = (*LOADING, *WORKING)


class EnoughError(Exception):
    """An `EnoughError` ends a job whose last stage was done."""


class Clips(LightningDataModule):
    """`Clips` are clips at hand, with their prompts.

    Args:
        clips: Them.
    """

    def __init__(self, clips: Sequence[Clip]) -> None:
        super().__init__()
        self.clips = list(clips)

    def predict_dataloader(self) -> DataLoader[Clip]:
        """Yield one clip at a time."""
        return DataLoader(self.clips, batch_size=None)  # type: ignore[arg-type]

    def all_prompts(self) -> list[str]:
        """List the prompts of all clips."""
        texts = [(*clip.prompts, clip.negative_prompt, clip.source_prompt) for clip in self.clips]
        return [text for found in texts for text in found if text is not None]


class StageWatch(Callback):
    """A `StageWatch` tells the device which stage begins, and when a loop is between two of its steps.

    Args:
        device: Who is told.
        names: What stages are called in place of their own names.
        ends_with: The last stage that is done; ``None`` does all.
    """

    def __init__(self, device: EmulatedDevice, names: Mapping[str, str], ends_with: str | None) -> None:
        self.device, self.names, self.ends_with = device, names, ends_with

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin with loading."""
        assert isinstance(pl_module, DDIMInversionModule)
        self._enter("load")
        pl_module.progress_listeners.append(self.see)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the prompts."""
        self._enter("prompts")

    def see(self, progress: Progress) -> None:
        """Go on with a stage of a clip, or with its next step.

        Raises:
            EnoughError: It comes after the last one that is done.
        """
        if self.ends_with is not None and WORKING.index(progress.stage) > WORKING.index(self.ends_with):
            raise EnoughError
        self._enter(progress.stage, 0 < progress.done < progress.total)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """End."""
        assert isinstance(pl_module, DDIMInversionModule)
        pl_module.progress_listeners.remove(self.see)
        self.device.enter("end")

    def _enter(self, stage: str, in_step: bool = False) -> None:
        self.device.enter(self.names.get(stage, stage), in_step)


def run_job(
    module: DDIMInversionModule,
    clips: Sequence[Clip],
    device: EmulatedDevice,
    callbacks: Sequence[Callback] = (),
    *,
    names: Mapping[str, str] = {},
    ends_with: str | None = None,
) -> list[ClipResult]:
    """Do the whole job: load, encode the prompts, and take every clip through its stages.

    Args:
        module: What does it.
        clips: On which.
        device: The emulated device, entered.
        callbacks: More of the Trainer's.
        names: What stages are called in place of their own names.
        ends_with: The last stage that is done, of the first clip; ``None`` does all.

    Returns:
        Their results, of the right shapes and dtypes, and all zeros; none where the job ended early.
    """
    with silent_lightning(), warnings.catch_warnings(), contextlib.suppress(EnoughError):  # it greets the GPU
        warnings.simplefilter("ignore")
        trainer = Trainer(
            accelerator="gpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            callbacks=[StageWatch(device, names, ends_with), *callbacks],
        )
        return trainer.predict(module, datamodule=Clips(clips)) or []  # type: ignore[return-value]
    return []
