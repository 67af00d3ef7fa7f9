"""Inverters and editors by object, name, class path and arguments."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from ddim_lightning.diffusion.editors import Editor, KVInjection
from ddim_lightning.diffusion.inverters import DDIM, Inverter, UniInv
from ddim_lightning.engine.parts import describe_part, make_part

INVERTERS, EDITORS = "ddim_lightning.diffusion.inverters", "ddim_lightning.diffusion.editors"


def make_inverter(spec):
    return make_part(spec, Inverter, INVERTERS, "inverter")


@pytest.mark.parametrize(
    "spec",
    [
        DDIM(keep_residual=True),
        {"class_path": "DDIM", "init_args": {"keep_residual": True}},
        {"class_path": "ddim_lightning.diffusion.inverters.DDIM", "init_args": {"keep_residual": True}},
    ],
)
def test_forms_of_a_spec(spec):
    assert make_inverter(spec) == DDIM(keep_residual=True)


def test_bare_names_take_the_defaults():
    assert make_inverter("UniInv") == UniInv()
    assert make_inverter({"class_path": "UniInv", "init_args": None}) == UniInv()


def test_description_builds_the_same_part():
    editor = KVInjection(layers=(1, None), kv_scale=0.5)
    spec = describe_part(editor)
    assert spec["init_args"]["layers"] == [1, None]
    assert make_part(spec, Editor, EDITORS, "editor") == editor


def test_a_class_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "my_spec_methods.py").write_text(
        "from dataclasses import dataclass\n"
        "from ddim_lightning import UniInv\n"
        "@dataclass(frozen=True)\n"
        "class Mine(UniInv):\n"
        "    extra: int = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    mine = make_inverter({"class_path": "my_spec_methods.Mine", "init_args": {"extra": 5}})
    assert type(mine).__name__ == "Mine" and mine.extra == 5
    assert describe_part(mine)["class_path"] == "my_spec_methods.Mine"


@dataclass(frozen=True)
class NotAnInverter:
    size: int = 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("NoSuch", "inverter: 'NoSuch' could not be found"),
        ("no_such_module.X", "inverter: 'no_such_module.X' could not be found"),
        ("ddim_lightning.diffusion.editors.KVInjection", "inverter: must name a concrete subclass of Inverter"),
        ({"class_path": "UniInv", "init_args": {"speed": 3}}, "inverter: UniInv does not take these arguments"),
        ({"class_path": "UniInv", "speed": 3}, "inverter: must be an instance, a class name or"),
        ({"init_args": {}}, "inverter: must be an instance, a class name or"),
        (NotAnInverter(), "inverter: must be an instance, a class name or"),
        ("Inverter", "inverter: must name a concrete subclass of Inverter"),
    ],
)
def test_bad_specs_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        make_inverter(spec)
