"""The numbers of a public benchmark: FiVE's definitions by hand, each measured once, averaged table by table."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
from PIL import Image

from ddim_lightning.data.benchmark import read_benchmark
from ddim_lightning.data.video import read_frames
from ddim_lightning.metrics.measures import Networks
from ddim_lightning.output.scores import Scorer
from tests.benchmark_folders import write_five, write_results


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    root = tmp_path_factory.mktemp("five")
    benchmark = read_benchmark("five", write_five(root / "five", count=17, as_mp4=()))
    return benchmark, write_results(benchmark, root / "out"), root


def score(five, output, records=None):
    benchmark, all_records, _ = five
    return Scorer(benchmark, output, Networks(), "cpu").score(records or all_records)


def measure_by_hand(root, clip, index):
    """PSNR of every 8th picture outside its mask, which is black there; edits come to the source's size by PIL."""
    found = []
    for k, frame in zip(
        (0, 8, 16), read_frames(root / "out" / clip / f"edit-{index:02d}.mp4", [0, 8, 16]), strict=True
    ):
        source = Image.open(root / "five/images" / clip / f"{k + 1:05d}.jpg")
        edit = Image.fromarray(frame.permute(1, 2, 0).numpy()).resize(source.size)
        outside = ~(np.asarray(Image.open(root / "five/bmasks" / clip / f"{k + 1:05d}.jpg")) > 0)[..., None]
        error = (np.asarray(source) / 255 - np.asarray(edit) / 255) * outside
        found.append(10 * math.log10(1 / (error**2).mean()))
    return np.mean(found)


def test_numbers_are_those_of_the_definition_and_averages_go_table_by_table(five):
    root = five[2]
    summary = score(five, root / "out")
    by_table = {}
    for row in summary["edits"]:
        wanted = measure_by_hand(root, row["clip"], row["index"])
        assert row["numbers"]["psnr_unedit_part"] == pytest.approx(wanted, abs=1e-4)
        by_table.setdefault(row["table"], []).append(wanted)
    ours = summary["rows"][0]
    assert ours["numbers"]["psnr_unedit_part"] == pytest.approx(
        np.mean([np.mean(one) for one in by_table.values()]), abs=1e-4
    )
    ssim = np.mean([row["numbers"]["ssim_unedit_part"] for row in summary["edits"]])
    assert 50 < ours["numbers"]["ssim_unedit_part"] < 100 * ssim + 20  # times 100
    assert "7 of 7 edits" in ours["method"]
    assert json.loads((root / "out/benchmark.json").read_text()) == summary


def test_an_edit_is_measured_once_unless_it_has_changed(five, tmp_path):
    _, records, root = five
    (tmp_path / "0001_bus").symlink_to(root / "out" / "0001_bus")
    only = {"0001_bus": records["0001_bus"]}
    summary = score(five, tmp_path, only)
    assert "3 of 7 edits" in summary["rows"][0]["method"]
    summary["edits"][1]["numbers"]["psnr_unedit_part"] = 1.0
    (tmp_path / "benchmark.json").write_text(json.dumps(summary))
    assert score(five, tmp_path, only)["edits"][1]["numbers"]["psnr_unedit_part"] == 1.0
    changed = {"0001_bus": {**records["0001_bus"], "fingerprint": {"clip": "another"}}}
    assert score(five, tmp_path, changed)["edits"][1]["numbers"]["psnr_unedit_part"] > 5
    (tmp_path / "benchmark.json").write_text("{")  # somebody else's
    assert len(score(five, tmp_path, only)["edits"]) == 3


def test_what_lacks_a_network_is_told_and_stays_blank(five, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    summary = score(five, five[2] / "out")
    assert any(sentence.startswith("five_lpips: ") for sentence in summary["missing"])
    assert "lpips_unedit_part" not in summary["rows"][0]["numbers"]
    assert "structure_distance" not in summary["rows"][0]["numbers"]


def test_an_edit_that_cannot_be_measured_costs_none_of_the_others(five, tmp_path):
    _, records, root = five
    for clip in records:
        (tmp_path / clip).mkdir()
        for file in (root / "out" / clip).iterdir():
            (tmp_path / clip / file.name).write_bytes(file.read_bytes())
    (tmp_path / "0001_bus" / "edit-01.mp4").write_bytes(b"no video")
    with pytest.warns(UserWarning, match="edit2_FiVE.json entry 1: not measured: "):
        summary = score(five, tmp_path)
    assert [bool(row["numbers"]) for row in summary["edits"]] == [True, False, *[True] * 5]
    assert "6 of 7 edits" in summary["rows"][0]["method"] and summary["edits"][1]["problems"]
    edit = "0001_bus/edit-01.mp4"
    (tmp_path / edit).write_bytes((root / "out" / edit).read_bytes())  # once it is mended it is measured
    summary = score(five, tmp_path)
    assert "7 of 7 edits" in summary["rows"][0]["method"] and not summary["edits"][1]["problems"]


def test_an_image_is_the_mask_of_all_frames(tmp_path):
    root = write_five(tmp_path / "five", count=17, as_mp4=())
    for folder in (root / "bmasks").iterdir():
        for file in sorted(folder.iterdir())[1:]:
            file.unlink()
    benchmark = read_benchmark("five", root)
    records = write_results(benchmark, tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = Scorer(benchmark, tmp_path / "out", Networks(), "cpu").score(records)
    assert all(math.isfinite(row["numbers"]["psnr_unedit_part"]) for row in summary["edits"])
