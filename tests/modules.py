"""Modules for tests, from options without their groups."""

from __future__ import annotations

from ddim_lightning.engine.config import Outputs, Runtime, Schedule, Source
from ddim_lightning.module import DDIMInversionModule

GROUPS = {"source": Source, "schedule": Schedule, "runtime": Runtime, "outputs": Outputs}


def make_module(model="tiny", kind=DDIMInversionModule, **options):
    """Make a module; a field of a group of options is found by its name."""
    groups = {
        group: made(**{name: options.pop(name) for name in set(options) & set(made.__dataclass_fields__)})
        for group, made in GROUPS.items()
    }
    return kind(model, **groups, **options)
