"""The plain options of a `DDIMInversionModule`: their ranges, and which of them go together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ddim_lightning.models.quantized import check_precision
from ddim_lightning.runtime.compile import check_compile_mode
from ddim_lightning.runtime.memory import check_memory

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

_CHOICES = {
    "dtype": ("auto", *DTYPES),
    "on_error": ("skip", "raise"),
    "preset": ("exact", "fast"),
    "timestep_spacing": ("trailing", "angle"),
}


def check_options(options: Mapping[str, Any]) -> None:
    """Raise a ValueError for an option out of its range, or beside one that it does not go with.

    Args:
        options: Those of `DDIMInversionModule` by name, what trains as a dict of its fields.
    """
    num_steps, guidance_scale = options["num_inference_steps"], options["guidance_scale"]
    if not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"num_inference_steps: must be an integer of at least 1, got {num_steps}")
    if not 0 <= guidance_scale < math.inf:
        raise ValueError(f"guidance_scale: must be finite and not negative, got {guidance_scale}")
    for name, allowed in _CHOICES.items():
        if options[name] not in allowed:
            raise ValueError(f"{name}: must be one of {', '.join(allowed)}, got {options[name]!r}")
    for name in ("embeddings", "compile_cache"):
        if options[name] is not None and Path(options[name]).expanduser().is_file():
            raise ValueError(f"{name}: must be a folder, got the file {options[name]!r}")
    check_compile_mode(options["compile"])
    check_precision(options["precision"])
    _check_together(options)


def _check_together(options: Mapping[str, Any]) -> None:
    compile_mode, runtime, training, precision = (options[n] for n in ("compile", "runtime", "training", "precision"))
    if runtime is not None and (compile_mode or training is not None):
        other = "compile" if compile_mode else "training"
        raise ValueError(
            f"runtime: artefacts cannot be compiled or trained; must be unset with {other}, got {runtime!r}"
        )
    check_memory(options["memory"], compile_mode=compile_mode, runtime=runtime, training=training, precision=precision)
    if options["compile_cache"] is not None and not (compile_mode or options["compile_vae"]):
        rule = "there is nothing to keep; must be unset without compile or compile_vae"
        raise ValueError(f"compile_cache: {rule}, got {options['compile_cache']!r}")
    if precision != "none" and (runtime is not None or training is not None):
        other = "training" if runtime is None else "runtime"
        rule = f"artefacts keep their own, and 8 bits cannot train; must be none with {other}"
        raise ValueError(f"precision: {rule}, got {precision!r}")
    if options["quantize_inversion"] and precision == "none":
        got = options["quantize_inversion"]
        raise ValueError(f"quantize_inversion: must be false with a precision of none, got {got}")
    if options["embeddings"] is not None and training is not None and "text_encoder" in training["parts"]:
        rule = "embeddings of a text encoder that trains change; must be unset with training.parts of text_encoder"
        raise ValueError(f"embeddings: {rule}, got {options['embeddings']!r}")
