"""FlashAttention 3 and 4 take the place of PyTorch's own FlashAttention while a pass runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Literal

from torch.nn.attention import (
    activate_flash_attention_impl,
    current_flash_attention_impl,
    restore_flash_attention_impl,
)

Flash = Literal["FA2", "FA3", "FA4"]
"""An implementation of FlashAttention as PyTorch names it; 2 is the one that it comes with."""

PACKAGES: dict[Flash, str] = {"FA3": "flash_attn_3", "FA4": "flash-attn-4"}
"""The distribution that an implementation comes in."""


@contextmanager
def use_flash(flash: Flash | None) -> Iterator[None]:
    """Let an implementation stand behind PyTorch's operators of FlashAttention; afterwards it is the one that was.

    PyTorch has one switch for the whole process. It changes what operators call when they run, and so also what graphs
    run that were compiled before. Gradients are computed when the pass is over, by the implementation of that time.

    Args:
        flash: The implementation; ``None`` leaves the one that is switched on.

    Raises:
        ImportError: Its package is not installed, or another one that it needs.
        RuntimeError: Its package has no kernels that PyTorch can call.
    """
    before = current_flash_attention_impl()
    if flash is None or flash == (before or "FA2"):
        yield
        return
    try:
        _switch(None if flash == "FA2" else flash)
        yield
    finally:
        _switch(before)


def find_version(flash: Flash | None) -> str | None:
    """Return the version of the package that an implementation comes in; ``None`` where it is not installed."""
    try:
        return metadata.version(PACKAGES[flash]) if flash in PACKAGES else None
    except metadata.PackageNotFoundError:
        return None


def _switch(name: str | None) -> None:
    if name is not None:
        activate_flash_attention_impl(name)
    elif current_flash_attention_impl() is not None:
        restore_flash_attention_impl()
