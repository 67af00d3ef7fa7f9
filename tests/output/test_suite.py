"""A benchmark is checked before anything heavy is loaded."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ddim_lightning.output.suite import Suite, open_benchmark

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
