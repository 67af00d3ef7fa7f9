"""The benchmark of the inverters, at the size of a test, on random weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks import coming_back
from benchmarks.coming_back import come_back, measure_variant
from benchmarks.inversion_error import SPLIT, draw_clip, main
from benchmarks.inversion_report import pool_errors, tell_nfe
from benchmarks.inversion_variants import BFloat16, Variant, make_variants
from benchmarks.loading import INVERTER, load_engine
from benchmarks.tiny_model import draw_scenes
from ddim_lightning.data.streams import make_generator
from ddim_lightning.diffusion.inverters import BDIA, DDIM, EditFriendly, FixedPoint, UniInv
from ddim_lightning.diffusion.schedule import NoiseSchedule
from ddim_lightning.engine.engine import InversionEngine
from ddim_lightning.tiny.shapes import render, sample_scene
from ddim_lightning.types import Latents, Step

STEPS = 5


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips, measured by two processes, and their report."""
    output = tmp_path_factory.mktemp("benchmark") / "new"
    for flags in (["--shard", "0/2"], ["--shard", "1/2"], ["--report-only"]):
        assert run(tiny_model, output, *flags) == 0
    return output


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> InversionEngine:
    return load_engine(str(tiny_model), STEPS)


def run(model: Path, output: Path, *flags: str) -> int:
    threads = ["--threads", str(torch.get_num_threads())]
    return main(["--model", str(model), "--quick", *threads, *flags, "--commit", "abc", "--output", str(output)])


def read_records(folder: Path) -> dict[str, Any]:
    lines = [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text("utf-8").splitlines()]
    records = [json.loads(line) for line in lines]
    return {record["key"]: record["row"] for record in records if "key" in record}


def read_rows(folder: Path, name: str, factor: str = "default") -> list[dict[str, Any]]:
    rows = json.loads((folder / "result.json").read_text("utf-8"))["rows"]
    return [row for row in rows if (row["name"], row["factor"]) == (name, factor)]


def test_all_is_written(folder: Path):
    result = json.loads((folder / "result.json").read_text("utf-8"))
    assert result["schema"] == "ddim-lightning/inversion-error/2"
    assert result["environment"]["commit"] == "abc"
    assert (result["settings"]["clips"], result["settings"]["missing"]) == (2, 0)
    summary = (folder / "README.md").read_text("utf-8")
    for row in result["rows"]:
        assert f"| {tell_nfe(row)} + {row['reconstruction_nfe']} | {row['psnr']['db']:.1f} (" in summary
    tables = [line for line in summary.splitlines() if line.startswith("| ")]
    # Three lines of the source's table, a head each, and one line a row.
    assert len([line for line in tables if "---" not in line]) == 3 + 2 + len(result["rows"])
    for name in ("per_level.png", "washout.png"):
        assert f"]({name})" in summary
        with Image.open(folder / name) as image:
            assert image.width > 900


def test_the_numbers_are_those_of_the_records(folder: Path):
    records = read_records(folder)
    mine = [records[f"00{clip}/default/5 steps/{INVERTER!r}/(1.0, 6.0)/seed 0"] for clip in (0, 1)]
    without, kept = read_rows(folder, "UniInv")
    for row, end in ((without, "without_residual"), (kept, "with_residual")):
        errors = [record["back"][0][end]["squared_error"] for record in mine]
        assert row["psnr"]["db"] == pytest.approx(-10 * math.log10(sum(errors) / 2))
        assert row["psnr"]["worst"] == pytest.approx(-10 * math.log10(max(errors)))
        assert row["psnr"]["worst"] <= row["psnr"]["low"] <= row["psnr"]["db"] <= row["psnr"]["high"]
        assert row["relative_l2"] == pytest.approx(sum(r["back"][0][end]["relative_l2"] for r in mine) / 2)
        assert row["noise"]["std"] == pytest.approx(sum(record["noise"]["std"] for record in mine) / 2)
    assert not without["residual"]
    assert kept["residual"]
    assert without["psnr"] != kept["psnr"]
    levels = [record["back"][0]["level_errors"] for record in mine]
    assert kept["level_errors"] == pytest.approx([(a + b) / 2 for a, b in zip(*levels, strict=True)])
    assert kept["level_errors"][0] == 0
    assert kept["level_errors"][-1] == pytest.approx(without["relative_l2"])
    assert len(kept["angles"]) == len(kept["level_errors"]) == STEPS + 1


def test_nfe_are_counted_for_every_inverter(folder: Path):
    counts = {
        name: [(row["inversion_nfe"], row["reconstruction_nfe"]) for row in read_rows(folder, name)]
        for name in (
            "DDIM",
            "UniInv as published",
            "UniInv",
            "UniInv, 5 more NFE next to clean",
            "BDIA",
        )
    }
    assert counts == {
        "DDIM": [(5, 5)],
        "UniInv as published": [(5, 5), (6, 5)],
        "UniInv": [(5, 5), (6, 5)],
        "UniInv, 5 more NFE next to clean": [(10, 5), (11, 5)],
        "BDIA": [(10, 4)],
    }
    (drawn,) = read_rows(folder, "EditFriendly")
    assert (drawn["inversion_nfe"], drawn["reconstruction_nfe"], drawn["seeds"]) == (5, 5, 3)
    assert drawn["noise"]["std"] == pytest.approx(1.0, abs=0.05)
    for row in read_rows(folder, "UniInv", "guidance 6 back, source prompt"):
        assert row["reconstruction_nfe"] == 10
    (fewer,) = read_rows(folder, "DDIM", "3 steps")
    assert (fewer["inversion_nfe"], fewer["reconstruction_nfe"]) == (3, 3)


def test_exact_methods_are_exact_and_rounding_costs_them_that(folder: Path):
    for name in ("BDIA", "EditFriendly"):
        (row,) = read_rows(folder, name)
        assert row["psnr"]["worst"] > 100
        assert row["relative_l2"] < 1e-5
    (rounded,) = read_rows(folder, "BDIA", "bfloat16 latents")
    assert rounded["psnr"]["db"] < 80


def test_a_second_start_measures_only_what_is_missing(
    folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
):
    before, result = read_records(folder), read_rows(folder, "UniInv as published")
    path = folder / "records-1.jsonl"
    lines = path.read_text("utf-8").splitlines(keepends=True)
    gone = next(line for line in lines if "first_step_iterations=0, extrapolate=False" in line)
    path.write_text("".join(line for line in lines if line != gone), "utf-8")
    assert run(tiny_model, folder) == 0
    assert "clip 1 of 2: 1 inversions" in capsys.readouterr().out
    after = read_records(folder)
    key = json.loads(gone)["key"]
    assert after.keys() == before.keys()
    assert all(after[name] == row for name, row in before.items() if name != key)
    assert after[key]["back"][0]["with_residual"] == before[key]["back"][0]["with_residual"]
    assert [row["psnr"] for row in read_rows(folder, "UniInv as published")] == [row["psnr"] for row in result]
    with pytest.raises(ValueError, match="seed is 0 there, got 1"):
        run(tiny_model, folder, "--seed", "1")


def test_a_report_leaves_out_clips_that_are_not_complete(folder: Path, tiny_model: Path, tmp_path: Path):
    (tmp_path / "records-0.jsonl").write_bytes((folder / "records-0.jsonl").read_bytes())
    assert run(tiny_model, tmp_path, "--report-only") == 0
    settings = json.loads((tmp_path / "result.json").read_text("utf-8"))["settings"]
    assert (settings["clips"], settings["missing"]) == (1, 1)
    assert "; 1 more are not complete" in (tmp_path / "README.md").read_text("utf-8")
    with pytest.raises(ValueError, match=r"^records: must hold at least one clip complete"):
        run(tiny_model, tmp_path / "empty", "--report-only")


@torch.inference_mode()
def test_a_record_is_what_the_engine_does(folder: Path, engine: InversionEngine):
    scene = sample_scene(make_generator(0, SPLIT, 0))
    assert scene not in draw_scenes(64, 0)
    latents = engine.encode(render(scene))
    ceiling = engine.decode(latents).double()
    inversion = engine.invert(latents)
    returned = engine.reconstruct(inversion)
    record = read_records(folder)[f"000/default/5 steps/{INVERTER!r}/(1.0, 6.0)/seed 0"]
    kept = record["back"][0]["with_residual"]
    assert kept["squared_error"] == pytest.approx(float((engine.decode(returned).double() - ceiling).square().mean()))
    assert kept["relative_l2"] == pytest.approx(float((returned - latents).norm() / latents.norm()), rel=1e-4)
    assert record["nfe"] == inversion.nfe
    assert record["noise"]["std"] == pytest.approx(float(inversion.levels[0].std(correction=0)), rel=1e-4)


@torch.inference_mode()
def test_levels_never_reach_the_way_back(engine: InversionEngine, monkeypatch: pytest.MonkeyPatch):
    seen = []

    def spy(denoiser, inversion, **others):
        seen.append(inversion)
        return reconstruct(denoiser, inversion, **others)

    reconstruct = coming_back.reconstruct
    monkeypatch.setattr(coming_back, "reconstruct", spy)
    clip = draw_clip(engine, 0, 0)
    for inverter in (DDIM(), UniInv(), FixedPoint(), BDIA(), EditFriendly(), BFloat16(inner=UniInv())):
        measure_variant(engine, clip, Variant("", inverter, steps=STEPS), 0)
        assert seen[-1].levels.numel() == 0
    assert len(seen) == 6


@torch.inference_mode()
def test_without_the_residual_it_is_as_if_none_had_been_kept(engine: InversionEngine):
    clip = draw_clip(engine, 0, 1)
    both = measure_variant(engine, clip, Variant("", UniInv(), steps=STEPS), 0)
    none = measure_variant(engine, clip, Variant("", UniInv(keep_residual=False), steps=STEPS), 0)
    assert none["back"][0]["without_residual"] == both["back"][0]["without_residual"]
    assert none["nfe"] == both["nfe"] - 1
    assert "with_residual" not in none["back"][0]


@torch.inference_mode()
def test_prompt_and_guidance_reach_the_network(engine: InversionEngine, monkeypatch: pytest.MonkeyPatch):
    clip, told = draw_clip(engine, 0, 0), []
    monkeypatch.setattr(engine.denoiser, "encode_prompt", lambda prompt: told.append(prompt) or engine.prompts(prompt))
    inversion = engine.invert(clip.latents, prompt="")
    assert set(told) == {""}
    told.clear()
    come_back(engine, clip, inversion, 6.0)
    assert told == ["", clip.caption] * STEPS
    told.clear()
    come_back(engine, clip, inversion, 1.0)
    assert told == [""] * STEPS


def test_bfloat16_rounds_the_state_of_every_step():
    schedule = NoiseSchedule((800, 300), (1.4, 0.6, 0.0))
    inverter = BFloat16(inner=UniInv(first_step_iterations=0))
    levels: list[Latents] = []

    def velocity_fn(latents: Latents, step: Step) -> Latents:
        levels.append(latents)
        return 0.3 * latents + step.angle

    latents = torch.linspace(-1, 1, 30, dtype=torch.float64).view(1, 1, 2, 3, 5)
    state = inverter.init(latents, None)
    assert torch.equal(state[0], latents)
    for i in (1, 0):
        state = inverter.invert_step(velocity_fn, state, schedule, i)
        assert all(torch.equal(entry, entry.bfloat16().to(entry.dtype)) for entry in state)
    start = inverter.init(latents, None)
    exact, rounded = (
        UniInv(first_step_iterations=0).invert_step(velocity_fn, start, schedule, 1),
        inverter.invert_step(velocity_fn, start, schedule, 1),
    )
    assert torch.equal(rounded[0], exact[0].bfloat16().double())
    assert not torch.equal(rounded[0], exact[0])
    down = inverter.denoise_step(velocity_fn, state, schedule, 0)
    assert torch.equal(down[0], UniInv().denoise_step(velocity_fn, state, schedule, 0)[0].bfloat16().double())
    assert inverter.count_nfe(7) == UniInv(first_step_iterations=0).count_nfe(7)


def test_decibels_come_from_one_pooled_error():
    # Two clips, the second under two seeds: its errors count half each.
    psnr = pool_errors([[1e-2], [1e-4, 3e-4]])
    assert psnr["db"] == pytest.approx(-10 * math.log10((1e-2 + 2e-4) / 2))
    assert psnr["worst"] == pytest.approx(20.0)
    assert psnr["low"] == pytest.approx(20.0)
    assert psnr["high"] == pytest.approx(-10 * math.log10(2e-4))
    assert pool_errors([[0.0]])["db"] == math.inf


def test_every_factor_differs_from_the_default_in_one_thing():
    variants = make_variants(50, (10, 25))
    default = {variant.name: variant for variant in variants if variant.factor == "default"}
    assert [repr(variant.inverter) for variant in default.values()] == [
        repr(inverter)
        for inverter in (
            DDIM(),
            UniInv(extrapolate=False, extra_evals=0.0),
            UniInv(extrapolate=True, extra_evals=0.12),
            UniInv(extrapolate=True, first_step_iterations=5, extra_evals=0.0),
            FixedPoint(),
            BDIA(),
            EditFriendly(),
        )
    ]
    for variant in variants:
        if variant.factor == "default":
            continue
        plain = default[variant.name]
        names = ("inverter", "steps", "spacing", "source_prompt")
        assert sum(getattr(variant, name) != getattr(plain, name) for name in names) == 1, variant
    keys = [variant.make_key(3, seed) for variant in variants for seed in variant.seeds]
    assert len(set(keys)) == len(keys)
