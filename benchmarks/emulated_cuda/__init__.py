"""A CUDA device is emulated on a machine without one: everything about its tensors is true but their values."""

from .device import EmulatedDevice, emulate_cuda
from .ledger import GIB, Allocation, Ledger, Peak
from .lines import Place
from .waits import Wait, Waits

__all__ = ["GIB", "Allocation", "EmulatedDevice", "Ledger", "Peak", "Place", "Wait", "Waits", "emulate_cuda"]
