"""The package inverts and edits videos with CogVideoX by DDIM, as a Lightning module.

Names are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

# xformers warns at import about every torch it was not built for, and diffusers imports it. Whoever asks for it by name
# gets an error that says more.
logging.getLogger("xformers").setLevel(logging.ERROR)

if TYPE_CHECKING:
    from ddim_lightning.blocks import DecodeBlock, EditBlock, EncodeBlock, InvertBlock, ReconstructBlock
    from ddim_lightning.callbacks.adapter_writer import AdapterWriter
    from ddim_lightning.callbacks.inversion import InversionCallback
    from ddim_lightning.callbacks.measure import MemoryTimeline, StepTimer
    from ddim_lightning.callbacks.progress import ProgressPrinter
    from ddim_lightning.callbacks.sample_sheets import SampleSheets
    from ddim_lightning.community import CogVideoXDDIMInversionOutput, CogVideoXPipelineForDDIMInversion
    from ddim_lightning.data.batches import Batches
    from ddim_lightning.datamodule import VideoDataModule
    from ddim_lightning.diffusion.editors import Denoise, DirectInversion, Editor, FlowEdit, InContextEdit, KVInjection
    from ddim_lightning.diffusion.inversion import Inversion
    from ddim_lightning.diffusion.inverters import BDIA, DDIM, EditFriendly, FixedPoint, Inverter, UniInv
    from ddim_lightning.diffusion.objectives import InContextEditing, InversionConsistency, Objective, Velocity
    from ddim_lightning.engine.config import Outputs, Runtime, Schedule, Source, Training
    from ddim_lightning.module import DDIMInversionModule
    from ddim_lightning.output.show import show
    from ddim_lightning.pair_datamodule import PairDataModule
    from ddim_lightning.types import Branch, Clip, ClipResult, Denoiser, EditRequest, Step, UnreadableClip
    from ddim_lightning.writer import VideoWriter

NAMES = {
    "blocks": ("DecodeBlock", "EditBlock", "EncodeBlock", "InvertBlock", "ReconstructBlock"),
    "callbacks.adapter_writer": ("AdapterWriter",),
    "callbacks.inversion": ("InversionCallback",),
    "callbacks.measure": ("MemoryTimeline", "StepTimer"),
    "callbacks.progress": ("ProgressPrinter",),
    "callbacks.sample_sheets": ("SampleSheets",),
    "community": ("CogVideoXDDIMInversionOutput", "CogVideoXPipelineForDDIMInversion"),
    "data.batches": ("Batches",),
    "datamodule": ("VideoDataModule",),
    "diffusion.editors": ("Denoise", "DirectInversion", "Editor", "FlowEdit", "InContextEdit", "KVInjection"),
    "diffusion.inversion": ("Inversion",),
    "diffusion.inverters": ("BDIA", "DDIM", "EditFriendly", "FixedPoint", "Inverter", "UniInv"),
    "diffusion.objectives": ("InContextEditing", "InversionConsistency", "Objective", "Velocity"),
    "engine.config": ("Outputs", "Runtime", "Schedule", "Source", "Training"),
    "module": ("DDIMInversionModule",),
    "output.show": ("show",),
    "pair_datamodule": ("PairDataModule",),
    "types": ("Branch", "Clip", "ClipResult", "Denoiser", "EditRequest", "Step", "UnreadableClip"),
    "writer": ("VideoWriter",),
}
_HOMES = {name: home for home, names in NAMES.items() for name in names}

# fmt: off
__all__ = [
    "BDIA", "DDIM", "AdapterWriter", "Batches", "Branch", "Clip", "ClipResult", "CogVideoXDDIMInversionOutput",
    "CogVideoXPipelineForDDIMInversion", "DDIMInversionModule", "DecodeBlock", "Denoise", "Denoiser",
    "DirectInversion", "EditBlock", "EditFriendly", "EditRequest", "Editor", "EncodeBlock", "FixedPoint",
    "FlowEdit", "InContextEdit", "InContextEditing", "Inversion", "InversionCallback", "InversionConsistency",
    "InvertBlock", "Inverter", "KVInjection", "MemoryTimeline", "Objective", "Outputs", "PairDataModule",
    "ProgressPrinter", "ReconstructBlock", "Runtime", "SampleSheets", "Schedule", "Source", "Step", "StepTimer",
    "Training", "UniInv", "UnreadableClip", "Velocity", "VideoDataModule", "VideoWriter",
    "show",
]
# fmt: on


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
