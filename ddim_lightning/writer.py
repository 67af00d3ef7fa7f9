"""The writer puts what a run makes of every clip into the output folder, as soon as it is done."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info

from ddim_lightning.data.ids import PAGE, RESULTS
from ddim_lightning.output.clip_folder import write_clip
from ddim_lightning.output.folder import RunFolder, read_results
from ddim_lightning.output.place import DiskError, make_output_dir
from ddim_lightning.output.record import SCHEMA, make_record
from ddim_lightning.types import Clip, ClipResult

__all__ = ["PAGE", "RESULTS", "SCHEMA", "VideoWriter", "make_output_dir", "make_record", "read_results", "write_clip"]


class VideoWriter(BasePredictionWriter):
    """A `VideoWriter` writes what `DDIMInversionModule.predict_step` returns, one folder a clip, as soon as it returns.

    ``OUT/<id>/`` holds ``source.mp4`` (the frames the model saw), ``reconstruction.mp4``, ``edit-00.mp4`` and so on,
    ``sheet.png``, ``result.json`` and, when saved, ``trajectory.safetensors``; it takes its name when it is whole.
    ``OUT/results.jsonl`` holds the records of all clips, skipped ones too, a line a clip; it grows with the run, and is
    sorted by id when the run ends. Those of clips that the last run did not have are marked ``earlier``.
    ``OUT/index.html`` then shows all of it in a browser; see `write_page`.
    A PSNR of equal videos is infinite, which JSON cannot say: it is written as ``null``. The sheet that this process
    wrote or found last is ``last_sheet``.

    A clip that an earlier run into the folder finished, with the same frames, request, weights and settings, is not
    done again by a `DDIMInversionModule`; a module of one's own that has a list ``find_results`` may ask as well.
    Nothing that no run wrote is deleted or overwritten: a clip whose folder could not take its place is skipped. Where
    the data module lists its ids (``all_ids``), a folder of one's own under such a name is an error before any weight
    is loaded. One run at a time writes into a folder.

    Args:
        output_dir: The folder; made when it is not there.
        sheets: Whether to draw contact sheets.
        overwrite: Do clips again that are finished.
    """

    def __init__(self, output_dir: str, *, sheets: bool = True, overwrite: bool = False) -> None:
        super().__init__(write_interval="batch")
        self.output_dir = output_dir
        self.sheets = sheets
        self.num_clips = self.num_finished = 0
        self.last_sheet: Path | None = None
        self._num_runs = 0
        self._told_to_end = False
        self._folder = RunFolder(output_dir, sheets=sheets, overwrite=overwrite)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin the run before any weight is loaded, so that a bad folder is not found out after an hour.

        Raises:
            OSError: When the folder cannot be made, locked or written to, or has something else under a clip's name.
            ValueError: When something else wrote its list of results.
        """
        super().setup(trainer, pl_module, stage)
        if stage != "predict":
            return
        self.num_clips = self.num_finished = 0
        self.last_sheet = None
        self._num_runs += 1
        self._told_to_end = False
        failure: Exception | None = None
        if trainer.is_global_zero:
            list_ids = getattr(getattr(trainer, "datamodule", None), "all_ids", tuple)
            try:
                self._folder.begin(list_ids())
            except (OSError, ValueError) as error:
                failure = error
        failure = trainer.strategy.broadcast(failure)  # so that no process waits for one that has ended
        if failure is not None:
            raise failure
        if not trainer.is_global_zero:
            self._folder.join()
        _find_results(pl_module).append(self._find)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Have SIGTERM end this process after the clip in work."""
        self._heed_sigterm(trainer)

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: ClipResult | list[ClipResult],
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write the clips of a batch, in the first of the processes that worked on them together.

        One that cannot be written is skipped where the module skips clips that fail.

        Raises:
            DiskError: When the disk takes no more.
            KeyboardInterrupt: When the process was told to end.
        """
        skips = getattr(getattr(pl_module, "outputs", None), "on_error", "skip") != "raise"
        is_first = trainer.global_rank % getattr(pl_module, "ranks_per_clip", 1) == 0
        for result in (prediction if isinstance(prediction, list) else [prediction]) if is_first else ():
            self._write(result, skips=skips)
        if self._told_to_end or trainer.received_sigterm:  # which Lightning leaves to the loops of a training
            raise KeyboardInterrupt

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """End the run, and say how many clips an earlier one had finished."""
        # Not in on_predict_end: a rank that was given no clip never gets there, and the others would wait for it.
        if stage != "predict":
            return
        self._forget(pl_module)
        if not trainer.is_global_zero:
            self._folder.end(alone=False)
        self._wait_for_all(trainer)
        counts = [
            trainer.strategy.broadcast((self.num_clips, self.num_finished), src=rank)
            for rank in range(trainer.world_size)
        ]
        if trainer.is_global_zero:
            self._folder.end(alone=True)
        self.num_clips, self.num_finished = (sum(column) for column in zip(*counts, strict=True))
        if self.num_finished:
            rank_zero_info(f"{self.num_finished} of {self.num_clips} clips were finished before")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let the folder go when a run fails or is interrupted; the list has all clips that were done."""
        self._forget(pl_module)
        with contextlib.suppress(OSError, ValueError):  # a full disk, say; what is to be told is why the run ended
            self._folder.end(alone=trainer.world_size == 1)

    def _write(self, result: ClipResult, *, skips: bool) -> None:
        self.num_clips += 1
        try:
            record = self._folder.write(result)
            if (sheet := record["files"].get("sheet")) is not None:
                self.last_sheet = Path(self.output_dir, result.clip.id, sheet)
            self.num_finished += result.status == "finished"
        except DiskError:
            raise
        except Exception as error:
            if not skips:
                raise
            reason = " ".join(str(error).split())
            warnings.warn(f"clip {result.clip.id}: skipped: {reason}", stacklevel=2)
            result.status, result.reason = "skipped", reason
            self._folder.write(ClipResult(result.clip, "skipped", reason, seed=result.seed, settings=result.settings))

    def _find(self, clip: Clip, fingerprint: Mapping[str, str]) -> bool:
        return self._folder.find(clip.id, fingerprint)

    def _heed_sigterm(self, trainer: Trainer) -> None:
        """Take the place of Lightning's handler, which waits for all other processes in the midst of a clip."""
        if trainer.world_size == 1 or threading.current_thread() is not threading.main_thread():
            return
        launcher = getattr(trainer.strategy, "launcher", None)

        def note(signum: int, _: Any) -> None:
            self._told_to_end = True
            if launcher is not None:
                launcher.kill(signal.Signals(signum))  # tells the processes that this one has started

        signal.signal(signal.SIGTERM, note)  # the Trainer puts the program's own back

    def _wait_for_all(self, trainer: Trainer) -> None:
        """Wait until every process has done its share, however much later than the others.

        What Lightning and torch have for this gives up after half an hour.

        Raises:
            KeyboardInterrupt: When the process was told to end, as it is when another one has died.
        """
        distributed = torch.distributed
        if trainer.world_size == 1 or not (distributed.is_available() and distributed.is_initialized()):
            return
        self._heed_sigterm(trainer)  # a process without a clip has not come to it before
        store = distributed.distributed_c10d._get_default_store()
        keys = [f"ddim_lightning/run-{self._num_runs}/{rank}" for rank in range(trainer.world_size)]
        store.set(keys[trainer.global_rank], "done")
        while not store.check(keys):
            if self._told_to_end or trainer.received_sigterm:
                raise KeyboardInterrupt
            time.sleep(0.1)

    def _forget(self, pl_module: LightningModule) -> None:
        with contextlib.suppress(ValueError):
            _find_results(pl_module).remove(self._find)


def _find_results(pl_module: LightningModule) -> list[Any]:
    """The module's list of who knows of results; a list that nobody reads where it has none."""
    found: list[Any] = getattr(pl_module, "find_results", [])
    return found
