"""Ways for a new prompt to meet the trajectory of an inversion, one method per file."""

from ddim_lightning.diffusion.editors.base import Editor, EditState
from ddim_lightning.diffusion.editors.kv_injection import KVInjection

__all__ = ["EditState", "Editor", "KVInjection"]
