"""Sheets that are drawn while a model trains go into one folder, and to the loggers that take images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image


def find_folder(trainer: Trainer, name: str) -> Path:
    """Return the folder for sheets in the logger's, or in ``default_root_dir`` where there is no logger.

    Every process must ask: Lightning sends the answer of the first to the others.
    """
    return Path(trainer.log_dir or trainer.default_root_dir) / name


def log_sheet(trainer: Trainer, sheet: Image.Image, folder: Path, tag: str) -> None:
    """Write a sheet as ``step-000300.png``, and hand it to TensorBoard and to loggers with a ``log_image``.

    Args:
        trainer: At the step that the sheet shows.
        sheet: The image.
        folder: Made where it is missing.
        tag: The image's name in a logger.
    """
    step = trainer.global_step
    folder.mkdir(parents=True, exist_ok=True)
    sheet.save(folder / f"step-{step:06d}.png")
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(tag, np.asarray(sheet), step, dataformats="HWC")
        elif hasattr(logger, "log_image"):  # Weights & Biases
            logger.log_image(tag, [sheet], step=step)
