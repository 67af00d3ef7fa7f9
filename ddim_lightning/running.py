"""What the verbs share: a video from its arguments, and one quiet Trainer whose remarks never reach stdout."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning import LightningDataModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback

from ddim_lightning.callbacks import ProgressPrinter
from ddim_lightning.data.frames import choose_frames, make_size
from ddim_lightning.data.mask import read_mask
from ddim_lightning.data.video import read_info
from ddim_lightning.datamodule import VideoDataModule
from ddim_lightning.module import DDIMInversionModule


def make_video_data(args: argparse.Namespace, module: DDIMInversionModule, mask: str | None = None) -> VideoDataModule:
    """Make the data module of one video, and find out what is wrong with it before gigabytes of weights are loaded.

    Args:
        args: ``video``, its prompts and the choice of its frames, as the command line has them.
        module: Its limits are the video's.
        mask: A video or an image, white where the edits may change the video; ``None`` changes everything.

    Raises:
        ValueError: The file is no video or too short, the mask does not fit it, a prompt is blank, or an argument is
            out of its range.
        OSError: The video or the mask cannot be read.
    """
    if Path(args.video).is_dir():
        raise IsADirectoryError(f"video: must be a file, got the folder {args.video!r} (predict takes folders)")
    if not all(prompt.strip() for prompt in args.prompt):
        raise ValueError(f"prompt: must not be blank, got {args.prompt}")
    data = VideoDataModule(
        args.video,
        prompts=args.prompt,
        source_prompt=args.source_prompt,
        negative_prompt=args.negative_prompt,
        num_frames=args.num_frames,
        start=args.start,
        stride=args.stride,
        height=args.height,
        width=args.width,
        fit=args.fit,
        mask=mask,
    )
    info = read_info(args.video)
    limits = module.video_limits
    try:
        choice = choose_frames(
            info.num_frames, limits, start=args.start, num_frames=args.num_frames, stride=args.stride
        )
    except ValueError as error:
        raise ValueError(f"{args.video}: {error}") from None
    if mask is not None:
        height, width = make_size(limits, args.height, args.width)
        read_mask(mask, info, choice, height=height, width=width, fit=args.fit)
    return data


def predict(
    module: DDIMInversionModule,
    data: LightningDataModule,
    *,
    accelerator: str = "auto",
    quiet: bool,
    as_json: bool,
    callbacks: Sequence[Callback] = (),
    return_predictions: bool = False,
) -> list[Any]:
    """Run `Trainer.predict` on one device, without Lightning's remarks.

    Args:
        module: What works.
        data: What it works on.
        accelerator: Lightning's name of the device.
        quiet: Show no progress.
        as_json: Leave stdout to the JSON that is printed afterwards.
        callbacks: More callbacks of the Trainer.
        return_predictions: Keep what ``predict_step`` returns.

    Returns:
        What ``predict_step`` returned, or nothing where it is not kept.

    Raises:
        ValueError: An accelerator that is not here.
    """
    with plain_warnings(), stdout_for_json(as_json), _silent_lightning():
        try:
            trainer = Trainer(
                accelerator=accelerator,
                devices=1,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                callbacks=[*callbacks, *([] if quiet else [ProgressPrinter()])],
            )
        except (MisconfigurationException, ValueError) as error:  # the only setting here that is the user's
            raise ValueError(f"accelerator: must be one that is here, got {accelerator!r}: {error}") from error
        return trainer.predict(module, data, return_predictions=return_predictions) or []


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Show a warning as one line, without the line of code that raised it."""

    def show(message: Any, *_: Any, **__: Any) -> None:
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        for category in (DeprecationWarning, FutureWarning):  # between our dependencies, not for who runs a command
            warnings.simplefilter("ignore", category)
        yield


@contextlib.contextmanager
def _silent_lightning() -> Iterator[None]:
    """Keep Lightning from telling what devices there are, what to install, and how many workers it would take."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextlib.contextmanager
def stdout_for_json(as_json: bool) -> Iterator[None]:
    """With JSON wanted, send all that is printed inside to stderr."""
    if as_json:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    else:
        yield
