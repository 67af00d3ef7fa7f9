"""A benchmark is checked before anything heavy is loaded."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ddim_lightning.metrics.measures import Networks
from ddim_lightning.output.suite import Suite, finish_benchmark, open_benchmark
from tests.benchmark_folders import write_five
from tests.clip_results import write_run

CONFIG = "title: Mine\nedits: edits.csv\ncolumns: {video: video}\nnumbers: [{number: %s, title: A, measure: %s}]\n"


@pytest.mark.parametrize(
    ("number", "measure", "said"),
    [
        ("psnr", "psnrr", r"mine.yaml, key numbers, entry 1, key measure: .* got 'psnrr'"),
        ("latent_error", "latent_error", r"key measure: .* got 'latent_error'"),  # no measure of frames
        ("psnr_outsid", "psnr", r"mine.yaml, key numbers, entry 1, key number: must be of psnr, .* got 'psnr_outsid'"),
    ],
)
def test_a_number_that_no_measure_gives_is_named_by_file_and_key(tmp_path, number, measure, said):
    path = tmp_path / "mine.yaml"
    path.write_text(CONFIG % (number, measure))
    with pytest.raises(ValueError, match=said):
        open_benchmark(suite=Suite(str(path), str(tmp_path)), method=SimpleNamespace(inversion_prompt=""))


def test_what_is_noticed_is_a_line_for_a_person(tmp_path, capsys):
    five = write_five(tmp_path, count=5, as_mp4=())
    table = five / "edit_prompt" / "edit6_FiVE.json"
    table.write_text(table.read_text().replace("a river", ""))
    benchmark = open_benchmark(suite=Suite("five", str(five)), method=SimpleNamespace(inversion_prompt=""))
    finish_benchmark(benchmark, write_run(tmp_path / "out"), Networks(lpips_weights="gone"), "cpu")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: ") and "edit6_FiVE.json entry 1" in line
