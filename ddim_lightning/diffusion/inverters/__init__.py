"""An inverter leads from a clean video to its noise; a file holds one published method."""

from ddim_lightning.diffusion.inverters.base import Inverter, State
from ddim_lightning.diffusion.inverters.bdia import BDIA
from ddim_lightning.diffusion.inverters.ddim import DDIM
from ddim_lightning.diffusion.inverters.edit_friendly import EditFriendly
from ddim_lightning.diffusion.inverters.fixed_point import FixedPoint
from ddim_lightning.diffusion.inverters.uni_inv import UniInv

__all__ = ["BDIA", "DDIM", "EditFriendly", "FixedPoint", "Inverter", "State", "UniInv"]
