"""Latency by step on the bundled model, in few steps."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.check import list_faults
from benchmarks.flops import count_pass, make_sizes
from benchmarks.kernels import main as measure_kernels
from benchmarks.loading import INVERTER, load_engine
from benchmarks.measuring import tell_kernel
from benchmarks.step_latency import CASES, Runner, main, make_markdown
from ddim_lightning.models.schedulers import make_noise_schedule
from ddim_lightning.types import EditRequest

STEPS = 6
CPU = ("--device", "cpu", "--dtype", "float32", "--commit", "abc")


def run(folder: Path, *flags: str) -> dict[str, Any]:
    assert main([*CPU, "--steps", str(STEPS), "--rounds", "2", *flags, "--output", str(folder)]) == 0
    result: dict[str, Any] = json.loads((folder / "result.json").read_text("utf-8"))
    return result


@pytest.fixture(scope="module")
def roof(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("roof")
    assert measure_kernels([*CPU, "--rounds", "1", "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module", params=["eager", pytest.param("compiled", marks=pytest.mark.slow)])
def folder(request: pytest.FixtureRequest, roof: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("latency")
    run(folder, "--roof", str(roof), *(["--compile"] if request.param == "compiled" else []))
    return folder


def test_the_file_fits_the_schema_and_the_plot_is_drawn(folder: Path, is_drawn):  # type: ignore[no-untyped-def]
    assert list_faults(folder) == []
    assert is_drawn(folder / "latency.png")


def test_every_case_evaluates_what_it_plans(result: dict[str, Any]):
    schedule = make_noise_schedule(load_engine("tiny", STEPS).components.scheduler, STEPS)
    variants = 2 if result["settings"]["compile"] else 1
    for case, row in zip([case for case in CASES for _ in range(variants)], result["cases"], strict=True):
        if case.editor is None:
            # The residual's evaluation comes behind the last step.
            assert STEPS <= sum(row["nfe"]) <= INVERTER.count_nfe(STEPS) - 1
        else:
            planned = case.editor.count_nfe(EditRequest("a", guidance_scale=case.guidance_scale), schedule)
            assert sum(row["nfe"]) == planned
    nfe = {row["name"]: row["nfe"] for row in result["cases"]}
    assert nfe["four rows"] == [4] * STEPS and nfe["shared row"] == [3] * STEPS
    assert set(nfe["default edit"]) == {0, 4, 6}


def test_every_sample_is_kept_and_the_first_run_is_not_summarized(result: dict[str, Any]):
    for case in result["cases"]:
        assert [len(run) for run in case["step_ms"]] == [len(case["nfe"])] * 3
        for summary in case["by_nfe"]:
            places = [i for i, nfe in enumerate(case["nfe"]) if nfe == summary["nfe"]]
            kept = [run[i] for run in case["step_ms"][1:] for i in places]
            assert summary["steps"] == len(places) and summary["step_ms_median"] == statistics.median(kept)
        totals = [sum(run) for run in case["step_ms"]]
        assert case["cold_s"] == pytest.approx((totals[0] - statistics.median(totals[1:])) / 1e3)


def test_the_work_is_that_of_the_layout(result: dict[str, Any]):
    sizes = make_sizes(load_engine("tiny", 1).components.transformer.config, result["settings"]["latents"])
    assert result["settings"]["tokens"] == sizes.tokens
    work = {case["name"]: case["by_nfe"][-1] for case in result["cases"]}
    for name, layout in (
        ("four rows", {"rows": 4, "wanted": 2, "reads": (2, 3)}),
        ("shared row", {"rows": 3, "wanted": 2, "reads": (2, 2)}),
        # Two noises: guided pairs, each beside the source that it reads.
        ("default edit", {"rows": 6, "reads": (4, 4, 5, 5), "kv_scale": torch.full((sizes.layers,), 0.08)}),
    ):
        assert work[name]["tflop"] == pytest.approx(count_pass(sizes, **layout).total / 1e12, rel=1e-12)
        assert work[name]["tflops"] == pytest.approx(work[name]["tflop"] / work[name]["step_ms_median"] * 1e3)


def test_the_roof_is_that_of_the_kernels(result: dict[str, Any], roof: Path):
    measured = json.loads((roof / "result.json").read_text("utf-8"))["roof"]
    (one_row,) = (row for row in result["cases"][0]["by_nfe"] if row["nfe"] == 1)
    assert one_row["of_roof"] == pytest.approx(measured["row_ms"] / one_row["step_ms_median"])


def test_a_roof_of_something_else_is_refused(tmp_path: Path, roof: Path):
    other = json.loads((roof / "result.json").read_text("utf-8"))
    other["settings"]["dtype"] = "bfloat16"
    (tmp_path / "result.json").write_text(json.dumps(other), "utf-8")
    with pytest.raises(ValueError, match=r"^roof: must be measured with .*float32.*, got .*bfloat16"):
        main([*CPU, "--steps", "1", "--roof", str(tmp_path)])


def test_compiled_passes_are_compared_with_eager_ones(result: dict[str, Any]):
    for case in result["cases"]:
        if case["variant"] == "eager":
            assert case["relative_l2"] is None
        else:
            assert case["relative_l2"] <= 1e-5
            assert case["cold_s"] > 0.5


def test_the_report_is_made_of_the_result(result: dict[str, Any], folder: Path):
    report = (folder / "README.md").read_text("utf-8")
    assert report == make_markdown(result)
    for case in result["cases"]:
        assert tell_kernel(case["kernels"][0]["name"]) in report
        for row in case["by_nfe"]:
            start = f"| {case['name']} | {case['variant']} | {row['nfe']} | {row['steps']} |"
            assert f"{start} {row['step_ms_median']:.1f} |" in report


def test_what_is_not_finite_fails():
    engine = load_engine("tiny", 2)
    with torch.inference_mode():
        latents = engine.encode(torch.zeros(9, 3, 64, 64, dtype=torch.uint8))
        runner = Runner(CASES[0], "eager", engine)
        runner.run(latents * torch.nan, engine.invert(latents))
    assert not runner.finite


@pytest.mark.gpu
def test_tiny_on_a_gpu(tmp_path: Path):
    flags = ["--device", "cuda", "--dtype", "bfloat16", "--steps", "6", "--rounds", "2", "--output", str(tmp_path)]
    assert main(flags) == 0
    result = json.loads((tmp_path / "result.json").read_text("utf-8"))
    assert all(ms > 0 for case in result["cases"] for run in case["step_ms"] for ms in run)
    assert result["environment"]["driver_and_power_limit"]
