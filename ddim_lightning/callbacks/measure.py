"""Two callbacks measure a `Trainer.predict`: the milliseconds and the memory of every step."""

from __future__ import annotations

import contextlib
import json
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from ddim_lightning.report.environment import read_versions
from ddim_lightning.runtime.timing import StepClock, read_memory_gib, summarize_ms
from ddim_lightning.types import Progress, Stage


@dataclass(frozen=True)
class StepTiming:
    """A `StepTiming` is how long one network step took.

    Args:
        step: Position among all steps of the run, from 1, those of encoding and decoding counted.
        clip_id: The clip.
        stage: ``invert``, ``reconstruct`` or ``edit``.
        label: The stage as a person reads it, ``edit 1/2`` for example.
        done: Position in the stage, from 1.
        nfe: Function evaluations of a step of this stage on average, as planned.
        step_ms: Milliseconds.
    """

    step: int
    clip_id: str
    stage: Stage
    label: str
    done: int
    nfe: float
    step_ms: float


@dataclass(frozen=True)
class StepMemory:
    """A `StepMemory` is the memory after one step.

    Args:
        step: Position among all steps of the run, from 1.
        clip_id: The clip.
        stage: The stage, ``encode`` and ``decode`` too.
        label: The stage as a person reads it.
        done: Position in the stage, from 1.
        memory: GiB by kind; see `read_memory_gib`.
    """

    step: int
    clip_id: str
    stage: Stage
    label: str
    done: int
    memory: dict[str, float]


class _StepWatcher(Callback):
    """A `_StepWatcher` listens to a module and keeps a record for each step.

    While a clip is worked on, nothing is read from the device, logged or written: that waits for the end of the clip,
    so that watchers do not measure each other.

    Args:
        folder: Where to write the file; ``None`` writes none.
    """

    _filename: str
    records: list[Any]

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._device = torch.device("cpu")
        self._listening = False
        self._reset()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the folder before any weight is loaded, so that a bad one is not found out after an hour.

        Raises:
            OSError: When the folder cannot be made.
        """
        if stage == "predict" and self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last run and begin to listen to the module."""
        self._reset()
        if not hasattr(pl_module, "progress_listeners"):
            ours, theirs = type(self).__name__, type(pl_module).__name__
            warnings.warn(f"{ours} measures nothing: {theirs} has no `progress_listeners`", stacklevel=2)
            return
        self._device = trainer.strategy.root_device
        _get_listeners(pl_module).append(self._listen)
        self._listening = True

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Read and log the steps of a clip; those of a clip that failed on its way count like all others."""
        if self._listening:
            for step, metrics in self._read_clip(outputs):
                _log(trainer, metrics, step)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop listening, log the summary and write the file."""
        if self._listening:
            self._stop(pl_module)
            summary = self.summarize()
            metrics = {f"{name}/{stage}": value for stage, part in summary.items() for name, value in part.items()}
            if metrics:
                _log(trainer, metrics, self._step)
            self._write(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop listening and write what is known of the clips that are finished."""
        if self._listening:
            self._stop(pl_module)
            with contextlib.suppress(OSError):  # a full disk, say; what is to be told is why the run ended
                self._write(trainer)

    @abstractmethod
    def summarize(self) -> dict[str, dict[str, float]]:
        """Return numbers by stage and name."""

    @abstractmethod
    def _listen(self, progress: Progress) -> None:
        """Take in one tick, without waiting for the device."""

    @abstractmethod
    def _read_clip(self, outputs: Any) -> Iterator[tuple[int, dict[str, float]]]:
        """Make the records of a clip that is done, yielding step and metrics of each."""

    def _reset(self) -> None:
        self.records = []
        self._step = 0

    def _describe(self) -> dict[str, Any]:
        """What the file says beside the summary and the records."""
        return {}

    def _stop(self, pl_module: LightningModule) -> None:
        self._listening = False
        _get_listeners(pl_module).remove(self._listen)

    def _write(self, trainer: Trainer) -> None:
        if self.folder is None:
            return
        cuda = self._device.type == "cuda"
        content = {
            "schema": f"ddim-lightning/{self._filename}/2",
            "rank": trainer.global_rank,
            "processes": trainer.world_size,
            "device": torch.cuda.get_device_name(self._device) if cuda else str(self._device),
            "versions": read_versions(),
            **self._describe(),
            "stages": self.summarize(),
            "records": [asdict(record) for record in self.records],
        }
        rank = f"-{trainer.global_rank}" if trainer.global_rank else ""
        path = self.folder / f"{self._filename}{rank}.json"
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class StepTimer(_StepWatcher):
    """`StepTimer` times every network step of `DDIMInversionModule` under `Trainer.predict`.

    On a GPU a step is timed by CUDA events, read when its clip is done; elsewhere by the wall clock. Every logger of
    the Trainer gets ``step_ms/<stage>`` with the position of the step in the run, and the summary at the end.

    With several processes each measures its own share of the clips. Samples are not merged, since devices may differ:
    the first process writes ``timings.json``, the second ``timings-1.json`` and so on, and a process without a clip
    writes nothing. Loggers hear the first process alone.

    Args:
        folder: Where to write ``timings.json``; ``None`` writes none.
        warm_up: Steps that the summary leaves out, the run's first ones of every stage, >= 0: they pick kernels and may
            compile. Where a stage has no others, they are taken.

    Attributes:
        records: A `StepTiming` a step of the last run, in order, the warm-up too.

    Raises:
        ValueError: An argument out of its range.
    """

    _filename = "timings"
    records: list[StepTiming]
    _stages: list[tuple[StepClock, list[tuple[int, Progress]]]]

    def __init__(self, folder: str | Path | None = None, *, warm_up: int = 1) -> None:
        if warm_up < 0:
            raise ValueError(f"warm_up: must be at least 0, got {warm_up}")
        super().__init__(folder)
        self.warm_up = warm_up

    def summarize(self) -> dict[str, dict[str, float]]:
        """Summarize the steps by stage.

        Returns:
            For each stage that took a step ``step_ms_median``, ``step_ms_p10`` and ``step_ms_p90`` without the warm-up,
            ``steps``, how many there were with it, and ``nfe_a_step``.
        """
        summary = {}
        for stage in dict.fromkeys(record.stage for record in self.records):
            records = [record for record in self.records if record.stage == stage]
            times = summarize_ms([record.step_ms for record in records], self.warm_up)
            del times["step_ms"]
            nfe = sum(record.nfe for record in records) / len(records)
            summary[str(stage)] = {**times, "steps": len(records), "nfe_a_step": nfe}
        return summary

    def _listen(self, progress: Progress) -> None:
        self._step += progress.done > 0
        if not progress.nfe:
            return
        if progress.done == 0:
            self._stages.append((StepClock(self._device), []))
        else:
            clock, ticks = self._stages[-1]
            clock.mark()
            ticks.append((self._step, progress))

    def _read_clip(self, outputs: Any) -> Iterator[tuple[int, dict[str, float]]]:
        for clock, ticks in self._stages:
            for (step, tick), step_ms in zip(ticks, clock.read_ms(), strict=True):
                timing = StepTiming(step, tick.clip_id, tick.stage, tick.label, tick.done, tick.nfe, step_ms)
                self.records.append(timing)
                yield step, {f"step_ms/{tick.stage}": step_ms}
        self._stages = []

    def _reset(self) -> None:
        super()._reset()
        self._stages = []

    def _describe(self) -> dict[str, Any]:
        return {"warm_up_steps": self.warm_up}


class MemoryTimeline(_StepWatcher):
    """`MemoryTimeline` follows the memory of `DDIMInversionModule` under `Trainer.predict`, step by step.

    On a GPU it keeps the allocated and the reserved memory after every step, as far as the host has queued the work,
    and the peak of the stage so far; elsewhere the resident set of the process. Every logger of the Trainer gets
    ``allocated_gib/<stage>`` and so on with the position of the step in the run, and the peaks at the end.

    With several processes each follows itself: the first writes ``memory.json``, the second ``memory-1.json`` and so
    on, and a process without a clip writes nothing. Loggers hear the first process alone.

    Args:
        folder: Where to write ``memory.json``; ``None`` writes none.

    Attributes:
        records: A `StepMemory` a step of the last run, in order.
        peak_gib: Peak by stage: of allocated CUDA memory, weights included; on a CPU the largest resident set after a
            step.
    """

    _filename = "memory"
    records: list[StepMemory]
    peak_gib: dict[str, float]
    _clip: list[StepMemory]

    def summarize(self) -> dict[str, dict[str, float]]:
        """Return ``peak_gib`` by stage."""
        return {stage: {"peak_gib": peak} for stage, peak in self.peak_gib.items()}

    def _listen(self, progress: Progress) -> None:
        if progress.done == 0:
            return
        self._step += 1
        memory = read_memory_gib(self._device)
        self._clip.append(
            StepMemory(self._step, progress.clip_id, progress.stage, progress.label, progress.done, memory)
        )

    def _read_clip(self, outputs: Any) -> Iterator[tuple[int, dict[str, float]]]:
        for sample in self._clip:
            self.records.append(sample)
            if sample.memory:
                self._raise_peak(sample.stage, sample.memory.get("peak_gib", sample.memory.get("resident_gib", 0.0)))
            yield sample.step, {f"{name}/{sample.stage}": gib for name, gib in sample.memory.items()}
        self._clip = []
        # The module's own peaks see what comes after the last step of a stage, too. On a CPU it has none.
        for stage, peak in getattr(outputs, "peak_gib", {}).items():
            self._raise_peak(stage, peak)

    def _raise_peak(self, stage: str, gib: float) -> None:
        self.peak_gib[stage] = max(gib, self.peak_gib.get(stage, 0.0))

    def _reset(self) -> None:
        super()._reset()
        self.peak_gib, self._clip = {}, []


def _log(trainer: Trainer, metrics: dict[str, float], step: int) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step)


def _get_listeners(pl_module: LightningModule) -> list[Callable[[Progress], None]]:
    return cast(list[Callable[[Progress], None]], pl_module.progress_listeners)
