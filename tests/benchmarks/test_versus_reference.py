"""The comparison with the reference script, on a stand-in with the script's interface."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.check import list_faults
from benchmarks.versus_reference import GOALS, compare, main, make_markdown

STUB = Path(__file__).parent / "reference_stub.py"


@pytest.fixture(scope="module", params=["eager", pytest.param("compiled", marks=pytest.mark.slow)])
def result(
    request: pytest.FixtureRequest, small_model: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], str]:
    folder = tmp_path_factory.mktemp("versus")
    left_out = ["--no-compile"] if request.param == "eager" else []
    words = ["--script", str(STUB), "--steps", "2", "--rounds", "2", "--commit", "abc", "--output", str(folder)]
    assert main([*words, *left_out]) == 0
    assert list_faults(folder) == []
    return json.loads((folder / "result.json").read_text()), (folder / "README.md").read_text()


def test_every_case_is_timed_in_every_round(result) -> None:  # type: ignore[no-untyped-def]
    samples, variants = result[0]["samples_s"], list(result[0]["deviations"])
    scripts = ["script", "script, blocks compiled"][: len(variants)]
    assert set(samples) == {
        *(f"{name}: {part}" for name in scripts for part in ("inversion", "edit")),
        *(
            f"{variant}: {part}"
            for variant in variants
            for part in (
                "inversion",
                "edit, four rows",
                "edit, shared row",
                "four edits, one pass",
                "edit under a mask",
                "default edit",
            )
        ),
    }
    assert all(len(times) == 2 and min(times) > 0 for times in samples.values())


def test_ratios_are_those_of_the_samples(result) -> None:  # type: ignore[no-untyped-def]
    samples = result[0]["samples_s"]
    ratios = {(r["case"], r["variant"], r["against"]): r["rounds"] for r in result[0]["ratios"]}
    variants = result[0]["deviations"]
    assert set(ratios) == {(case, variant, against) for _, case, variant, against, _ in GOALS if variant in variants}
    script = [a + b for a, b in zip(samples["script: inversion"], samples["script: edit"], strict=True)]
    ours = [a + b for a, b in zip(samples["eager: inversion"], samples["eager: edit, four rows"], strict=True)]
    assert ratios["four rows", "eager", "script"] == pytest.approx([a / b for a, b in zip(script, ours, strict=True)])
    if "compiled" in variants:
        times = zip(samples["compiled: inversion"], samples["compiled: four edits, one pass"], strict=True)
        ours = [a + b for a, b in times]
        assert ratios["four prompts", "compiled", "script"] == pytest.approx(
            [4 * a / b for a, b in zip(script, ours, strict=True)]
        )
    assert ratios["inversion", "eager", "script"] == pytest.approx(
        [a / b for a, b in zip(samples["script: inversion"], samples["eager: inversion"], strict=True)]
    )


def test_what_is_compared_is_the_same_work(result) -> None:  # type: ignore[no-untyped-def]
    for found in result[0]["deviations"].values():
        assert len(found) == 3
        assert max(found.values()) <= 1e-5


def test_forward_passes_are_compared_at_equal_rows(result) -> None:  # type: ignore[no-untyped-def]
    parsed, report = result
    assert [row["rows"] for row in parsed["equal_rows"]] == [1, 2, 4]
    table = report.partition("## Our forward pass against diffusers' at equal rows")[2]
    for row in parsed["equal_rows"]:
        assert len(row["rounds"]) == 2 and min(row["rounds"]) > 0
        assert row["lowest"] <= row["median"] <= row["highest"]
        assert 0 < row["relative_l2"] <= 1e-5  # the same velocities, rounded in another order
        assert f"| {row['rows']} | {row['median']:.2f} | {row['lowest']:.2f} - {row['highest']:.2f} |" in table


def test_a_result_without_equal_rows_has_a_report(result) -> None:  # type: ignore[no-untyped-def]
    older = {name: part for name, part in result[0].items() if name != "equal_rows"}
    assert "equal rows\n" not in make_markdown(older)


def test_report_says_whether_goals_are_met(result) -> None:  # type: ignore[no-untyped-def]
    parsed, report = result
    assert make_markdown(parsed) == report
    assert report.count(" met |") + report.count("NOT MET |") == len(parsed["ratios"])


def test_ratio_is_the_median_of_the_rounds() -> None:
    times = {"a": {"x": [1.0, 2.0, 4.0]}, "b": {"x": [3.0, 3.0, 4.0]}}
    assert compare(times, "a", "b", "x") == {"median": 1.5, "lowest": 1.0, "highest": 3.0, "rounds": [3.0, 1.5, 1.0]}


def test_a_missing_script_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^script: no such file, .*nowhere\.py$"):
        main(["--script", str(tmp_path / "nowhere.py")])
