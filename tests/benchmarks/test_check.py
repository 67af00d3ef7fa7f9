"""What may be submitted: every committed result, and no wrong one."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.check import MODULES, SCHEMA_FILE, UNTIMED, find_environment_faults, list_faults, main

RESULTS = SCHEMA_FILE.parent / "results"
SUBMITTED = [
    path.parent
    for path in sorted(RESULTS.rglob("result.json"))
    if json.loads(path.read_text("utf-8"))["schema"] in MODULES
]


def spoil(folder: Path, change: Callable[[Any], None]) -> Path:
    """Copy a result and change something in it."""
    shutil.copytree(RESULTS / "scaling", folder, dirs_exist_ok=True)
    result = json.loads((folder / "result.json").read_text("utf-8"))
    change(result)
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    return folder


@pytest.mark.parametrize("folder", SUBMITTED, ids=lambda folder: folder.relative_to(RESULTS).as_posix())
def test_every_committed_result_is_fine(folder: Path):
    assert list_faults(folder) == []


def test_the_schema_knows_every_benchmark_that_is_checked():
    schema = json.loads(SCHEMA_FILE.read_text("utf-8"))
    assert set(schema["properties"]["schema"]["enum"]) == set(MODULES)
    named = {name.removeprefix("ddim-lightning/").removesuffix("/2") for name in MODULES}
    assert named <= set(schema["$defs"])
    assert sum("$ref" in rule["then"] for rule in schema["allOf"]) == len(MODULES) + 1  # and what speed has in common


def change_environment(**changed: Any) -> Callable[[Any], Any]:
    """Return what makes a result one of a quiet machine with four CPUs, but for what is changed."""
    return lambda result: result["environment"].update({"cpus": 4, "load_1min": 0.5, "dirty": False, **changed})


WRONG: dict[str, tuple[Callable[[Any], Any], str]] = {
    "another benchmark": (lambda result: result.update(schema="mine/1"), r"\$\.schema: 'mine/1' is not one of"),
    "no driver": (lambda result: result["environment"].pop("driver_and_power_limit"), "'driver_and_power_limit'"),
    "no commit": (lambda result: result["environment"].update(commit=None), r"\$\.environment\.commit: None"),
    "no load": (lambda result: result["environment"].pop("load_1min"), r"\$\.environment: 'load_1min' is a required"),
    "no state of the tree": (lambda result: result["environment"].pop("dirty"), "'dirty' is a required property"),
    "a load unknown": (change_environment(load_1min=None), r"\$\.environment\.load_1min: None is not of type 'number'"),
    "a tree unknown": (change_environment(dirty=None), r"\$\.environment\.dirty: None is not of type 'boolean'"),
    "a busy machine": (change_environment(load_1min=2.5), r"load_1min: must be at most 2 on 4 CPUs .*, got 2\.50"),
    "a changed tree": (change_environment(dirty=True), r"dirty: must be false, a result is of a commit, got true"),
    "nothing told by a new result": (
        change_environment(commit="0" * 40, cpus=None, load_1min=None, dirty=None),
        r"\$\.environment\.commit: '0+' is not one of",
    ),
    "a GPU unseen": (lambda result: result["settings"].update(device="cuda"), r"\$\.environment\.gpus"),
    "no samples": (lambda result: result["frames"][0].update(row_ms=[]), r"\$\.frames\[0\]\.row_ms"),
    "not finite": (lambda result: result["frames"][0].update(finite=False), r"\$\.frames\[0\]\.finite"),
    "a part too many": (lambda result: result.update(faster_by=9), "'faster_by' was unexpected"),
    "a part missing": (lambda result: result.pop("steps"), "'steps' is a required property"),
    "an edited number": (lambda result: result["frames"][0].update(tokens=81), r"README\.md: is not what"),
}


def test_a_result_of_a_quiet_machine_is_fine(tmp_path: Path):
    folder = spoil(tmp_path, change_environment(load_1min=2.0))
    assert list_faults(folder) == ["README.md: is not what this result makes; --write makes it"]
    assert list_faults(folder, write=True) == []
    assert "load of the machine before it: 2.00\n" in (folder / "README.md").read_text("utf-8")


def test_load_matters_where_time_is_measured():
    block = {"cpus": 2, "load_1min": 1.5, "dirty": False}
    assert len(find_environment_faults(block, timed=True)) == 1
    assert find_environment_faults(block, timed=False) == []
    assert set(MODULES) > UNTIMED


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_result_is_told(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    change, told = WRONG[name]
    assert main([str(RESULTS / "scaling"), str(spoil(tmp_path, change))]) == 1
    lines = capsys.readouterr().out
    assert lines.startswith(f"{RESULTS / 'scaling'}: fine\n{tmp_path}: wrong\n")
    assert re.search(told, lines), lines


def test_what_cannot_be_read_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = spoil(tmp_path, lambda result: result["frames"][0]["row_ms"].append(math.nan))
    assert main([str(folder), str(tmp_path / "missing")]) == 1
    first, why, second, missing = capsys.readouterr().out.splitlines()
    assert (first, second) == (f"{folder}: wrong", f"{tmp_path / 'missing'}: wrong")
    assert why == f"  {folder / 'result.json'}: every number must be finite, got NaN"
    assert "No such file" in missing


def test_reports_and_plots_are_made_anew(tmp_path: Path, is_drawn):  # type: ignore[no-untyped-def]
    shutil.copy(RESULTS / "scaling" / "result.json", tmp_path)
    assert main(["--write", str(tmp_path)]) == 0
    assert (tmp_path / "README.md").read_text("utf-8") == (RESULTS / "scaling" / "README.md").read_text("utf-8")
    assert is_drawn(tmp_path / "frames.png") and is_drawn(tmp_path / "resolution.png")
