"""A CUDA device is emulated on a machine without one: everything about its tensors is true but their values."""

from benchmarks.emulated_cuda.device import EmulatedDevice, emulate_cuda
from benchmarks.emulated_cuda.ledger import GIB, Allocation, Ledger, Peak
from benchmarks.emulated_cuda.lines import Place
from benchmarks.emulated_cuda.waits import Wait, Waits

__all__ = ["GIB", "Allocation", "EmulatedDevice", "Ledger", "Peak", "Place", "Wait", "Waits", "emulate_cuda"]
