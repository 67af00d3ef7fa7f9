"""What tests of benchmarks share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import environment, loading

_AT_WORK = (
    *(
        "ablation",
        "budget",
        "claims",
        "cold_start",
        "consistency",
        "edit_quality",
        "end_to_end",
        "flops",
        "forward_passes",
        "in_context",
        "inversion_error",
        "kernels",
    ),
    *("layer_scan", "memory", "new_word", "predicted_memory", "round_trip", "scaling"),
    *("step_cache", "step_latency", "tiny_model", "versus_reference"),
)
"""Benchmarks whose tests run them."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that run a benchmark."""
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.stem.removeprefix("test_") in _AT_WORK:
            item.add_marker(pytest.mark.benchmark)


@pytest.fixture(scope="session", autouse=True)
def _quiet_machine() -> Iterator[None]:
    """Results of tests say that they were made at rest and of a commit, whatever else this checkout is used for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment, "_START", environment.Start("0" * 40, dirty=False, load_1min=0.25))
        yield


@pytest.fixture(scope="module")
def small_model(tiny_model: Path) -> Iterator[None]:
    """Benchmarks that know the bundled model alone load random weights instead, a small part of its size."""
    load = loading.load_components
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load_components", lambda _, **where: load(str(tiny_model), **where))
        yield


@pytest.fixture(scope="module")
def result(folder: Path) -> dict[str, Any]:
    """What a benchmark left in the folder of its test file."""
    parsed: dict[str, Any] = json.loads((folder / "result.json").read_text("utf-8"))
    return parsed


@pytest.fixture(scope="session")
def is_drawn() -> Callable[[Path], bool]:
    """Whether a plot is large and shows more than an empty page."""

    def look(path: Path) -> bool:
        with Image.open(path) as image:
            colors = image.convert("RGB").getcolors(2**24)
            return image.width > 500 and len(colors) > 10

    return look
