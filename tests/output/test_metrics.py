"""The verb `metrics`: what it prints, writes and returns."""

from __future__ import annotations

import csv
import json
import math

import pytest
import torch
from safetensors.torch import save_file

from ddim_lightning.cli.main import main
from tests.clip_results import make_result, write_run
from tests.metrics.networks import write_squeeze
from tests.output.pictures import make_frames, write_frames


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three clips: one shifted by 5 levels, one that is equal, and one that cannot be read; and masks."""
    root = tmp_path_factory.mktemp("folders")
    for index, name in enumerate(("equal", "shifted", "broken")):
        frames = make_frames(index)
        write_frames(root / "A" / name, frames)
        write_frames(root / "B" / name, frames + 5 * (name == "shifted"))
        mask = torch.zeros(4, 24, 32, dtype=torch.bool)
        mask[:, :6] = True
        write_frames(root / "masks" / name, mask)
    (root / "B" / "broken" / "00002.png").write_bytes(b"no picture")
    return root


@pytest.fixture(autouse=True)
def no_networks(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def run(*words):
    return main(["metrics", *map(str, words)])


SHIFTED = 20 * math.log10(255 / 5)


def test_the_table_the_files_and_the_status(folders, tmp_path, capsys):
    words = folders / "A", folders / "B", "--masks", folders / "masks", "--output", tmp_path / "out"
    assert run(*words) == 3
    printed, said = capsys.readouterr()
    rows = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line and not line.startswith(" ")}
    assert rows["shifted"][:3] == [f"{SHIFTED:.2f}"] * 3
    assert rows["equal"][0] == "equal" and rows["broken"][0] == "-"
    assert rows["mean"][0] == f"{SHIFTED:.2f}"  # of those that have decibels
    assert "warning: broken: " in said and "00002.png" in said
    result = json.loads((tmp_path / "out" / "metrics.json").read_text("utf-8"))
    numbers = {pair["name"]: pair["numbers"] for pair in result["pairs"]}
    assert numbers["broken"] == {}
    assert numbers["equal"]["psnr"] is None and numbers["equal"]["ssim"] == pytest.approx(1)
    assert set(numbers["equal"]) == {
        f"{name}{side}" for name in ("psnr", "ssim") for side in ("", "_inside", "_outside")
    }
    assert numbers["shifted"]["psnr_outside"] == pytest.approx(SHIFTED)
    (mean,) = result["means"]
    assert mean["name"] == "mean" and mean["numbers"]["ssim"] == pytest.approx((1 + numbers["shifted"]["ssim"]) / 2)
    assert "lpips" in result["not_measured"] and "lpips_weights" in result["not_measured"]["lpips"]
    table = list(csv.DictReader((tmp_path / "out" / "metrics.csv").open(encoding="utf-8")))
    assert [row["video"] for row in table] == ["broken", "equal", "shifted", "mean"]
    assert [row["psnr"] for row in table[:2]] == ["", "inf"]
    assert float(table[2]["psnr"]) == numbers["shifted"]["psnr"] and float(table[3]["psnr"]) == mean["numbers"]["psnr"]


def test_what_is_asked_for_by_name_is_measured_or_told_and_decides_the_status(folders, tmp_path, capsys):
    pair = folders / "A" / "shifted", folders / "B" / "shifted"
    assert run(*pair, "--metrics", "psnr", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["pairs"][0]["numbers"] == {"psnr": pytest.approx(SHIFTED)}
    assert run(*pair, "--metrics", "psnr", "--metrics", "lpips", "--json") == 3
    printed, said = capsys.readouterr()
    result = json.loads(printed)
    assert result["pairs"][0]["numbers"] == {"psnr": pytest.approx(SHIFTED)}
    (line,) = [line for line in said.splitlines() if "lpips" in line]
    assert "lpips_weights" in line
    squeeze = write_squeeze(tmp_path)
    assert run(*pair, "--metrics", "[lpips]", "--lpips-weights", squeeze, "--quiet", "--json") == 0
    assert json.loads(capsys.readouterr().out)["pairs"][0]["numbers"]["lpips"] > 0
    assert run(*pair, "--metrics", "five_mse", "--quiet") == 3
    assert "five_mse: masks must be given" in capsys.readouterr().err
    words = "--metrics", "five_mse", "--masks", folders / "masks" / "shifted", "--quiet"
    assert run(*pair, *words) == 0
    assert run(*pair, "--metrics", "latent_error", "--quiet") == 3
    assert "latent_error: latents: " in capsys.readouterr().err
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    for name in ("gone.pth", "broken.pth"):
        assert run(*pair, "--lpips-weights", tmp_path / name, "--quiet") == 3
        (line,) = capsys.readouterr().err.splitlines()
        assert "lpips_weights: " in line and name in line and "weights_only" not in line  # no advice to unpickle


def test_a_mask_that_is_not_there_is_told(folders, tmp_path, capsys):
    mask = torch.zeros(4, 24, 32, dtype=torch.bool)
    mask[:, 3:9] = True
    write_frames(tmp_path / "masks" / "equal", mask)
    for name in ("equal", "shifted"):
        write_frames(tmp_path / "B" / name, make_frames(0))
    words = tmp_path / "B", tmp_path / "B", "--masks", tmp_path / "masks", "--metrics", "five_mse", "--quiet"
    assert run(*words) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: shifted: masks: ")


def test_a_mask_without_white_is_told(folders, tmp_path, capsys):
    mask = write_frames(tmp_path / "mask", torch.full((4, 24, 32), 38))  # luma of the first color of DAVIS
    assert run(folders / "A" / "shifted", folders / "B" / "shifted", "--masks", mask, "--metrics", "psnr") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: shifted: masks: nothing of {mask} is white")


def test_what_has_no_partner_is_listed(folders, tmp_path, capsys):
    for name in ("equal", "extra"):
        write_frames(tmp_path / "C" / name, make_frames(0))
    assert run(folders / "A", tmp_path / "C", "--quiet") == 3
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("without a partner")]
    assert any("extra" in line for line in lines) and any("shifted" in line and "broken" in line for line in lines)
    assert run(tmp_path / "C", tmp_path / "C" / "equal", "--quiet") == 0  # what no video was asked of is no mistake
    assert run(folders / "A", tmp_path / "C" / "extra", "--quiet") == 1
    assert "extra" in capsys.readouterr().err


def test_latents_are_compared_where_both_sides_have_them(tmp_path, capsys):
    for side, factor in (("A", 1.0), ("B", 1.5)):
        write_frames(tmp_path / side / "cat", make_frames(0, f=1))
        save_file({"latents": torch.full((2, 3), factor)}, tmp_path / side / "cat.safetensors")
    assert run(tmp_path / "A", tmp_path / "B", "--json") == 0
    assert json.loads(capsys.readouterr().out)["means"][0]["numbers"]["latent_error"] == pytest.approx(0.5)
    assert run(tmp_path / "A", tmp_path / "B", "--metrics", "latent_error", "--json") == 0
    assert set(json.loads(capsys.readouterr().out)["means"][0]["numbers"]) == {"latent_error"}
    save_file({"latents": torch.ones(2, 4)}, tmp_path / "B" / "cat.safetensors")
    assert run(tmp_path / "A", tmp_path / "B", "--quiet") == 3
    assert "reference: must have the shape of the latents" in capsys.readouterr().err
    for value in (0.0, math.nan):  # which have no error that JSON could say
        save_file({"latents": torch.full((2, 4), value)}, tmp_path / "A" / "cat.safetensors")
        assert run(tmp_path / "A", tmp_path / "B", "--json") == 3
        (pair,) = json.loads(capsys.readouterr().out)["pairs"]
        assert set(pair["numbers"]) == {"psnr", "ssim"} and "finite" in pair["problems"][0]


def test_files_of_others_are_not_replaced_and_ours_are(folders, tmp_path, capsys):
    words = (
        folders / "A" / "equal",
        folders / "B" / "equal",
        "--metrics",
        "psnr",
        "--quiet",
        "--output",
        tmp_path / "out",
    )
    assert run(*words) == 0
    assert run(*words) == 0
    (tmp_path / "out" / "metrics.json").write_text('{"mine": 1}')
    assert run(*words) == 1
    assert "metrics.json is not of metrics" in capsys.readouterr().err
    assert (tmp_path / "out" / "metrics.json").read_text() == '{"mine": 1}'


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ((), 2, "required"),
        (("A", "B", "--metrics", "fid"), 2, "metrics: must be of psnr"),
        (("A", "B", "--stride", "0"), 2, "stride: must be at least 1, got 0"),
        (("A", "B", "--fit", "squeeze"), 2, "fit: must be 'crop', 'pad', 'stretch'"),
        (("gone", "B"), 1, "gone"),
    ],
)
def test_mistakes(words, status, said, capsys):
    assert run(*words) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and said in line


def test_reconstructions_and_edits_of_a_run_have_means_of_their_own(tmp_path, capsys):
    folder = write_run(tmp_path / "run", *map(make_result, ("cat", "dog")))
    assert run(folder, folder, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert [mean["name"] for mean in result["means"]] == ["mean reconstruction", "mean edit"]
    for mean in result["means"]:
        kind = mean["name"].removeprefix("mean ")
        own = [pair["numbers"]["ssim"] for pair in result["pairs"] if f"/{kind}" in pair["name"]]
        assert len(own) >= 2 and mean["numbers"]["ssim"] == pytest.approx(sum(own) / len(own))
