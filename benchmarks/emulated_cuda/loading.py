"""Weights that have no values are loaded, and are as good as any."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
from diffusers.models import model_loading_utils, modeling_utils
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from ddim_lightning.network import ignored


@contextlib.contextmanager
def patched_loading() -> Iterator[None]:
    """Let diffusers and transformers make modules on the meta device and put weights into them one by one."""
    with contextlib.ExitStack() as stack:
        # Threads of a loader would not see what emulates the device.
        stack.enter_context(patch.dict("os.environ", HF_DEACTIVATE_ASYNC_LOAD="1"))
        stack.enter_context(patch.object(modeling_utils.accelerate, "init_empty_weights", _on_meta))
        stack.enter_context(patch.object(model_loading_utils, "set_module_tensor_to_device", _place))
        stack.enter_context(patch.object(modeling_utils, "dispatch_model", lambda model, **_: None))
        # Weights of another class are those of libraries that compute with them in their own way; these are not.
        list_ignored = ignored._list_ignored
        stack.enter_context(
            patch.object(
                ignored,
                "_list_ignored",
                lambda module: (what for what in list_ignored(module) if FakeTensor.__name__ not in what),
            )
        )
        yield


@contextlib.contextmanager
def _on_meta(*_: Any, **__: Any) -> Iterator[None]:
    with torch.device("meta"):
        yield


def _place(
    model: nn.Module, name: str, device: Any, value: Any = None, dtype: torch.dtype | None = None, **_: Any
) -> None:
    """Put a weight into a model, in place of one without storage."""
    *path, last = name.split(".")
    module = model.get_submodule(".".join(path))
    value = value.to(device=device, dtype=dtype or value.dtype)
    if last in module._parameters:
        module._parameters[last] = nn.Parameter(value, requires_grad=False)
    else:
        module._buffers[last] = value
