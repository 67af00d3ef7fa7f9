"""The writer fills the output folder: videos, sheet, record and trajectory of every clip, and one list of all."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from ddim_lightning.data.video import write_video
from ddim_lightning.engine.trajectory import write_trajectory
from ddim_lightning.report.environment import read_versions
from ddim_lightning.report.sheet import Row, write_sheet
from ddim_lightning.report.text import dump_json
from ddim_lightning.types import Clip, ClipResult, Frames

SCHEMA = 2
"""Version of the keys of ``result.json``."""
RESULTS = "results.jsonl"
_PARTS = ".results"


class VideoWriter(BasePredictionWriter):
    """A `VideoWriter` writes what `DDIMInversionModule.predict_step` returns, one folder a clip, as soon as it is done.

    ``OUT/<id>/`` holds ``source.mp4`` (the frames the model saw), ``reconstruction.mp4``, ``edit-00.mp4`` and so on,
    ``sheet.png``, ``result.json`` and, when saved, ``trajectory.safetensors``; it takes its name when it is whole.
    ``OUT/results.jsonl`` holds the records of the last run, skipped clips too, a line a clip, sorted by id; when a run
    fails or is interrupted, those of the clips that were finished. It alone says what the last run did: the folder of a
    clip that an older run did and this one skips stays as it is.
    A PSNR of equal videos is infinite, which JSON cannot say: it is written as ``null``.

    Args:
        output_dir: The folder; made when it is not there.
        sheets: Whether to draw contact sheets.
    """

    def __init__(self, output_dir: str, *, sheets: bool = True) -> None:
        super().__init__(write_interval="batch")
        self.output_dir = output_dir
        self.sheets = sheets

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the folder before any weight is loaded, so that a bad one is not found out after an hour.

        Raises:
            OSError: When the folder cannot be made or written to.
        """
        super().setup(trainer, pl_module, stage)
        if stage != "predict":
            return
        make_output_dir(self.output_dir)
        if trainer.is_global_zero:
            shutil.rmtree(self._parts, ignore_errors=True)
            self._parts.mkdir()
            Path(self.output_dir, RESULTS).unlink(missing_ok=True)  # the list of another run
        trainer.strategy.barrier("output folder")

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: ClipResult,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write one clip."""
        record = write_clip(prediction, Path(self.output_dir), sheets=self.sheets)
        self._parts.mkdir(exist_ok=True)
        with (self._parts / f"{trainer.global_rank:05d}.jsonl").open("a", encoding="utf-8") as file:
            file.write(_dump(record) + "\n")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Merge the ranks' records on rank 0."""
        # Not in on_predict_end: a rank that was given no clip never gets there, and the barrier would wait for it.
        if stage != "predict":
            return
        trainer.strategy.barrier("all clips written")
        if trainer.is_global_zero:
            self._merge()
            shutil.rmtree(self._parts, ignore_errors=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """List the clips that are finished when a run fails or is interrupted."""
        # No barrier, since the other ranks may never come to it; and their records stay for who still is at work.
        if trainer.is_global_zero and self._parts.is_dir():  # else the run ended before it began
            with contextlib.suppress(OSError):  # a full disk, say; what is to be told is why the run ended
                self._merge()

    def _merge(self) -> None:
        """Make one list of what all ranks have written so far."""
        records = [record for part in self._parts.glob("*.jsonl") for record in _read_lines(part)]
        lines = [_dump(record) + "\n" for record in sorted(records, key=lambda record: str(record["id"]))]
        partial = Path(self.output_dir, f".{RESULTS}.partial")
        partial.write_text("".join(lines), encoding="utf-8")
        os.replace(partial, Path(self.output_dir, RESULTS))

    @property
    def _parts(self) -> Path:
        return Path(self.output_dir, _PARTS)


def make_output_dir(output_dir: str | Path) -> Path:
    """Make a folder, with its parents, and see that files can be written into it.

    Args:
        output_dir: The folder; may be there already.

    Returns:
        Its path.

    Raises:
        OSError: When it cannot be made, is not a folder, or cannot be written to.
    """
    folder = Path(output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        rule = f"output_dir: must be a folder that can be written to, got {str(folder)!r}"
        raise type(error)(f"{rule}: {error.strerror}") from error
    return folder


def read_results(output_dir: str | Path) -> list[dict[str, Any]]:
    """Read the records of the last run into a folder.

    Args:
        output_dir: The folder a `VideoWriter` wrote to.

    Returns:
        One record a clip, sorted by id; the keys are those of ``result.json``.

    Raises:
        FileNotFoundError: When no run into this folder has ended.
    """
    return _read_lines(Path(output_dir, RESULTS))


def _read_lines(path: Path) -> list[dict[str, Any]]:
    # A line ends with "\n" and nothing else: a prompt may hold what `splitlines` takes for an end, and the last line
    # of a rank that is still writing may have none.
    return [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]


def write_clip(result: ClipResult, output_dir: Path, *, sheets: bool = True) -> dict[str, Any]:
    """Write the folder of one clip; a skipped one gets none.

    Args:
        result: The clip and what became of it.
        output_dir: An existing folder.
        sheets: Whether to draw the contact sheet.

    Returns:
        The record, as in ``result.json``.
    """
    clip = result.clip
    if not isinstance(clip, Clip) or result.status == "skipped":
        return make_record(result, {})
    folder = output_dir / clip.id
    partial = output_dir / f".{clip.id}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        files = _write_videos(result, clip, partial)
    sentences = dict.fromkeys([*result.warnings, *(str(warning.message) for warning in caught)])
    result = replace(result, warnings=list(sentences))  # each file warns, once is enough
    if sheets:
        files["sheet"] = "sheet.png"
        _write_sheet(result, clip, partial / "sheet.png")
    if result.trajectory is not None:
        files["trajectory"] = "trajectory.safetensors"
        metadata = {"schema": SCHEMA, "id": clip.id, "seed": result.seed, "settings": result.settings}
        metadata["fingerprint"] = result.fingerprint
        write_trajectory(partial / "trajectory.safetensors", result.trajectory, metadata)
    record = make_record(result, files)
    (partial / "result.json").write_text(_dump(record, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return record


def make_record(result: ClipResult, files: Mapping[str, Any]) -> dict[str, Any]:
    """Say in JSON's types what became of a clip: the content of ``result.json``.

    Args:
        result: The clip and what became of it.
        files: What was written, by kind; names are relative to the clip's folder.

    Returns:
        The record; its keys always stand in the same order.

    Raises:
        ValueError: When a metric is no number (NaN).
    """
    clip = result.clip
    frames: dict[str, float] | None = None
    if isinstance(clip, Clip):
        chosen = clip.selection
        frames = {
            "start": chosen.start if chosen else 0,
            "stride": chosen.stride if chosen else 1,
            "count": len(clip.frames),
            "dropped": chosen.dropped if chosen else 0,
        }
    return {
        "schema": SCHEMA,
        "id": clip.id,
        "status": result.status,
        "reason": result.reason,
        "prompts": list(clip.prompts),
        "seed": result.seed,
        "frames": frames,
        "fps": f"{clip.fps.numerator}/{clip.fps.denominator}" if isinstance(clip, Clip) else None,
        "metrics": {
            "vae": _finite(result.metrics.get("vae", {})),
            "reconstruction": _finite(result.metrics.get("reconstruction", {})),
            "edits": [_finite(edit.metrics) for edit in result.edits],
        },
        "diagnosis": dict(result.diagnosis),
        "seconds": _finite(result.seconds),
        "nfe": dict(result.nfe),
        "peak_gib": _finite(result.peak_gib),
        "settings": {**result.settings, **_clip_settings(clip)},
        "versions": read_versions(),
        "warnings": list(result.warnings),
        "files": {"input": clip.source, **files},
    }


def _clip_settings(clip: Any) -> dict[str, Any]:
    if not isinstance(clip, Clip):
        return {}
    return {
        "source_prompt": clip.source_prompt,
        "negative_prompt": clip.negative_prompt,
        "mask": clip.mask_source or clip.mask is not None,
    }


def _finite(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """Turn infinity, the PSNR of equal videos, and nothing else into JSON's null."""
    for name, number in numbers.items():
        if math.isnan(number) or number == -math.inf:
            raise ValueError(f"metrics: {name} must be a number, got {number}")
    return {name: None if number == math.inf else number for name, number in numbers.items()}


def _dump(record: Mapping[str, Any], indent: int | None = None) -> str:
    return dump_json(record, indent)


def _write_videos(result: ClipResult, clip: Clip, folder: Path) -> dict[str, Any]:
    """Write source, reconstruction and edits, each with the sound of the time it covers; the files by kind."""
    audio_start_s = 0.0
    if clip.selection is not None:
        audio_start_s = float(clip.selection.start / (clip.fps * clip.selection.stride))

    def write(name: str, frames: Frames) -> str:
        write_video(folder / name, frames, clip.fps, audio_from=clip.source, audio_start_s=audio_start_s)
        return name

    files: dict[str, Any] = {"source": write("source.mp4", clip.frames)}
    if result.reconstruction is not None:
        files["reconstruction"] = write("reconstruction.mp4", result.reconstruction)
    files["edits"] = [write(f"edit-{index:02d}.mp4", edit.frames) for index, edit in enumerate(result.edits)]
    return files


def _write_sheet(result: ClipResult, clip: Clip, path: Path) -> None:
    vae = _note(result.metrics.get("vae", {}), "VAE round trip")
    rows = [Row("source", clip.frames, clip.source_prompt or "", vae)]
    if result.reconstruction is not None:
        rows.append(Row("reconstruction", result.reconstruction, note=_note(result.metrics.get("reconstruction", {}))))
    for index, edit in enumerate(result.edits):
        rows.append(Row(f"edit {index:02d}", edit.frames, edit.prompt))
    count, _, height, width = clip.frames.shape
    facts = [f"{count} frames", f"{float(clip.fps):.4g} fps", f"{width} x {height}", f"seed {result.seed}"]
    facts += [] if clip.mask is None else [f"mask {Path(clip.mask_source).name if clip.mask_source else 'given'}"]
    # The groups' fields beside the module's own: no two have the same name.
    settings = {**result.settings, **result.settings.get("schedule", {}), **result.settings.get("runtime", {})}
    shown = ("model", "num_inference_steps", "guidance_scale", "inverter", "editor")
    facts += [f"{name} {_short(settings[name])}" for name in shown if name in settings]
    approximate = {"fast": False, "precision": "none", "vae_tiling": False}
    facts += [f"{name} {settings[name]}" for name, off in approximate.items() if settings.get(name, off) != off]
    write_sheet(path, rows, title=clip.id, subtitle="  ·  ".join(facts), fps=clip.fps)


def _note(metrics: Mapping[str, float], what: str = "") -> str:
    """``PSNR 31.2 dB, 40.1 dB against the VAE round trip``, as far as it is known."""
    if "psnr" not in metrics:
        return ""
    note = f"{what} PSNR {metrics['psnr']:.1f} dB".strip()
    return note + (f", {metrics['psnr_vs_vae']:.1f} dB against the VAE" if "psnr_vs_vae" in metrics else "")


def _short(setting: Any) -> str:
    """A class path without its package, anything else as it is."""
    return str(setting["class_path"]).rpartition(".")[2] if isinstance(setting, dict) else str(setting)
