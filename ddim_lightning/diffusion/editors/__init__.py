"""Ways for a new prompt to meet the trajectory of an inversion, one method per file."""

from ddim_lightning.diffusion.editors.base import Editor, EditState
from ddim_lightning.diffusion.editors.inversion_free import InversionFree
from ddim_lightning.diffusion.editors.kv_injection import KVInjection
from ddim_lightning.diffusion.editors.residual_replay import ResidualReplay

__all__ = ["EditState", "Editor", "InversionFree", "KVInjection", "ResidualReplay"]
