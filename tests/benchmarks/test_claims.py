"""Claims on random weights: what a CPU can tell of them, and where predictions come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.check import list_faults
from benchmarks.claims import CASES, STEPPED, main, make_markdown, read_emulated

CPU = ("--device", "cpu", "--dtype", "float32", "--commit", "abc")


@pytest.fixture(scope="module")
def folder(small_model: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("claims")
    assert main([*CPU, "--output", str(folder)]) == 0
    return folder


def test_the_file_fits_the_schema(folder: Path, result: dict[str, Any]):
    assert list_faults(folder) == []
    assert (folder / "README.md").read_text("utf-8") == make_markdown(result)


def test_a_cpu_tells_the_kernel_and_nothing_of_memory_and_waits(result: dict[str, Any]):
    assert {claim["stage"] for claim in result["claims"]} == {*CASES} - {"kernels"}
    for claim in result["claims"]:
        if claim["measured"] is None:
            assert claim["holds"] is None and claim["predicted"] >= 0
        else:
            assert claim["holds"] is True and any("scaled_dot_product" in name for name in claim["seen"])
    assert sum(claim["measured"] is not None for claim in result["claims"]) == 1


def test_the_edit_is_guided_in_the_widest_pass(result: dict[str, Any]):
    rows = {claim["stage"]: claim["rows"] for claim in result["claims"] if claim["stage"] in STEPPED}
    assert rows == {"invert": 1, "edit": 6}
    peaks = {claim["stage"]: claim["predicted"] for claim in result["claims"] if claim["claim"] == "peak GiB"}
    assert 0 < peaks["invert"] < peaks["edit"]


def test_the_prediction_of_an_emulated_device_is_that_without_offload(tmp_path: Path):
    path = tmp_path / "result.json"
    assert read_emulated(path) == {}
    rows = [{"preset": name, "peak_gib": {"edit": peak}} for name, peak in (("model", 14.0), ("none", 22.0))]
    path.write_text(json.dumps({"presets": rows}), "utf-8")
    assert read_emulated(path) == {"edit": 22.0}


@pytest.mark.gpu
def test_tiny_on_a_gpu(tmp_path: Path):
    flags = ["--device", "cuda", "--dtype", "bfloat16", "--commit", "abc", "--output", str(tmp_path)]
    assert main(flags) == 0
    for claim in json.loads((tmp_path / "result.json").read_text("utf-8"))["claims"]:
        assert claim["measured"] is not None and claim["holds"] is not None
        assert claim["claim"] == "peak GiB" or claim["holds"], claim  # small tensors are rounded up
