"""The words that options are chosen from."""

from __future__ import annotations

from typing import Literal

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
Offload = Literal["none", "model", "blocks"]
Precision = Literal["none", "fp8"]
Kernel = Literal["auto", "sdpa", "cudnn", "flash", "flash3", "flash4", "efficient", "xformers"]
Forward = Literal["fused", "diffusers"]
ContextStorage = Literal["device", "host", "fp8"]
RanksSplit = Literal["rows", "tokens"]
CompileMode = Literal["default", "max-autotune-no-cudagraphs"]


def check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise a ValueError unless an option is one of the allowed words."""
    if value not in allowed:
        raise ValueError(f"{name}: must be one of {', '.join(allowed)}, got {value!r}")
