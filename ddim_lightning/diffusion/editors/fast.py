"""The preset ``fast``: what approximations an editor bears, chosen on the tiny model's edits."""

from __future__ import annotations

from dataclasses import replace

from ddim_lightning.diffusion.editors.base import Editor
from ddim_lightning.diffusion.editors.inversion_free import InversionFree
from ddim_lightning.diffusion.editors.kv_injection import KVInjection
from ddim_lightning.diffusion.editors.residual_replay import ResidualReplay

_STRIDES = {InversionFree: 4, KVInjection: 2}


def make_fast(editor: Editor) -> Editor:
    """Return an editor that evaluates every fourth step (`InversionFree`), or every second (`KVInjection`).

    Args:
        editor: Its other options stay; so does a larger stride.

    Raises:
        ValueError: An editor that needs every step.
    """
    stride = next((stride for kind, stride in _STRIDES.items() if isinstance(editor, kind)), None)
    if stride is None or isinstance(editor, ResidualReplay):
        raise ValueError(
            f"preset: fast is for {' and '.join(k.__name__ for k in _STRIDES)}, got {type(editor).__name__}"
        )
    return replace(editor, stride=max(stride, editor.stride))
