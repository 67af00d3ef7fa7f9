"""What an operation makes of tensors without values is worked out once for all tensors alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager


class _Outcome(NamedTuple):
    """An `_Outcome` is what is known of a tensor without values."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class Outcomes:
    """The `Outcomes` remember what operations have made: steps and blocks ask for the same again and again.

    PyTorch remembers it, too, in several times as long. Operations that change their arguments are not remembered.

    Args:
        fake: Works out what is not known yet.
    """

    _known: ClassVar[dict[Any, tuple[bool, tuple[_Outcome, ...]]]] = {}
    """By operation and arguments; one device is like another."""

    def __init__(self, fake: FakeTensorMode) -> None:
        self.fake = fake

    def find(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], work_out: Callable[[], Any]) -> Any:
        """Return what an operation makes.

        Args:
            func: The operation.
            args: Of it.
            kwargs: Of it.
            work_out: Carries it out.
        """
        key = None if func._schema.is_mutable else _describe((func, *args, *sorted(kwargs.items())))
        if key in self._known:
            alone, outcomes = self._known[key]
            remembered = [self._make(outcome) for outcome in outcomes]
            return remembered[0] if alone else tuple(remembered)
        made = work_out()
        tensors: list[Any] = [made] if isinstance(made, Tensor) else list(made) if isinstance(made, tuple) else [None]
        if key is not None and all(isinstance(tensor, FakeTensor) for tensor in tensors):
            outcomes = tuple(_Outcome(*_describe(tensor)[1:]) for tensor in tensors)
            self._known[key] = isinstance(made, Tensor), outcomes
        return made

    def view(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return what an operation makes that shares the memory of its first argument."""
        with in_kernel_invocation_manager(self.fake):
            made = func(*args, **kwargs)
        device = args[0].fake_device
        if isinstance(made, Tensor):
            return FakeTensor(self.fake, made, device)
        return [FakeTensor(self.fake, one, device) for one in made]

    def _make(self, outcome: _Outcome) -> Tensor:
        with in_kernel_invocation_manager(self.fake):
            made = torch.empty_strided(outcome.shape, outcome.stride, dtype=outcome.dtype, device="meta")
        return FakeTensor(self.fake, made, outcome.device)


def _describe(value: Any) -> Any:
    """Return all of a value that decides what comes of it, hashable; ``None`` where it has values that may decide."""
    if isinstance(value, FakeTensor):
        return FakeTensor, tuple(value.shape), value.stride(), value.dtype, value.fake_device
    if isinstance(value, Tensor | torch.UntypedStorage | torch.Generator):
        return None
    if isinstance(value, list | tuple):
        parts = tuple(map(_describe, value))
        return None if None in parts else parts
    return type(value), value  # 1, 1.0 and True are equal, and make other dtypes
