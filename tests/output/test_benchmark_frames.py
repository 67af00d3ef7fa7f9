"""Frames as the evaluations of benchmarks read them."""

from __future__ import annotations

import numpy as np
import pytest

from ddim_lightning.output.benchmark_frames import read_pictures
from tests.benchmark_folders import draw, write_frames, write_mp4


@pytest.mark.parametrize("kind", ["folder", "video"])
def test_a_mask_that_is_too_short_says_so(tmp_path, kind):
    path, frames = tmp_path / "mask", draw("a", 5)
    (write_frames if kind == "folder" else write_mp4)(path, frames)
    (last,) = read_pictures(path, [4])
    assert np.abs(last.astype(int) - frames[4]).mean() < 8
    with pytest.raises(ValueError, match=f"{path} must have at least 6 frames, got 5"):
        list(read_pictures(path, [0, 5]))
