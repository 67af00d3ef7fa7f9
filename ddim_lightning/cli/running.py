"""One quiet Trainer runs `edit` and `demo`; all verbs print warnings and results alike."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import LightningDataModule, LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback

from ddim_lightning.callbacks.progress import ProgressPrinter
from ddim_lightning.cli.options import Run
from ddim_lightning.report.tables import print_paths, print_results, print_skipped, print_warnings
from ddim_lightning.writer import RESULTS, VideoWriter, read_results

DONE, SOME_SKIPPED = 0, 3
_LOUD = ("logger", "enable_progress_bar", "enable_checkpointing", "enable_model_summary")
QUIET: dict[str, Any] = dict.fromkeys(_LOUD, False)  # results have a folder of their own, and the progress a callback


def predict_clips(
    run: Run, module: LightningModule, data: LightningDataModule, callbacks: Sequence[Callback] = ()
) -> list[dict[str, Any]]:
    """Run `Trainer.predict` on one device, write the results, and return the records of all clips."""
    with plain_output(run.json), _silent_lightning():
        writer = VideoWriter(run.output, overwrite=run.overwrite)
        callbacks = [writer, *callbacks, *([] if run.quiet else [ProgressPrinter()])]
        try:
            trainer = Trainer(accelerator=run.accelerator, devices=1, callbacks=callbacks, **QUIET)
        except (MisconfigurationException, ValueError) as error:  # the only setting here that is the user's
            raise ValueError(f"accelerator: must be one that is here, got {run.accelerator!r}: {error}") from error
        trainer.predict(module, data, return_predictions=False)
    if writer.num_finished and not run.quiet:
        print(f"{writer.num_finished} of {writer.num_clips} clips were finished before", file=sys.stderr)
    return read_results(run.output)


def tell_results(run: Run, records: Sequence[Mapping[str, Any]], truth: Mapping[str, Any] | None = None) -> int:
    """Tell what became of the clips, whose truth may be known, and return the exit status."""
    print_warnings(records)
    done, skipped = ([one for one in records if one["status"] == status] for status in ("done", "skipped"))
    listed = Path(run.output, RESULTS)
    if run.json:
        counts = {"done": len(done), "skipped": len(skipped), "results": str(listed)}
        print(json.dumps({**counts, "clips": records, **(truth or {})}, ensure_ascii=False))
    elif not run.quiet:
        if truth is None:
            print_results(done)
        print_paths(run.output, done)
    print_skipped(records, listed)
    return SOME_SKIPPED if skipped else DONE


@contextlib.contextmanager
def plain_output(as_json: bool) -> Iterator[None]:
    """Show a warning as one line, without the code that raised it; with JSON wanted, keep stdout free for it."""

    def show(message: Any, *_: Any, **__: Any) -> None:
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)

    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):
        warnings.showwarning = show
        warnings.filterwarnings("ignore", "clip ")  # told at the end
        for category in (DeprecationWarning, FutureWarning):  # between our dependencies, not for who runs a command
            warnings.simplefilter("ignore", category)
        yield


@contextlib.contextmanager
def _silent_lightning() -> Iterator[None]:
    """Keep Lightning from telling what devices there are, what to install, and how many workers it would take."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.filterwarnings("ignore", module=r"lightning\.")
        for logger in loggers:
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        yield
