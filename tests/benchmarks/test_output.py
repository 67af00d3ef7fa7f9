"""The flags, the models and the files that benchmarks share."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import environment
from benchmarks.arguments import QUICK_STEPS, add_steps, make_parser
from benchmarks.environment import Start, read_block, read_processor, read_start
from benchmarks.loading import FULL_SIZE, load_parts, name_model
from benchmarks.output import tell_origin, tell_place, write_files, write_growing
from benchmarks.plots import Line, plot_steps


def draw(folder: Path, result: Mapping[str, Any]) -> None:
    plot_steps(folder / "plot.png", [Line("inversion", (1, 2), (3, 4))], title="t", x_label="x", y_label="y")


def test_quick_is_few_steps():
    parser = make_parser("step_latency", "What it measures.\n\nMore.")
    add_steps(parser)
    assert parser.parse_args([]).steps == 50
    assert parser.parse_args(["--quick"]).steps == QUICK_STEPS
    assert "More." not in parser.format_help()


def test_full_size_is_the_published_architecture():
    args = argparse.Namespace(full_size=True, device="meta", dtype="bfloat16", seed=0)
    assert name_model(args) == FULL_SIZE
    transformer = load_parts(args).transformer
    assert transformer.dtype == torch.bfloat16
    assert sum(p.numel() for p in transformer.parameters()) == pytest.approx(5.57e9, rel=1e-3)


def test_files_are_written_and_plots_drawn(tmp_path: Path, is_drawn):  # type: ignore[no-untyped-def]
    write_files(None, {}, "report", draw)
    write_files(tmp_path / "a" / "b", {"schema": "mine/1"}, "report", draw)
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == ["README.md", "plot.png", "result.json"]
    assert is_drawn(tmp_path / "a" / "b" / "plot.png")


def test_without_matplotlib_the_result_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    write_files(tmp_path, {"schema": "mine/1"}, "report", draw)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "result.json"]
    assert f"`python -m benchmarks.check --write {tmp_path}` draws them elsewhere" in capsys.readouterr().out


def test_a_result_stays_as_far_as_it_has_grown(tmp_path: Path, is_drawn, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    def grow() -> Iterator[Mapping[str, Any]]:
        yield {"cases": 1}
        assert json.loads((tmp_path / "result.json").read_text("utf-8")) == {"cases": 1}
        assert (tmp_path / "README.md").read_text("utf-8") == "1 cases\n"
        if cut_off:
            raise KeyboardInterrupt
        yield {"cases": 2}

    def report(result: Mapping[str, Any]) -> str:
        return f"{result['cases']} cases\n"

    cut_off = True
    with pytest.raises(KeyboardInterrupt):
        write_growing(tmp_path, grow(), report, draw)
    assert json.loads((tmp_path / "result.json").read_text("utf-8")) == {"cases": 1}
    cut_off = False
    assert write_growing(tmp_path, grow(), report, draw) == {"cases": 2}
    assert capsys.readouterr().out == (tmp_path / "README.md").read_text("utf-8") == "2 cases\n"
    assert is_drawn(tmp_path / "plot.png")


def test_without_a_result_the_budget_is_named():
    with pytest.raises(ValueError, match=r"^budget: "):
        write_growing(None, (), str)


@pytest.mark.parametrize(
    ("original", "argv", "told"),
    [
        (["/a/python3", "-m", "benchmarks.memory", "-x"], ["/b/memory.py", "-x"], "python3 -m benchmarks.memory"),
        (["/a/python3", "/c/ddim-lightning", "env"], ["/c/ddim-lightning", "env"], "ddim-lightning"),
    ],
)
def test_a_command_is_told_without_the_folders_of_a_machine(original, argv, told, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.setattr(sys, "orig_argv", original)
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "executable", original[0])
    assert read_block("abc")["command"] == " ".join([told, *argv[1:]])


def test_the_state_of_a_checkout(tmp_path: Path):
    def git(*words: str) -> str:
        names = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", "-C", str(tmp_path), *names, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    no_checkout = read_start(tmp_path)
    assert (no_checkout.commit, no_checkout.dirty) == (None, None)
    for name in ("code.py", "benchmarks/results/result.json"):
        (tmp_path / name).write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    (tmp_path / "benchmarks" / "results" / "result.json").write_text("2")  # what a benchmark itself leaves
    clean = read_start(tmp_path)
    assert (clean.commit, clean.dirty) == (git("rev-parse", "HEAD"), False)
    assert clean.load_1min == pytest.approx(os.getloadavg()[0], abs=1)
    (tmp_path / "code.py").write_text("2")
    assert read_start(tmp_path).dirty is True


def test_a_result_tells_load_and_tree(monkeypatch: pytest.MonkeyPatch):
    def read(start: Start, commit: str | None = None) -> list[Any]:
        monkeypatch.setattr(environment, "_START", start)
        block = read_block(commit)
        return [block[name] for name in ("commit", "dirty", "load_1min")]

    checkout, copy = Start("abc", True, 0.5), Start(None, None, 0.5)
    assert read(checkout) == ["abc", True, 0.5]
    assert read(checkout, "def") == ["def", True, 0.5]
    assert read(Start("abc", False, 0.5), "abc") == ["abc", False, 0.5]
    # Who names the commit of a copy says as git does whether files were changed.
    assert read(copy) == [None, None, 0.5]
    assert read(copy, "abc") == ["abc", False, 0.5]
    assert read(copy, "abc-dirty") == ["abc", True, 0.5]


def test_a_report_names_the_processor_where_it_is_known():
    told = tell_origin({"environment": read_block()})
    assert told.endswith(f"; processor: {read_processor()}")
    assert torch.backends.cpu.get_cpu_capability() in told
    assert "processor" not in tell_origin({"environment": {**read_block(), "processor": None}})


def test_a_gpu_is_named_by_its_name():
    environment = {"gpus": [{"name": "NVIDIA X"}], "versions": {"torch": "2.11"}}
    for device, place in (("cuda", "NVIDIA X"), ("cpu", "a CPU")):
        settings = {"device": device, "dtype": "bfloat16"}
        assert tell_place({"environment": environment, "settings": settings}) == f"{place}, torch 2.11, bfloat16"
