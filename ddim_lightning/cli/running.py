"""One quiet Trainer runs `edit` and `demo`; all verbs print warnings and results alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import LightningDataModule, LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback

from ddim_lightning.callbacks.progress import ProgressPrinter
from ddim_lightning.cli.options import Run
from ddim_lightning.report.console import plain_output, say, silent_lightning, tell_records
from ddim_lightning.writer import PAGE, RESULTS, VideoWriter, read_results

DONE, SOME_SKIPPED = 0, 3
_LOUD = ("logger", "enable_progress_bar", "enable_checkpointing", "enable_model_summary")
QUIET: dict[str, Any] = dict.fromkeys(_LOUD, False)  # results have a folder of their own, and the progress a callback


def predict_clips(
    run: Run, module: LightningModule, data: LightningDataModule, callbacks: Sequence[Callback] = (), devices: Any = 1
) -> list[dict[str, Any]]:
    """Run `Trainer.predict`, write the results, and return the records of all clips."""
    with plain_output(run.json), silent_lightning():
        writer = VideoWriter(run.output, overwrite=run.overwrite)
        callbacks = [writer, *callbacks, *([] if run.quiet else [ProgressPrinter()])]
        try:
            trainer = Trainer(accelerator=run.accelerator, devices=devices, callbacks=callbacks, **QUIET)
        except (MisconfigurationException, ValueError) as error:  # the only setting here that is the user's
            raise ValueError(f"accelerator: must be one that is here, got {run.accelerator!r}: {error}") from error
        trainer.predict(module, data, return_predictions=False)
    if writer.num_finished and not run.quiet:
        say(f"{writer.num_finished} of {writer.num_clips} clips were finished before")
    return read_results(run.output)


def tell_results(run: Run, records: Sequence[Mapping[str, Any]], truth: Mapping[str, Any] | None = None) -> int:
    """Tell what became of the clips, whose truth may be known, and return the exit status."""
    skipped = tell_records(records, Path(run.output, RESULTS), PAGE, as_json=run.json, quiet=run.quiet, truth=truth)
    return SOME_SKIPPED if skipped else DONE
