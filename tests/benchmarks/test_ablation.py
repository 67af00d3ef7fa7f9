"""One switch at a time: on random weights, in few steps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import ablation
from benchmarks.ablation import EXACT, Variant, compare, main, make_ladder, make_markdown, make_switches
from benchmarks.check import list_faults
from benchmarks.loading import EDITOR
from ddim_lightning.models.loading import load_components


@pytest.fixture(scope="module")
def result(small_model: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    folder = tmp_path_factory.mktemp("ablation")
    words = ["--steps", "6", "--rounds", "2", "--edits", "1", "--no-compile", "--commit", "abc", "--output"]
    assert main([*words, str(folder)]) == 0
    assert list_faults(folder) == []
    return json.loads((folder / "result.json").read_text()), (folder / "README.md").read_text()


def test_each_list_begins_with_what_is_exact(result) -> None:  # type: ignore[no-untyped-def]
    for variants, name in ((make_switches(torch.device("cpu")), "switches"), (make_ladder(), "ladder")):
        assert variants[0].name == EXACT and len({variant.name for variant in variants}) == len(variants)
        measured = result[0][name]
        assert measured[0]["name"] == EXACT and measured[0]["relative_l2"] == 0.0
        left_out = [variant.name for variant in variants if variant.compiled]
        assert [row["name"] for row in measured] == [v.name for v in variants if v.name not in left_out]


def test_switches_spare_evaluations_and_say_what_they_cost(result) -> None:  # type: ignore[no-untyped-def]
    rows = {row["name"]: row for row in result[0]["switches"]}
    exact = rows[EXACT]
    assert all(len(row["edit_s"]) == len(row["invert_s"]) == 2 for row in rows.values())
    for name in ("one noise", "no guidance", "every fourth step"):
        assert rows[name]["edit_nfe"] < exact["edit_nfe"]
    for name in ("one noise", "kv_scale 0", "every fourth step"):
        assert 0.0 < rows[name]["relative_l2"] < 1.0
        assert rows[name]["psnr_db"] != exact["psnr_db"]
    assert {row["invert_nfe"] for row in rows.values()} == {exact["invert_nfe"]}


def test_the_vae_is_the_same_up_to_rounding(result) -> None:  # type: ignore[no-untyped-def]
    plain, ordered = result[0]["vae"]
    assert (plain["name"], ordered["name"]) == ("plain", "channels last")
    assert plain["latents_l2"] == plain["video_l2"] == 0.0
    assert 0.0 < ordered["latents_l2"] < 1e-5 and ordered["video_l2"] < 1e-5
    assert len(ordered["encode_s"]) == len(ordered["decode_s"]) == 2


def test_report_is_made_of_the_result(result) -> None:  # type: ignore[no-untyped-def]
    parsed, report = result
    assert make_markdown(parsed) == report
    rows = {row["name"]: row for row in parsed["switches"]}
    ratio = compare(rows[EXACT], rows["every fourth step"])
    loss = rows["every fourth step"]["psnr_db"] - rows[EXACT]["psnr_db"]
    (line,) = [line for line in report.splitlines() if line.startswith("| every fourth step |")]
    assert f"| {ratio:.2f} |" in line and line.endswith(f"| {loss:+.2f} |")


def test_at_full_size_only_the_distance_is_told(  # type: ignore[no-untyped-def]
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_drawn
) -> None:
    rungs = [Variant(EXACT), Variant("kv_scale 0", replace(EDITOR, kv_scale=0.0), exact=False)]
    monkeypatch.setattr(ablation, "make_switches", lambda device: rungs)
    monkeypatch.setattr(ablation, "make_ladder", lambda: rungs)
    small = load_components(str(tiny_model), device=torch.device("cpu"), dtype=torch.float32)
    monkeypatch.setattr(ablation, "load_parts", lambda args: small)
    words = ["--full-size", "--device", "cpu", "--dtype", "float32", "--steps", "2", "--rounds", "1", "--no-compile"]
    assert main([*words, "--commit", "abc", "--output", str(tmp_path)]) == 0
    assert list_faults(tmp_path) == []
    assert is_drawn(tmp_path / "ladder.png")
    exact, other = json.loads((tmp_path / "result.json").read_text())["ladder"]
    assert exact["psnr_db"] is other["psnr_db"] is None
    assert exact["relative_l2"] == 0.0 < other["relative_l2"]
    assert " | not measured |" in (tmp_path / "README.md").read_text()


def test_times_are_compared_round_by_round() -> None:
    base = {"invert_s": [1.0, 1.0, 2.0], "edit_s": [1.0, 3.0, 2.0]}
    assert compare(base, {"invert_s": [0.5, 0.5, 0.5], "edit_s": [0.5, 0.5, 0.5]}) == 4.0
