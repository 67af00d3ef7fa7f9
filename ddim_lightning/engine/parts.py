"""Inverters and editors are built from what a config names: a class name, a class path, or that and arguments."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

import ddim_lightning
from ddim_lightning.report.mistakes import get_nearest

Part = TypeVar("Part")

PartSpec = str | Mapping[str, Any]
"""``"UniInv"``, ``"my_package.MyInverter"``, or ``{"class_path": ..., "init_args": {...}}``."""


def check_name(spec: object, argument: str) -> None:
    """Raise a ValueError for a bare class name that is none of the package's; nothing is imported for it.

    Args:
        spec: What `make_part` takes.
        argument: ``inverter`` or ``editor``.
    """
    known = ddim_lightning.NAMES[f"diffusion.{argument}s"]
    if isinstance(spec, str) and "." not in spec and spec not in known:
        rule = f"must be a class path or of {', '.join(known)}, got {spec!r}{get_nearest(spec, known)}"
        raise ValueError(f"{argument}: {rule}")


def make_part(spec: PartSpec | Part, base: type[Part], package: str, argument: str) -> Part:
    """Build an inverter or an editor.

    Args:
        spec: An instance of ``base``, which is returned as it is; or how a config names one.
        base: The class it has to be.
        package: Where bare class names are looked up.
        argument: The argument's name, for the message.

    Raises:
        ValueError: A class that cannot be found, is not a ``base``, or does not take these arguments.
    """
    if isinstance(spec, base):
        return spec
    if isinstance(spec, str):
        spec = {"class_path": spec}
    if not isinstance(spec, Mapping) or "class_path" not in spec or set(spec) - {"class_path", "init_args"}:
        raise ValueError(f"{argument}: must be an instance, a class name or {{class_path, init_args}}, got {spec!r}")
    module_name, _, class_name = str(spec["class_path"]).rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name or package), class_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{argument}: {spec['class_path']!r} could not be found ({error})") from error
    if not (isinstance(found, type) and issubclass(found, base)) or inspect.isabstract(found):
        raise ValueError(f"{argument}: must name a concrete subclass of {base.__name__}, got {spec['class_path']!r}")
    arguments = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in (spec.get("init_args") or {}).items()
    }
    try:
        return found(**arguments)
    except TypeError as error:
        raise ValueError(f"{argument}: {class_name} does not take these arguments ({error})") from error


def describe_part(part: Any) -> dict[str, Any]:
    """Return ``{class_path, init_args}`` of an inverter or editor: what a config and a checkpoint hold.

    Args:
        part: A dataclass instance whose fields are its arguments.
    """
    init_args = {field.name: getattr(part, field.name) for field in dataclasses.fields(part) if field.init}
    return {
        "class_path": f"{type(part).__module__}.{type(part).__qualname__}",
        "init_args": {name: list(value) if isinstance(value, tuple) else value for name, value in init_args.items()},
    }
