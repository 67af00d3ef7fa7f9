"""The folder of one clip is written: videos, sheet, trajectory and record."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ddim_lightning.data.video import write_video
from ddim_lightning.engine.trajectory import write_trajectory
from ddim_lightning.output.place import find_disk_fault, get_place, make_folder, put_in_place
from ddim_lightning.output.record import SCHEMA, dump_record, make_record
from ddim_lightning.report.sheet import Row, write_sheet
from ddim_lightning.types import Clip, ClipResult, Frames


def write_clip(
    result: ClipResult,
    output_dir: Path,
    *,
    sheets: bool = True,
    before_placing: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Write the folder of one clip; a skipped one gets none.

    Args:
        result: The clip and what became of it.
        output_dir: An existing folder.
        sheets: Whether to draw the contact sheet.
        before_placing: Called when the folder is whole, before it takes the place of an earlier one.

    Returns:
        The record, as in ``result.json``.

    Raises:
        ValueError: When the clip's id cannot be the name of a folder, or a metric is no number.
        OSError: When something that is no result of ours has the folder's name, or the disk takes no more.
    """
    clip = result.clip
    if not isinstance(clip, Clip) or result.status == "skipped":
        return make_record(result, {})
    place = get_place(output_dir, clip.id)
    with make_folder(output_dir) as folder:
        record = fill_folder(result, clip, folder, sheets=sheets)
        put_in_place(folder, place, before_placing)
    return record


def fill_folder(result: ClipResult, clip: Clip, folder: Path, *, sheets: bool = True) -> dict[str, Any]:
    """Write the files of a clip that is done into a folder of any name, and return the record; see `write_clip`."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        files = _write_videos(result, clip, folder)
    sentences = dict.fromkeys([*result.warnings, *(str(warning.message) for warning in caught)])
    result = replace(result, warnings=list(sentences))  # each file warns, once is enough
    if sheets:
        files["sheet"] = "sheet.png"
        _write_sheet(result, clip, folder / "sheet.png")
    if result.trajectory is not None:
        files["trajectory"] = "trajectory.safetensors"
        metadata = {"schema": SCHEMA, "id": clip.id, "seed": result.seed, "settings": result.settings}
        metadata["fingerprint"] = result.fingerprint
        write_trajectory(folder / "trajectory.safetensors", result.trajectory, metadata)
    record = make_record(result, files)
    (folder / "result.json").write_bytes(dump_record(record, indent=2))
    return record


def _write_videos(result: ClipResult, clip: Clip, folder: Path) -> dict[str, Any]:
    """Write source, reconstruction and edits, each with the sound of the time it covers; the files by kind."""
    chosen, audio_start_s = clip.selection, 0.0
    if chosen is not None:
        audio_start_s = float(chosen.start / (clip.fps * chosen.stride)) if chosen.start_s is None else chosen.start_s

    def write(name: str, frames: Frames) -> str:
        try:
            write_video(folder / name, frames, clip.fps, audio_from=clip.source, audio_start_s=audio_start_s)
        except Exception as error:
            if clip.source is None or find_disk_fault(error):
                raise
            # The source may be gone since it was read, or be another file; if it is not that, this fails again.
            write_video(folder / name, frames, clip.fps)
            warnings.warn(f"no sound was copied: {' '.join(str(error).split())}", stacklevel=2)
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
    given = {"mask": (clip.mask, clip.mask_source), "first frame": (clip.first_frame, clip.first_frame_source)}
    facts += [
        f"{what} {Path(file).name if file else 'given'}" for what, (one, file) in given.items() if one is not None
    ]
    # The groups' fields beside the module's own: no two have the same name.
    settings = {**result.settings, **result.settings.get("schedule", {}), **result.settings.get("runtime", {})}
    named = ("model", "num_inference_steps", "guidance_scale", "inverter", "editor")
    facts += [f"{name} {_short(settings[name])}" for name in named if name in settings]
    facts += [f"{result.windows['count']} windows"] if result.windows else []
    approximate = {"fast": False, "step_cache": None, "precision": "none", "vae_tiling": False}
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
