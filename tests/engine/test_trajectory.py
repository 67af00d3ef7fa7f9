"""Trajectories on disk."""

from __future__ import annotations

import subprocess
import sys
from itertools import permutations

import pytest
import torch
from safetensors.torch import save_file

from ddim_lightning.engine.trajectory import read_trajectory, write_trajectory

METADATA = {"schema": 1, "id": "bunny é", "settings": {"seed": 3, "guidance_scale": 6.0, "dtype": None}}


def test_round_trip(tmp_path):
    tensors = {
        "levels": torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).reshape(2, 3, 4, 5).transpose(1, 2),
        "angles": torch.linspace(0, 1.5, 7, dtype=torch.float64),
    }
    write_trajectory(tmp_path / "t.safetensors", tensors, METADATA)
    found, metadata = read_trajectory(tmp_path / "t.safetensors")
    assert metadata == METADATA
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert [path.name for path in tmp_path.iterdir()] == ["t.safetensors"]


def test_equal_input_gives_equal_bytes_in_any_order(tmp_path):
    names = ["state", "levels", "angles"]
    for number, order in enumerate([*permutations(names)] * 2):
        tensors = {name: torch.full((2, 3), float(len(name))) for name in order}
        write_trajectory(tmp_path / f"{number}", tensors, {name: len(name) for name in order[::-1]})
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


@pytest.mark.slow  # by default those of two processes are compared in tests/cli/test_commands.py
def test_equal_input_gives_equal_bytes_in_every_process(tmp_path):
    code = """
import sys, torch
from ddim_lightning.engine.trajectory import write_trajectory
names = ["state", "levels", "angles"]
metadata = {name: len(name) for name in names}
write_trajectory(sys.argv[1], {name: torch.full((2, 3), float(len(name))) for name in names}, metadata)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "1")], check=True)
    names = ["angles", "state", "levels"]
    tensors = {name: torch.full((2, 3), float(len(name))) for name in names}
    write_trajectory(tmp_path / "2", tensors, {name: len(name) for name in names})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_a_foreign_file_is_refused(tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"^path: must be a trajectory written by ddim_lightning, got .*x\.saf"):
        read_trajectory(tmp_path / "x.safetensors")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nope\.safetensors"):
        read_trajectory(tmp_path / "nope.safetensors")
