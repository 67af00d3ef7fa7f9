"""The benchmark of single kernels, at the sizes of the tiny model on a CPU."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import kernels
from benchmarks.check import list_faults
from benchmarks.kernels import WARM_UP, draw, main, make_markdown
from ddim_lightning.network.attention import Attention, sdpa_attention
from ddim_lightning.network.kernels import CPU_KERNELS

TOKENS, WIDTH = 208, 128  # 16 of text, 3 x 8 x 8 of video; 4 heads of 32
CPU = ("--device", "cpu", "--dtype", "float32")


def run(folder: Path, *flags: str, status: int = 0, basic: Sequence[str] = CPU) -> dict[str, Any]:
    assert main([*basic, "--rounds", "3", "--commit", "abc", *flags, "--output", str(folder)]) == status
    result: dict[str, Any] = json.loads((folder / "result.json").read_text("utf-8"))
    return result


def check_numbers(result: dict[str, Any], rows: int = 1, size: int = 4) -> None:
    for row in result["rows"]:
        kept = row["ms"][WARM_UP:]
        assert len(kept) == 3 and min(kept) > 0
        assert row["ms_median"] == statistics.median(kept)
        assert min(kept) <= row["ms_p10"] <= row["ms_median"] <= row["ms_p90"] <= max(kept)
        assert row["tflops"] == pytest.approx(row["flops"] / row["ms_median"] / 1e9, rel=1e-12)
        assert row["finite"] is True and row["seen"]
        if row["kind"] == "attention":
            keys = {"own": 1, "double": 2}[row["keys"]]
            assert row["flops"] == rows * 4 * TOKENS * TOKENS * WIDTH * keys
            # Queries and output, keys and values.
            assert row["bytes"] == rows * size * TOKENS * WIDTH * (2 + 2 * keys)
        else:
            tokens, inputs, outputs = row["tokens"], row["inputs"], row["outputs"]
            assert tokens == rows * TOKENS
            assert row["flops"] == 2 * tokens * inputs * outputs
            assert row["bytes"] == size * (tokens * inputs + (inputs + 1) * outputs + tokens * outputs)
    copy = result["copy"]
    assert copy["gb_per_s"] == pytest.approx(copy["bytes"] / statistics.median(copy["ms"][WARM_UP:]) / 1e6)
    roof = result["roof"]
    for kind in ("attention", "product"):
        assert roof[f"{kind}_tflops"] == max(row["tflops"] for row in result["rows"] if row["kind"] == kind)
    work = roof["row_tflop"]
    seconds = work["linear"] / roof["product_tflops"] + work["attention"] / roof["attention_tflops"]
    assert roof["row_ms"] == pytest.approx(seconds * 1e3)


def test_everything_is_measured_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str], is_drawn):  # type: ignore[no-untyped-def]
    result = run(tmp_path / "new" / "folder", "--seed", "5")
    assert result["schema"] == "ddim-lightning/kernels/2"
    assert result["environment"]["commit"] == "abc"
    assert result["environment"]["versions"]["torch"] == version("torch")
    settings = {"model": "tiny", "tokens": TOKENS, "heads": 4, "head_channels": 32, "rounds": 3, "rows": 1, "seed": 5}
    assert settings.items() <= result["settings"].items()
    attention = [(row["kernel"], row["form"], row["keys"]) for row in result["rows"] if row["kind"] == "attention"]
    forms = ("plain", "log-sum-exp")
    assert attention == [("sdpa", form, keys) for keys in ("own", "double") for form in forms]
    assert all(row["relative_l2"] <= 1e-6 for row in result["rows"] if row["kind"] == "attention")
    assert {row["product"]: (row["inputs"], row["outputs"]) for row in result["rows"] if row["kind"] == "product"} == {
        "qkv": (128, 384),
        "out": (128, 128),
        "up": (128, 512),
        "down": (512, 128),
    }
    check_numbers(result)
    summary = (tmp_path / "new" / "folder" / "README.md").read_text("utf-8")
    assert summary == capsys.readouterr().out == make_markdown(result)
    assert list_faults(tmp_path / "new" / "folder") == []
    assert is_drawn(tmp_path / "new" / "folder" / "roofline.png")


def test_what_a_cpu_cannot_run_is_listed(tmp_path: Path):
    result = run(tmp_path)
    kernels_of_gpus = ["cudnn", "flash", "flash3", "flash4", "efficient", "xformers"]
    assert [row["kernel"] for row in result["not_run"]] == kernels_of_gpus
    summary = (tmp_path / "README.md").read_text("utf-8")
    assert "- not run: flash: needs a CUDA device\n" in summary


def test_the_table_holds_the_numbers_of_the_file(tmp_path: Path):
    result = run(tmp_path, "--rows", "2")
    check_numbers(result, rows=2)
    lines = [line for line in make_markdown(result).splitlines() if line.startswith("| ")]
    assert len(lines) == 2 + len(result["rows"])
    for row in result["rows"]:
        name = " | ".join(row[key] for key in ("kernel", "form", "keys", "product") if key in row)
        (line,) = (line for line in lines if line.startswith(f"| {name} |"))
        assert f" {row['ms_median']:.4g} | {row['ms_p10']:.4g} | {row['ms_p90']:.4g} | {row['tflops']:.4g} |" in line


def fail(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    raise RuntimeError("no kernel for this head size\nand a page of more")


def miss(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    return torch.full_like(query, torch.nan)


def double(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    return 2 * sdpa_attention(query, key, value, bias)


def test_a_kernel_that_fails_is_listed_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernels, "CPU_KERNELS", {"broken": Attention("broken", fail), **CPU_KERNELS})
    result = run(tmp_path)
    told = [row for row in result["not_run"] if row["kernel"] == "broken"]
    reason = {"kernel": "broken", "form": "plain", "reason": "RuntimeError: no kernel for this head size"}
    assert told == [{**reason, "keys": keys} for keys in ("own", "double")]
    summary = (tmp_path / "README.md").read_text("utf-8")
    assert "- not run: broken plain own: RuntimeError: no kernel for this head size\n" in summary
    assert {row["kernel"] for row in result["rows"] if row["kind"] == "attention"} == {"sdpa"}


def test_nothing_that_runs_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernels, "CPU_KERNELS", {"broken": Attention("broken", fail)})
    with pytest.raises(RuntimeError, match=r"^attention: no kernel runs on cpu"):
        run(tmp_path)


def test_a_wrong_kernel_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wrong = {"missing": Attention("missing", miss), "double": Attention("double", double)}
    monkeypatch.setattr(kernels, "CPU_KERNELS", {**wrong, **CPU_KERNELS})
    result = run(tmp_path, status=1)
    seen = {row["kernel"]: (row["finite"], row["relative_l2"]) for row in result["rows"] if row["kind"] == "attention"}
    assert seen["missing"] == (False, None)
    assert seen["double"] == (True, pytest.approx(1.0, rel=1e-5))
    assert "| not finite |" in (tmp_path / "README.md").read_text("utf-8")


def test_inputs_are_random_and_follow_the_seed():
    like = {"device": torch.device("cpu"), "dtype": torch.bfloat16}
    first, again, other = draw((100, 7), like, 0), draw((100, 7), like, 0), draw((100, 7), like, 1)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.dtype == torch.bfloat16
    assert first.float().std().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("flag", ["--rounds", "--rows"])
def test_at_least_one_of_each(flag: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main([*CPU, flag, "0"])
    assert stop.value.code == 2
    assert f"argument {flag}: must be an integer of at least 1, got '0'" in capsys.readouterr().err


@pytest.mark.gpu
def test_tiny_on_a_gpu(tmp_path: Path):
    result = run(tmp_path, basic=("--device", "cuda", "--dtype", "bfloat16"))
    check_numbers(result, size=2)
    ran = {row["kernel"] for row in result["rows"] if row["kind"] == "attention"}
    assert {"sdpa", "flash", "efficient"} <= ran
    assert all(row["relative_l2"] < 2e-2 for row in result["rows"] if row["kind"] == "attention")
