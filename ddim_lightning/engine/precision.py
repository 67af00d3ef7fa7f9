"""A Trainer's precision says in which dtype weights are loaded and networks compute."""

from __future__ import annotations

from dataclasses import replace

import torch

from ddim_lightning.engine.config import Dtype, Runtime

_WANTED: dict[str, Dtype] = {
    "bf16-true": "bfloat16",
    "16-true": "float16",
    "bf16-mixed": "bfloat16",
    "16-mixed": "float16",
}


def take_precision(runtime: Runtime, precision: str, *, keeps_dtype: bool = False) -> Runtime:
    """Return the runtime with the dtype that a Trainer's precision asks for.

    Mixed precision keeps float32 weights for the optimizer's sake. Where nothing trains there is no need of them, and
    it is the lower precision.

    Args:
        runtime: The options of the module.
        precision: As `Trainer.precision` says it; ``32-true`` asks for nothing, since it is Lightning's default.
        keeps_dtype: Whether the weights keep their dtype under mixed precision: they train, or are loaded already.

    Raises:
        ValueError: A precision that networks do not run in, or a dtype that contradicts it.
    """
    if precision == "32-true":
        return runtime
    if precision not in _WANTED:
        known = ", ".join(("32-true", *_WANTED))
        raise ValueError(f"precision: the Trainer's must be one of {known}, got {precision!r}")
    wanted = _WANTED[precision]
    if precision.endswith("mixed"):
        return runtime if keeps_dtype or runtime.dtype != "auto" else replace(runtime, dtype=wanted)
    if runtime.dtype not in ("auto", wanted):
        raise ValueError(f"dtype: must be auto or {wanted} under precision={precision!r}, got {runtime.dtype!r}")
    return replace(runtime, dtype=wanted)


def describe_precision(precision: str, dtype: torch.dtype, *, trains: bool = False) -> str | None:
    """Say what became of a Trainer's precision; ``None`` where it asks for nothing.

    Args:
        precision: As `Trainer.precision` says it.
        dtype: Of the transformer's weights as they are loaded.
        trains: Whether some of them train.
    """
    wanted = _WANTED.get(precision)
    if wanted is None:
        return None
    name = str(dtype).removeprefix("torch.")
    if name == wanted:
        return f"precision {precision}: weights are loaded in {name}, and networks compute in it."
    if trains:
        return f"precision {precision}: training steps run under autocast, and clips are computed in {name}."
    return f"precision {precision}: has no effect on weights in {name}, in which networks compute."
