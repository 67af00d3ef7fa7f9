"""A loader reads clips in processes of its own, and goes on when one of them dies."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

from torch.utils.data import DataLoader, Dataset

from ddim_lightning.data.dataset import VideoDataset
from ddim_lightning.types import Clip, UnreadableClip

Batch = Clip | UnreadableClip


class ClipLoader(DataLoader[Batch]):
    """A `ClipLoader` is a `DataLoader` of a `VideoDataset` that loses one clip, and no run, when a process dies.

    The system ends a process that takes too much memory, and damaged files have made decoders crash. The clip that was
    waited for is then read alone: where that fails too, an `UnreadableClip` stands for it. A clip that takes longer
    than ``read_limit_s`` ends its process likewise (on systems that have `signal.alarm`). Without processes
    (``num_workers=0``) it is a plain `DataLoader`.
    """

    read_limit_s = 600

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return self._read(list(self.batch_sampler or ())) if self.num_workers else super().__iter__()

    def _read(self, left: list[list[int]]) -> Iterator[Batch]:
        with _keep_handler():
            while left:
                batches = self._start(left, self.num_workers)
                while left:
                    try:
                        clip = next(batches)
                    except RuntimeError:  # a process has ended; what a file does to its reader comes as a clip
                        del batches  # ends the other processes
                        clip = self._read_alone(left.pop(0))
                        yield clip
                        break
                    del left[0]
                    yield clip

    def _read_alone(self, batch: list[int]) -> Batch:
        """Read a clip in a process of its own; a clip that stands for it says what that process died of."""
        others = multiprocessing.active_children()
        batches = self._start([batch], 1)
        (process,) = (child for child in multiprocessing.active_children() if child not in others)
        warnings.warn("a process that reads clips has ended; the clip that was waited for is read alone", stacklevel=3)
        try:
            clip: Batch = next(batches)
        except RuntimeError as error:
            assert isinstance(self.dataset, VideoDataset)
            return self.dataset.make_unreadable(batch[0], self._explain(process) or str(error))
        return clip

    def _start(self, batches: list[list[int]], num_workers: int) -> Iterator[Batch]:
        loader: DataLoader[Batch] = DataLoader(
            _Timed(self.dataset, self.read_limit_s),
            batch_sampler=list(batches),
            collate_fn=self.collate_fn,
            num_workers=num_workers,
            prefetch_factor=self.prefetch_factor,
        )
        started = iter(loader)
        if _handles_children():
            # torch would raise the death of a process wherever the main one happens to be, amid the work on another
            # clip. Without that it notices within seconds when the next clip is wanted.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return started

    def _explain(self, process: BaseProcess) -> str:
        process.join(1)
        if process.exitcode == -getattr(signal, "SIGALRM", 0):
            return f"reading took longer than {self.read_limit_s} s"
        if process.exitcode is None or process.exitcode >= 0:
            return f"the process that read it ended with status {process.exitcode}" if process.exitcode else ""
        name = signal.Signals(-process.exitcode).name
        hint = ", as the system does when memory runs out" if name == "SIGKILL" else ""
        return f"the process that read it was ended by {name}{hint}"


class _Timed(Dataset[Batch]):
    """A `_Timed` data set ends its process when one item takes too long; nothing less stops a system call."""

    def __init__(self, dataset: Dataset[Batch], limit_s: int) -> None:
        self._dataset, self._limit_s = dataset, limit_s

    def __getitem__(self, index: int) -> Batch:
        if not hasattr(signal, "alarm"):  # Windows
            return self._dataset[index]
        signal.alarm(self._limit_s)
        try:
            return self._dataset[index]
        finally:
            signal.alarm(0)


@contextmanager
def _keep_handler() -> Iterator[None]:
    """Have the program's own handler for children that end back afterwards."""
    former = signal.getsignal(signal.SIGCHLD) if _handles_children() else None
    try:
        yield
    finally:
        if former is not None and _handles_children():
            signal.signal(signal.SIGCHLD, former)


def _handles_children() -> bool:
    return hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
