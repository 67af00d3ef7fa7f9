"""Memory by stage on random weights; here the presets share a process, for the time it takes to start one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from benchmarks import memory
from benchmarks.check import list_faults
from benchmarks.memory import digest, main, make_markdown
from benchmarks.stages import STAGES, run_fresh
from ddim_lightning.engine.config import Offload


@pytest.fixture(scope="module")
def folder(small_model: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("memory")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "run_fresh", lambda function, *arguments: function(*arguments))
        flags = ["--device", "cpu", "--dtype", "float32", "--commit", "abc", "--steps", "2", "--output", str(folder)]
        assert main(flags) == 0
    return folder


def test_the_file_fits_the_schema_and_the_plot_is_drawn(folder: Path, is_drawn):  # type: ignore[no-untyped-def]
    assert list_faults(folder) == []
    assert is_drawn(folder / "memory.png")


def test_every_preset_has_every_stage_and_gives_the_same_bytes(result: dict[str, Any]):
    assert [row["preset"] for row in result["presets"]] == list(get_args(Offload))
    for row in result["presets"]:
        assert list(row["memory"]) == list(row["seconds"]) == list(STAGES)
        assert all(0 < taken["resident_gib"] < 64 for taken in row["memory"].values())
        assert row["digests"] == result["presets"][0]["digests"] and row["same_bytes"] is True
    names = {"reconstructed latents", "edited latents", "reconstruction", "edit"}
    assert set(row["digests"]) == names and len(set(row["digests"].values())) == 4


def test_the_report_says_so(result: dict[str, Any], folder: Path):
    report = (folder / "README.md").read_text("utf-8")
    assert report == make_markdown(result)
    assert "to the last byte: model yes, blocks yes" in report
    result["presets"][1]["same_bytes"] = False
    assert "to the last byte: model NO, blocks yes" in make_markdown(result)


def test_digests_tell_tensors_apart():
    tensor = torch.arange(6.0).view(2, 3)
    assert digest(tensor) == digest(tensor.clone()) != digest(tensor + 1e-6)


def test_a_fresh_process_is_another_one():
    assert run_fresh(os.getpid) != os.getpid()


@pytest.mark.gpu
def test_tiny_on_a_gpu(tmp_path: Path):
    assert main(["--device", "cuda", "--dtype", "bfloat16", "--steps", "2", "--output", str(tmp_path)]) == 0
    for row in json.loads((tmp_path / "result.json").read_text("utf-8"))["presets"]:
        for taken in row["memory"].values():
            assert 0 < taken["allocated_gib"] <= min(taken["peak_gib"], taken["reserved_gib"])
            assert taken["reserved_gib"] < taken["device_gib"]
