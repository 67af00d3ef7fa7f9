"""The benchmark of edits: what it compares, how it counts, and that it goes on where it stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks.edit_quality import Clip, Engines, main
from benchmarks.edit_report import read_strip, write_limits
from benchmarks.edit_set import make_edit_set
from benchmarks.edit_variants import (
    ADAPTER,
    BEGUN_AT,
    CEILING,
    DEFAULT,
    DEFAULT_GUIDANCE,
    FAST,
    INJECTION,
    LIMITS,
    METHODS,
    NO_INVERSION,
    NOTHING,
    REFERENCE,
    TRUTH_FROM,
    VARIANTS,
    Job,
    make_jobs,
)
from benchmarks.loading import EDITOR
from ddim_lightning import DDIMInversionModule
from ddim_lightning.models.vae import quantize
from ddim_lightning.tiny.shapes import render

WORK = ("nfe", "inversion_nfe")


@pytest.fixture(scope="module")
def clip(tiny_model: Path) -> Clip:
    return Clip(Engines(str(tiny_model), 2), make_edit_set("test", 3)[2])


@pytest.fixture(scope="module")
def command(tiny_model: Path) -> list[str]:
    threads = str(torch.get_num_threads())
    sizes = [
        "--quick",
        "--edits",
        "3",
        "--steps",
        "2",
        "--variants",
        f"{DEFAULT},{REFERENCE}",
        "--threads",
        threads,
    ]
    return ["--model", str(tiny_model), *sizes, "--commit", "abc", "--output"]


@pytest.fixture(scope="module")
def done(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("edits") / "new"
    assert main([*command, str(folder)]) == 0
    return folder


class TestVariants:
    def test_the_default_is_the_modules(self):
        module = DDIMInversionModule("tiny")
        default = METHODS[DEFAULT]
        assert (default.inverter, default.editor) == (module.inverter, module.editor)
        assert module.inversion_prompt == (None if default.invert_under_source else "")
        assert module.guidance_scale == DEFAULT_GUIDANCE
        assert default.source_prompt and default.seeds == 3 and DEFAULT_GUIDANCE in default.guidance

    def test_all_fit_the_bundled_model_and_are_different(self):
        for variant in VARIANTS.values():
            variant.editor.check(6, 50)
        assert len({variant.digest for variant in VARIANTS.values()}) == len(VARIANTS)

    def test_noise_is_drawn_three_times(self):
        names = {name for name, variant in VARIANTS.items() if variant.seeds == 3}
        assert names == {
            NO_INVERSION,
            REFERENCE,
            DEFAULT,
            FAST,
            "four noises",
            "EditFriendly",
            "random start",
            *ADAPTER,
            *BEGUN_AT,
        }

    def test_jobs(self):
        jobs = make_jobs([INJECTION, REFERENCE, INJECTION], [1.0, 3.0])
        assert jobs[:2] == [Job(CEILING), Job(NOTHING)]
        assert jobs[2:] == [Job(INJECTION, 1.0), Job(INJECTION, 3.0), *(Job(REFERENCE, 6.0, seed) for seed in range(3))]
        assert {job.method for job in make_jobs(["methods"], [1.0])} == {CEILING, NOTHING, *METHODS, *ADAPTER, *LIMITS}
        with pytest.raises(ValueError, match=r"variants: must be of methods; .*got 'magic'"):
            make_jobs(["magic"], [1.0])

    def test_a_record_of_other_settings_has_another_key(self, monkeypatch: pytest.MonkeyPatch):
        before = Job(DEFAULT, 3.0).make_key("dev-both-01")
        monkeypatch.setitem(VARIANTS, DEFAULT, replace(VARIANTS[DEFAULT], source_prompt=False))
        assert Job(DEFAULT, 3.0).make_key("dev-both-01") != before


class TestClip:
    @torch.inference_mode()
    def test_ceiling_and_nothing_are_the_vaes(self, clip: Clip):
        for method, frames in ((CEILING, clip.edit.truth), (NOTHING, render(clip.edit.source))):
            video, cost = clip.make_video(Job(method))
            assert torch.equal(video, clip.engine.decode(clip.engine.encode(frames)))
            assert not any(cost.values())

    @torch.inference_mode()
    def test_limits_begin_with_the_truth(self, clip: Clip):
        for variant in (LIMITS[name] for name in TRUTH_FROM):
            inversion, seconds = clip.find_inversion(variant, 0)
            assert all(torch.equal(level, clip.truth) for level in inversion.levels)
            assert (inversion.nfe, seconds) == (0, 0.0)
        assert torch.equal(clip.truth, clip.engine.encode(clip.edit.truth))
        assert METHODS[DEFAULT].editor.get_first_step(50) == min(TRUTH_FROM.values())

    @torch.inference_mode()
    def test_nfe_and_what_is_shared(self, clip: Clip, monkeypatch: pytest.MonkeyPatch):
        plain: Any = EDITOR
        free = replace(plain, first_step=0, guidance_steps=(0, None), num_noise_samples=1, eval_every=1)
        name = "truth from step 4"
        monkeypatch.setitem(VARIANTS, name, replace(VARIANTS[name], editor=free, guidance=None))
        jobs = make_jobs([INJECTION, REFERENCE, "plain inversion", name, NO_INVERSION], [3.0])
        nfe = {job.method: [clip.make_video(job)[1][name] for name in WORK] for job in jobs}
        up = VARIANTS[INJECTION].inverter.count_nfe(2)
        assert up > 2
        assert nfe[INJECTION] == [up + 2 * 3, up]
        assert nfe[REFERENCE] == [2 + 2 * 4, 2]
        assert nfe["plain inversion"] == [up + 2 * 2, up]
        assert nfe[name] == [2 * 3, 0]
        assert nfe[NO_INVERSION] == [2 * 2, 0]
        found = {
            name: clip.find_inversion(VARIANTS[name], seed)[0]
            for seed, name in enumerate((INJECTION, "plain inversion"))
        }
        assert found[INJECTION] is found["plain inversion"]
        friendly = [clip.find_inversion(VARIANTS["EditFriendly"], seed)[0] for seed in (0, 1)]
        assert not torch.equal(friendly[0].levels[0], friendly[1].levels[0])

    def test_what_the_request_tells(self, clip: Clip):
        told = clip.make_request(VARIANTS["the true mask"], 3.0)
        assert (told.prompt, told.source_prompt) == (clip.edit.target.caption, clip.edit.source.caption)
        assert told.guidance_scale == 3.0
        assert told.mask is not None
        assert told.mask.shape == (1, 3, 1, 16, 16)
        covered = clip.edit.inside[5:9].any(dim=0)  # the last latent frame's
        assert torch.equal(told.mask[0, 2, 0].bool(), covered.view(16, 4, 16, 4).any(dim=3).any(dim=1))
        assert clip.make_request(VARIANTS[REFERENCE], 6.0).source_prompt is None


def test_limits_are_drawn_where_all_of_them_were_measured(tmp_path: Path):
    def make_row(method: str, guidance: float | None, whole: float) -> dict[str, Any]:
        told = {"psnr_db": {"whole": [whole, whole, whole]}, "edited": [0.5, 0.4, 0.6]}
        return {"method": method, "guidance": guidance, "all": told}

    methods = {(CEILING, None): 31.0, (DEFAULT, 1.0): 24.0, (NOTHING, None): 16.0}
    rows = [make_row(*method, whole) for method, whole in methods.items()]
    rows += [make_row(name, 1.0, 15.0 + step / 2) for name, step in (TRUTH_FROM | BEGUN_AT).items()]
    result = {"rows": rows, "default_guidance": 1.0, "settings": {"steps": 50}}
    write_limits(tmp_path / "few.png", {**result, "rows": rows[:-1]})
    write_limits(tmp_path / "all.png", result)
    assert [path.name for path in tmp_path.iterdir()] == ["all.png"]
    with Image.open(tmp_path / "all.png") as image:
        assert image.width > 800


class TestRun:
    def test_all_is_measured_and_written(self, done: Path):
        result = json.loads((done / "result.json").read_text("utf-8"))
        assert result["environment"]["commit"] == "abc"
        assert {name: result["settings"][name] for name in ("split", "steps", "edits", "missing")} == {
            "split": "test", "steps": 2, "edits": 3, "missing": 0,
        }  # fmt: skip
        rows = {(row["method"], row["guidance"]): row for row in result["rows"]}
        assert list(rows) == [
            (CEILING, None), (NOTHING, None), *((DEFAULT, scale) for scale in (1, 2, 3, 6)), (REFERENCE, 6),
        ]  # fmt: skip
        assert rows[REFERENCE, 6]["seeds"] == 3
        assert len(set(rows[REFERENCE, 6]["each_seed"]["psnr_db"])) == 3
        for row in rows.values():
            assert set(row["kinds"]) == {"color", "shape", "both"}
            for value, low, high in row["all"]["psnr_db"].values():
                assert low <= value <= high
        assert rows[DEFAULT, 6]["seconds"] > rows[DEFAULT, 6]["inversion_seconds"] > 0
        summary = (done / "README.md").read_text("utf-8")
        assert "3 edits of the test set; 2 steps" in summary
        assert f"| {DEFAULT} | 6 | {rows[DEFAULT, 6]['all']['psnr_db']['whole'][0]:.2f} [" in summary
        assert summary.count("half the gap") == 2
        assert "limits.png" not in summary  # nothing of them was measured
        for name in ("frontier.png", "sheet.png"):
            with Image.open(done / name) as image:
                assert image.width > 800

    def test_the_clips_of_the_sheet_are_those_measured(self, done: Path, tiny_model: Path):
        (edit,) = make_edit_set("test", 1)
        with torch.inference_mode():
            video, _ = Clip(Engines(str(tiny_model), 2), edit).make_video(Job(REFERENCE, 6.0, 0))
        assert torch.equal(read_strip(done / "clips" / f"{edit.id}-reference.png"), quantize(video[0]))
        assert len(list((done / "clips").iterdir())) == 6

    def test_it_goes_on_where_it_stopped(self, done: Path, command: list[str], tmp_path: Path, capsys: Any):
        lines = (done / "records-0.jsonl").read_text("utf-8").splitlines()
        assert len(lines) == 1 + 3 * 17
        (tmp_path / "records-0.jsonl").write_text("\n".join(lines[:-2]) + "\n" + lines[-2][:40], "utf-8")
        assert main([*command, str(tmp_path), "--shard", "2/3"]) == 0
        told = capsys.readouterr().out
        assert told.splitlines()[0].startswith("test-both-00: 2 videos")
        assert not (tmp_path / "result.json").exists()  # a shard leaves the report
        assert main([*command, str(tmp_path), "--report-only"]) == 0
        first, second = (json.loads((folder / "result.json").read_text("utf-8")) for folder in (done, tmp_path))
        assert [row["all"] for row in first["rows"]] == [row["all"] for row in second["rows"]]
        assert first["settings"] == second["settings"]

    def test_records_of_another_model_are_refused(self, done: Path, command: list[str]):
        with pytest.raises(ValueError, match=r"settings: must be those of .*steps is 2 there, got 4"):
            main([*command, str(done), "--steps", "4", "--report-only"])

    def test_the_plan_counts_nfe(self, command: list[str], tmp_path: Path, capsys: Any):
        assert main([*command, str(tmp_path), "--plan"]) == 0
        plan = capsys.readouterr().out
        assert "    48 NFE  default" in plan
        assert "    24 NFE  reference" in plan
        assert "    77 NFE and 17 videos an edit" in plan
        assert "3 edits: " in plan
        assert not list(tmp_path.iterdir())
