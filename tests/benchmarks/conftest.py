"""What tests of benchmarks share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture(scope="session")
def is_drawn() -> Callable[[Path], bool]:
    """Whether a plot is large and shows more than an empty page."""

    def look(path: Path) -> bool:
        with Image.open(path) as image:
            colours = image.convert("RGB").getcolors(2**24)
            return image.width > 500 and len(colours) > 10

    return look
