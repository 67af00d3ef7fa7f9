"""Ways from a clean video to its noise, one published method per file."""

from ddim_lightning.diffusion.inverters.base import Inverter, State
from ddim_lightning.diffusion.inverters.ddim import DDIM
from ddim_lightning.diffusion.inverters.uni_inv import UniInv

__all__ = ["DDIM", "Inverter", "State", "UniInv"]
