"""Layers and steps, and half-open ranges of them, are named by position or by share."""

from __future__ import annotations

Place = int | float
"""A layer or a step by position; a float, 0.0 .. 1.0, is a share of all there are."""

Range = tuple[Place, Place | None]
"""Half-open range of layers or steps; ``None`` as the end is the last."""


def find_place(place: Place, size: int) -> int:
    """Return a position; shares of ``size`` are rounded."""
    return round(place * size) if isinstance(place, float) else place


def pick(places: Range, size: int) -> range:
    """Return the positions in a range of layers or steps, of which there are ``size``."""
    first, end = places
    return range(size)[find_place(first, size) : None if end is None else find_place(end, size)]


def check_range(name: str, value: Range) -> None:
    """Raise a ValueError unless an option is a half-open range."""
    first, end = value
    for place in (first, end):
        if isinstance(place, float) and not 0.0 <= place <= 1.0:
            raise ValueError(f"{name}: a float is a share and must lie in 0 .. 1, got {place}")
    ordered = end is None or isinstance(first, float) != isinstance(end, float) or first <= end
    if first < 0 or not ordered:
        raise ValueError(f"{name}: must be a range with 0 <= first <= end, got {(first, end)}")


def check_fits(name: str, value: Range, size: int) -> None:
    """Raise a ValueError unless a range ends within the layers or steps that there are."""
    first = find_place(value[0], size)
    end = size if value[1] is None else find_place(value[1], size)
    if not (first < size if value[1] is None else first <= end <= size):
        raise ValueError(f"editor.{name}: must end within the {size} that there are, got {value}")
