"""What reaches a user who installs a wheel, and what an editable install finds instead."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from ddim_lightning.engine.shipped import find_shipped, get_config_path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ddim_lightning"
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel from a copy of the tree, offline, with the setuptools that is here."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("ddim_lightning", "configs", "benchmarks"):
        ignore = shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    build = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    result = subprocess.run([sys.executable, "-c", build], cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (file,) = (folder / "dist").glob("ddim_lightning-*.whl")
    return zipfile.ZipFile(file)


def test_the_wheel_carries_every_module(wheel):
    modules = {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py")}
    modules |= {f"ddim_lightning/benchmarks/{path.name}" for path in (ROOT / "benchmarks").glob("*.py")}
    assert modules <= set(wheel.namelist()), modules - set(wheel.namelist())


def test_the_wheel_carries_the_data(wheel):
    assets = {path.relative_to(ROOT).as_posix() for path in (PACKAGE / "assets").rglob("*") if path.is_file()}
    schema = "ddim_lightning/benchmarks/result.schema.json"
    data = {"ddim_lightning/py.typed", schema, *assets, *(f"ddim_lightning/configs/{name}" for name in CONFIGS)}
    assert CONFIGS
    assert data <= set(wheel.namelist()), data - set(wheel.namelist())


def test_the_wheel_carries_one_package_only(wheel):
    assert {name.split("/")[0].split("-")[0] for name in wheel.namelist()} == {"ddim_lightning"}


def test_the_wheel_refuses_the_malicious_uploads(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    requirements = Parser().parsestr(wheel.read(name).decode()).get_all("Requires-Dist")
    for project in ("lightning", "pytorch-lightning"):
        (line,) = (line for line in requirements if line.startswith((f"{project}>", f"{project}!")))
        assert {"!=2.6.2", "!=2.6.3"} <= set(line.removeprefix(project).split(","))


def test_an_unpacked_wheel_finds_its_configs(wheel, tmp_path):
    wheel.extractall(tmp_path)
    command = "from ddim_lightning.engine.shipped import get_config_path; print(get_config_path('edit'))"
    # -I keeps the checkout off the path, which is the whole point.
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {command}"
    found = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()) == tmp_path / "ddim_lightning" / "configs" / "edit.yaml"


def test_the_checkout_finds_its_configs():
    assert find_shipped("configs") == ROOT / "configs"
    assert get_config_path("edit").read_text(encoding="utf-8")


def test_an_unknown_config_is_refused_by_name():
    with pytest.raises(ValueError, match=r"^config: must be .* shipped .*edit.*, got 'nope'$"):
        get_config_path("nope")
