"""A benchmark stops by itself in time, and names what it left out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class Deadline:
    """A `Deadline` is the time that a benchmark has for its cases, counted from here.

    Args:
        budget_s: Seconds; ``None`` for as many as it takes.
        read_s: The clock.
    """

    def __init__(self, budget_s: float | None = None, read_s: Callable[[], float] = time.monotonic) -> None:
        self._budget_s, self._read_s, self._start_s = budget_s, read_s, read_s()
        self._skipped: list[str] = []
        self._waiting: list[str] = []

    @property
    def left_out(self) -> list[str]:
        """Names of the cases that no time was left for; while cases are still taken, also of those to come."""
        return [*self._skipped, *self._waiting]

    def take(
        self, cases: Iterable[T], name: Callable[[T], str] = str, cost: Callable[[T], float] = lambda case: 1.0
    ) -> Iterator[T]:
        """Yield the cases that there is time for, one behind the other; the first in any case.

        A case is expected to take as long as the dearest before it, in proportion to what they cost. One that takes
        longer is not interrupted.

        Args:
            cases: All of them, in order.
            name: Tells the name of a case.
            cost: Tells what a case costs, in any unit.
        """
        cases, rate = list(cases), 0.0
        self._waiting += map(name, cases)
        for k, case in enumerate(cases):
            waiting = self._waiting.pop(0)
            start = self._read_s()
            if k and self._budget_s is not None:
                left_s = self._budget_s - (start - self._start_s)
                if left_s < rate * cost(case):
                    self._skipped.append(waiting)
                    continue
            yield case
            rate = max(rate, (self._read_s() - start) / cost(case))
