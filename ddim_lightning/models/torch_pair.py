"""Importing this checks that torch and torchvision fit each other, before diffusers and transformers fail on it."""

from __future__ import annotations

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError as error:  # "operator torchvision::nms does not exist"; it would take lightning and T5 down with it
    raise ImportError(
        f"torchvision does not fit torch {torch.__version__} ({error}): install both together from one index, for "
        "example with 'pip install --force-reinstall torch torchvision'; a CPU-only build of torch has no torchvision"
    ) from error
