"""DDIM inversion and prompted editing of videos with CogVideoX, as a Lightning module.

Names are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# xformers warns at import about every torch it was not built for, and diffusers imports it. Whoever asks for it by name
# gets an error that says more.
logging.getLogger("xformers").setLevel(logging.ERROR)

if TYPE_CHECKING:
    from ddim_lightning.callbacks import ProgressPrinter
    from ddim_lightning.datamodule import VideoDataModule
    from ddim_lightning.diffusion.editors import Editor, InversionFree, KVInjection, ResidualReplay
    from ddim_lightning.diffusion.inverters import BDIA, DDIM, EditFriendly, FixedPoint, Inverter, UniInv
    from ddim_lightning.diffusion.trajectory import Inversion
    from ddim_lightning.module import DDIMInversionModule
    from ddim_lightning.sample_sheets import SampleSheets
    from ddim_lightning.shapes_datamodule import ShapesDataModule
    from ddim_lightning.timing_callbacks import MemoryTimeline, StepTimer
    from ddim_lightning.training import Training
    from ddim_lightning.types import BadClip, Branch, Clip, ClipResult, Denoiser, EditRequest, Step
    from ddim_lightning.writer import VideoWriter

_HOMES = {
    "ProgressPrinter": "callbacks",
    "VideoDataModule": "datamodule",
    "DDIMInversionModule": "module",
    "SampleSheets": "sample_sheets",
    "VideoWriter": "writer",
    "ShapesDataModule": "shapes_datamodule",
    "MemoryTimeline": "timing_callbacks",
    "StepTimer": "timing_callbacks",
    "Training": "training",
    "Editor": "diffusion.editors",
    "InversionFree": "diffusion.editors",
    "KVInjection": "diffusion.editors",
    "ResidualReplay": "diffusion.editors",
    "BDIA": "diffusion.inverters",
    "DDIM": "diffusion.inverters",
    "EditFriendly": "diffusion.inverters",
    "FixedPoint": "diffusion.inverters",
    "Inverter": "diffusion.inverters",
    "UniInv": "diffusion.inverters",
    "Inversion": "diffusion.trajectory",
    "BadClip": "types",
    "Branch": "types",
    "Clip": "types",
    "ClipResult": "types",
    "Denoiser": "types",
    "EditRequest": "types",
    "Step": "types",
}

__all__ = [
    "BDIA",
    "DDIM",
    "BadClip",
    "Branch",
    "Clip",
    "ClipResult",
    "DDIMInversionModule",
    "Denoiser",
    "EditFriendly",
    "EditRequest",
    "Editor",
    "FixedPoint",
    "Inversion",
    "InversionFree",
    "Inverter",
    "KVInjection",
    "MemoryTimeline",
    "ProgressPrinter",
    "ResidualReplay",
    "SampleSheets",
    "ShapesDataModule",
    "Step",
    "StepTimer",
    "Training",
    "UniInv",
    "VideoDataModule",
    "VideoWriter",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
