"""These options are told to `edit`, `export` and `demo` beside the model's own groups; a field becomes a flag.

Nothing heavy is imported here. What a field means is told where its value goes, and read from there. No class may have
a name that the package exports: jsonargparse looks it up there, which would import torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from ddim_lightning.engine.config import check_guidance_scale
from ddim_lightning.engine.docstrings import read_docstring
from ddim_lightning.engine.parts import check_name

Part = dict[str, Any] | str | None
"""A class name, a class path, ``{"class_path": ..., "init_args": {...}}``, or what is recommended for the model."""


@dataclass(frozen=True)
class Run:
    """The `Run` says where a command works, where its results go, and what it prints.

    Args:
        output: Folder of the results; made when it is not there.
        accelerator: Device that works; ``auto`` is a GPU where there is one.
        overwrite: Do again what an earlier run into the folder has finished.
        json: Print JSON on stdout, and nothing else there.
        quiet: Print errors and warnings only.
    """

    output: str
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    overwrite: bool = False
    json: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class Video:
    """The `Video` is the file that is edited, and what its edits show.

    Args:
        video: The video file, or a folder of numbered frames.
        prompt: What an edit shows; repeat it for more edits.
    """

    video: str
    prompt: list[str]

    def __post_init__(self) -> None:
        if not all(prompt.strip() for prompt in self.prompt):
            raise ValueError(f"prompt: must not be blank, got {self.prompt}")


@dataclass(frozen=True)
class Frames:  # noqa: D101
    __doc__ = read_docstring("datamodule.py", "VideoDataModule")

    source_prompt: str | None = None
    negative_prompt: str = ""
    num_frames: int | Literal["all"] | None = None
    start: int = 0
    stride: int | float | Literal["spread"] = 1
    height: int | None = None
    width: int | None = None
    fit: Literal["crop", "pad", "stretch"] = "crop"
    mask: str | None = None
    first_frame: str | None = None
    fps: float | None = None

    def __post_init__(self) -> None:
        for name, least in {"num_frames": 1, "start": 0, "stride": 1, "height": 1, "width": 1, "fps": 0.01}.items():
            value = getattr(self, name)
            if isinstance(value, int | float) and not least <= value < math.inf:
                raise ValueError(f"{name}: must be at least {least}, got {value}")


@dataclass(frozen=True)
class Method:  # noqa: D101
    __doc__ = read_docstring("module.py", "DDIMInversionModule")

    model: str = "tiny"
    lora: str | list[str] = field(default_factory=list)
    guidance_scale: float | None = None
    inversion_prompt: str | None = ""
    inverter: Part = None
    editor: Part = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.guidance_scale is not None:
            check_guidance_scale(self.guidance_scale)
        for name in ("inverter", "editor"):
            check_name(getattr(self, name), name)


@dataclass(frozen=True)
class Graphs:
    """The `Graphs` say as what a network is written.

    Args:
        format: ``aoti``, compiled; ``aoti-blocks``, without weights; ``torch-export``, a graph; ``torchscript``, old.
    """

    format: Literal["aoti", "aoti-blocks", "torch-export", "torchscript"] = "aoti"
