"""The versions and devices of an installation are read, for results and for bug reports.

Nothing heavy is imported before it must be, so that this still answers where the installation is broken.
"""

from __future__ import annotations

import importlib
import logging
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_PACKAGES = (
    "ddim-lightning",
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "lightning",
    "torchmetrics",
    "jsonargparse",
    "av",
    "xformers",
)


def read_versions() -> dict[str, str | None]:
    """Versions of Python, of this package and of those it stands on; ``None`` for one that is not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return versions


def read_environment() -> dict[str, Any]:
    """The versions, the platform, CUDA and the GPUs, and what does not import, as JSON-ready values."""
    report: dict[str, Any] = {
        "versions": read_versions(),
        "platform": platform.platform(),
        "cuda": None,
        "gpus": [],
        "broken": {},
    }
    logging.getLogger("xformers").setLevel(logging.ERROR)  # it warns about every torch it was not built for
    # torchvision follows torch on purpose: built for another torch it takes lightning down with it.
    for package in ("torch", "torchvision", "diffusers", "lightning", "av", "xformers"):
        if report["versions"][package] is None:
            continue
        try:
            importlib.import_module(package)
        except Exception as error:  # a broken wheel may raise anything, and the report is about just that
            report["broken"][package] = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if "torch" not in report["broken"] and report["versions"]["torch"] is not None:
        report["cuda"], report["gpus"] = _read_gpus()
    return report


def format_environment(report: dict[str, Any]) -> str:
    """Return what `read_environment` found as lines for people."""
    rows = [*report["versions"].items(), ("platform", report["platform"]), ("CUDA", report["cuda"])]
    gpu = "{name}, {memory_gib} GiB, compute capability {compute_capability}"
    rows += [("GPU", gpu.format(**facts)) for facts in report["gpus"]]
    rows += [("broken", f"{name}: {reason}") for name, reason in report["broken"].items()]
    return "\n".join(f"{name:<16}{what or 'none'}" for name, what in rows)


def _read_gpus() -> tuple[str | None, list[dict[str, Any]]]:
    import torch

    gpus = []
    for index in range(torch.cuda.device_count()):  # pragma: no cover - cuda
        properties = torch.cuda.get_device_properties(index)
        gpus.append(
            {
                "name": properties.name,
                "memory_gib": round(properties.total_memory / 2**30, 1),
                "compute_capability": f"{properties.major}.{properties.minor}",
            }
        )
    return torch.version.cuda, gpus
