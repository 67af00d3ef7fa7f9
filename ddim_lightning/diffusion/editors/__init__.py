"""An editor says how a new prompt meets the trajectory of an inversion; a file holds one published method."""

from ddim_lightning.diffusion.editors.base import Editor, EditState
from ddim_lightning.diffusion.editors.denoise import Denoise
from ddim_lightning.diffusion.editors.direct_inversion import DirectInversion
from ddim_lightning.diffusion.editors.flow_edit import FlowEdit
from ddim_lightning.diffusion.editors.in_context_edit import InContextEdit
from ddim_lightning.diffusion.editors.kv_injection import KVInjection

__all__ = ["Denoise", "DirectInversion", "EditState", "Editor", "FlowEdit", "InContextEdit", "KVInjection"]
