"""The account of an installation."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version

import torch

import ddim_lightning
from ddim_lightning.report.environment import read_environment, read_versions


def test_versions_are_those_installed():
    versions = read_versions()
    assert versions["ddim-lightning"] == ddim_lightning.__version__
    assert versions["torch"] == version("torch")
    assert versions["diffusers"] == version("diffusers")
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))


def test_environment_is_json_and_knows_the_gpus():
    report = json.loads(json.dumps(read_environment()))
    assert report["versions"] == read_versions()
    assert report["cuda"] == torch.version.cuda
    assert len(report["gpus"]) == torch.cuda.device_count()
    assert not report["broken"]


def test_a_package_that_does_not_import_is_reported_not_raised(tmp_path, monkeypatch):
    (tmp_path / "av.py").write_text("raise RuntimeError('operator torchvision::nms\\n does not exist')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "av", raising=False)
    assert read_environment()["broken"] == {"av": "RuntimeError: operator torchvision::nms does not exist"}


def test_a_package_that_is_missing_has_no_version(monkeypatch):
    monkeypatch.setattr("ddim_lightning.report.environment._PACKAGES", ("torch", "no-such-package"))
    versions = read_versions()
    assert versions["no-such-package"] is None
    assert versions["torch"]
