"""A model is described without its weights: what would be loaded, whether it fits together, and what it needs.

Nothing heavy is imported before the files are found to be right.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ddim_lightning.data.frames import check_num_frames, make_size
from ddim_lightning.engine.config import Runtime, Source
from ddim_lightning.engine.parts import make_part
from ddim_lightning.engine.recommended import read_recommended
from ddim_lightning.models.checkpoint import WEIGHTS, Checkpoint, make_limits, read_checkpoint
from ddim_lightning.models.memory import Size, count_parameters, find_largest, predict_context, predict_peaks
from ddim_lightning.models.source import BUNDLED, resolve_model
from ddim_lightning.models.weight_files import Header, list_variants, read_headers

_BYTES = {"auto": 2, "bfloat16": 2, "float16": 2, "float32": 4}
_TESTED = {
    "bundled": "trained here; measured on a CPU, never on a GPU",
    "CogVideoX-2B": "on small random weights, on a repaired schedule; never on released weights, never on a GPU",
    "": "on small random weights, and on this configuration without values; never on released weights, never on a GPU",
}


@dataclass(frozen=True)
class Model:
    """The `Model` is what is looked at.

    Args:
        model: ``tiny``, a folder in diffusers' layout, or a hub id, of which only files on this machine are looked at
            beside its configs.
        num_frames: Frames of the clip that memory is predicted for, 4k + 1; ``None`` is the model's own number.
        height: Height in pixels of that clip; ``None`` is the model's own.
        width: Width in pixels of that clip; ``None`` is the model's own.
        json: Print JSON.
    """

    model: str
    num_frames: int | None = None
    height: int | None = None
    width: int | None = None
    json: bool = False


def tell_model(*, model: Model, source: Source, runtime: Runtime) -> str:
    """Say what `describe_model` returns, in JSON or for a person."""
    found = describe_model(model, source, runtime)
    return json.dumps(found) if model.json else format_model(found)


def describe_model(model: Model, source: Source, runtime: Runtime) -> dict[str, Any]:
    """Describe what would be loaded, JSON-ready; no weights are read or fetched, only configs and headers.

    Args:
        model: The model, and the clip that memory is predicted for.
        source: Where its weights come from beside its name.
        runtime: Its ``dtype``, ``context``, ``rows_per_pass`` and ``require_rotary`` count.

    Returns:
        ``model``, ``form``, ``parts``, ``schedulers``, ``videos``, ``memory`` and ``tested``.

    Raises:
        OSError: The model cannot be read; see `read_checkpoint`, likewise for ValueError.
        ValueError: Whatever loading would refuse, or a size that the model does not take.
    """
    checkpoint = read_checkpoint(model.model, source, require_rotary=runtime.require_rotary, require_text=False)
    limits = make_limits(checkpoint.configs["transformer"], checkpoint.configs["vae"])
    height, width = make_size(limits, model.height, model.width)
    frames = limits.num_frames if model.num_frames is None else model.num_frames
    check_num_frames(frames, limits)
    frames = min(frames, limits.num_frames)  # longer clips are done in windows
    form = _name_form(checkpoint.configs["transformer"])
    left_out = isinstance(resolve_model(model.model), Path) and not checkpoint.has_text_encoder
    parts = [part for part in WEIGHTS if not (part == "text_encoder" and left_out) and part in checkpoint.configs]
    headers = {part: _read_part(checkpoint, part) for part in parts}
    widest, holds = _find_widest(checkpoint, source)
    size = Size(
        frames,
        height,
        width,
        widest.rows,
        _BYTES[runtime.dtype],
        runtime.context if holds else "none",
        len(set(widest.reads)),
        runtime.rows_per_pass,
    )
    context = predict_context(checkpoint.configs["transformer"], limits, size)
    peaks, gpu = predict_peaks(headers, checkpoint.configs, limits, size), _read_gpu()
    largest = {offload: find_largest(needs, runtime.rows_per_pass) for offload, needs in peaks.items()}
    return {
        "model": model.model,
        "form": form,
        "parts": {part: _describe_part(checkpoint, part, headers.get(part)) for part in WEIGHTS},
        "schedulers": _describe_schedulers(checkpoint),
        "videos": asdict(limits),
        "memory": {
            **asdict(size),
            "context_gib": context,
            "peak_gib": peaks,
            "gpu": gpu,
            "fitting": None if gpu is None else [name for name, need in largest.items() if need <= gpu["room_gib"]],
        },
        "tested": _TESTED["bundled" if checkpoint.folder == BUNDLED else form if form in _TESTED else ""],
    }


def format_model(found: Mapping[str, Any]) -> str:
    """Lay out what `describe_model` returns for a person."""
    lines = [f"{found['model']}: of the form of {found['form']}"]
    for name, part in found["parts"].items():
        if part is None:
            lines.append(f"  {name}: left out; every prompt must be in a prompt_cache")
            continue
        on_disk = f"{', '.join(part['dtypes'])} on disk" if part["dtypes"] else "by its config; not on this machine"
        lines.append(f"  {name}: {part['class']}, {part['parameters'] / 1e6:,.1f} M parameters, {on_disk}")
        lines.append(f"    {part['place']}")
    schedulers = found["schedulers"]
    lines.append(f"schedulers: sampling and inversion agree, made from a {schedulers['class']}")
    lines += [f"  corrected: {sentence}" for sentence in schedulers["corrected"]]
    videos, memory = found["videos"], found["memory"]
    lines.append(f"videos: {_format_limits(videos)}")
    size = f"{memory['num_frames']} frames of {memory['height']} x {memory['width']}, {memory['rows']} rows in an edit"
    lines.append(f"memory: peaks in GiB as predicted, not measured, for {size}, {memory['bytes_each']} bytes a value")
    stages = next(iter(memory["peak_gib"].values()))
    lines.append("  offload " + "".join(f"{stage:>10}" for stage in stages))
    for offload, peaks in memory["peak_gib"].items():
        fits = "" if memory["gpu"] is None else "  fits" if offload in memory["fitting"] else "  does not fit"
        lines.append(f"  {offload:<8}" + "".join(f"{peak:>10.2f}" for peak in peaks.values()) + fits)
    lines.append(f"  {_format_gpu(memory['gpu'])}")
    sizes = ", ".join(f"{gib:.2f} with {where}" for where, gib in memory["context_gib"].items())
    there = "an edit holds" if memory["holds"] != "none" else "an InContextEdit would add in edits"
    lines.append(f"  context: keys and values of a source, which {there}: {sizes}")
    return "\n".join([*lines, f"tested: {found['tested']}"])


def _format_limits(videos: Mapping[str, Any]) -> str:
    """Say in one line which videos a model takes; see `VideoLimits`."""
    lengths = "none longer" if videos["needs_image"] else "longer ones in windows"
    sides = f"sides in multiples of {videos['multiple']}"
    if videos["fixed"]:
        lengths, sides = f"{lengths}, none shorter", "no other size"
    elif videos["largest"] is not None:
        sides = f"{sides}, {' x '.join(map(str, videos['largest']))} at most"
    native = f"{videos['num_frames']} frames of {videos['height']} x {videos['width']}"
    return f"{native}, {lengths}; {videos['temporal']}k + 1 frames, {sides}"


def _read_gpu() -> dict[str, Any] | None:
    """Read how much memory the GPU has that a run would take; ``None`` where there is none."""
    import torch

    from ddim_lightning.runtime.timing import read_room_gib

    if not torch.cuda.is_available():
        return None
    device = torch.device("cuda", torch.cuda.current_device())
    total = torch.cuda.get_device_properties(device).total_memory / 2**30
    return {"name": torch.cuda.get_device_name(device), "total_gib": total, "room_gib": read_room_gib(device)}


def _format_gpu(gpu: Mapping[str, Any] | None) -> str:
    if gpu is None:
        return "there is no GPU here to hold against it"
    return (
        f"{gpu['name']} has {gpu['total_gib']:.2f}, {gpu['room_gib']:.2f} of it free; some more is taken than allocated"
    )


def _name_form(transformer: Mapping[str, Any]) -> str:
    """Name the published model whose form a config has."""
    if transformer["patch_size_t"] is not None:
        name = "CogVideoX1.5-5B"
    else:
        name = "CogVideoX-5B" if transformer["use_rotary_positional_embeddings"] else "CogVideoX-2B"
    return name if transformer["in_channels"] == transformer["out_channels"] else f"{name}-I2V"


def _read_part(checkpoint: Checkpoint, part: str) -> dict[str, Header]:
    """Read the headers of a part's weights and check them; where they are not here its config says the same."""
    from ddim_lightning.models.loading import check_weights, make_headers

    if not (files := _list_present(checkpoint, part)):
        return make_headers(checkpoint, part)
    check_weights(checkpoint, part)
    return read_headers(files)


def _list_present(checkpoint: Checkpoint, part: str) -> list[Path]:
    """List the files of a part's weights; none where they are still on the hub."""
    place = checkpoint.get_place(part)
    if place.is_dir() and not list_variants(place, WEIGHTS[part]):
        return []
    files = checkpoint.list_weights(part)
    return files if all(path.is_file() for path in files) else []


def _describe_part(checkpoint: Checkpoint, part: str, headers: Mapping[str, Header] | None) -> dict[str, Any] | None:
    if headers is None:
        return None
    config = checkpoint.configs[part]
    return {
        "class": config.get("_class_name") or next(iter(config.get("architectures", ())), "T5EncoderModel"),
        "place": str(checkpoint.get_place(part)),
        "files": [path.name for path in _list_present(checkpoint, part)],
        "parameters": count_parameters(headers),
        "dtypes": sorted({header.dtype for header in headers.values()} - {""}),
    }


def _describe_schedulers(checkpoint: Checkpoint) -> dict[str, Any]:
    from ddim_lightning.models.schedulers import make_schedulers

    config = checkpoint.configs["scheduler"]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        make_schedulers(config)  # raises unless both agree
    corrected = [str(warning.message) for warning in said if str(warning.message).startswith("scheduler: ")]
    return {"class": config.get("_class_name"), "corrected": corrected}


def _find_widest(checkpoint: Checkpoint, source: Source) -> tuple[Any, bool]:  # a RowLayout, which imports torch
    """Find the widest pass of an edit by the recommended methods, and say whether it holds a context."""
    from ddim_lightning.diffusion.editors import Editor
    from ddim_lightning.diffusion.inverters import Inverter
    from ddim_lightning.engine.rows import find_widest
    from ddim_lightning.models.schedulers import COGVIDEOX_5B_SCHEDULER, make_noise_schedule, make_schedulers

    taken = read_recommended(checkpoint.model, source.subfolder)
    # Which rows there are does not depend on the noise levels.
    schedule = make_noise_schedule(make_schedulers(COGVIDEOX_5B_SCHEDULER)[0], taken["num_inference_steps"])
    editor = make_part(taken["editor"], Editor, "ddim_lightning.diffusion.editors", "editor")
    widest = find_widest(
        make_part(taken["inverter"], Inverter, "ddim_lightning.diffusion.inverters", "inverter"),
        editor,
        schedule,
        num_layers=int(checkpoint.configs["transformer"].get("num_layers", 30)),
        guidance_scale=float(taken["guidance_scale"]),
    )
    return widest, editor.context_nfe > 0
