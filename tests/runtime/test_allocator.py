"""Freed memory is kept, by what the C library itself says of it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes
import sys

from ddim_lightning.runtime.allocator import keep_freed_memory


class Info(ctypes.Structure):
    _fields_ = [(f"field{k}", ctypes.c_size_t) for k in range(10)]


libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
libc.mallinfo2.restype = Info
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for piece in [libc.malloc(2**23) for _ in range(8)]:
    libc.free(piece)
print(libc.mallinfo2().field8)  # fordblks, bytes that are free and were not given back
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs a GNU C library")
def test_freed_memory_stays():
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", PROGRAM, way], capture_output=True, text=True, check=True).stdout)
        for way in ("keep", "give back")
    )
    assert kept >= 8 * 2**23 > 2 * given_back
