"""The host reads what was measured on a device once a video, not once a frame."""

from __future__ import annotations

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ddim_lightning.engine.decoding import measure_decoded
from ddim_lightning.metrics.diagnosis import describe_color, describe_noise, level_errors
from ddim_lightning.metrics.functional import ssim
from ddim_lightning.metrics.reading import read_numbers
from ddim_lightning.runtime.timing import StageTimer

SCALARS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)


class CountedLists(TorchFunctionMode):
    """`CountedLists` counts tensors that become lists, each of which is one wait on a GPU."""

    count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.Tensor.tolist
        return function(*args, **(kwargs or {}))


class CountedScalars(TorchDispatchMode):
    """`CountedScalars` counts tensors of which one value is read, by ``item``, ``float``, ``bool`` or a comparison."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in SCALARS
        return function(*args, **(kwargs or {}))


def make_video(frames=9, seed=0):
    return torch.rand(frames, 3, 16, 20, generator=torch.Generator().manual_seed(seed))


def count_reads(function):
    with CountedLists() as lists, CountedScalars() as scalars:
        function()
    return lists.count, scalars.count


def test_the_counter_sees_every_way_to_read():
    video = make_video(1)
    assert count_reads(lambda: (float(video.mean()), bool(video.any()), video.sum().item(), video.tolist())) == (1, 3)


def test_a_video_is_measured_with_one_read():
    video, timer = make_video()[None], StageTimer(torch.device("cpu"))
    references = {"": make_video(seed=1), "_vs_vae": (make_video(seed=2) * 255).to(torch.uint8)}
    measured = {}

    def measure():
        measured["video"] = measure_decoded(iter(video.split(4, dim=1)), references, timer, lambda piece: None)

    assert count_reads(measure) == (1, 0)
    assert set(measured["video"].metrics) == {"psnr", "ssim", "psnr_vs_vae", "ssim_vs_vae"}


def test_each_measure_reads_once():
    assert count_reads(lambda: ssim(make_video(), make_video(seed=1))) == (1, 0)
    assert count_reads(lambda: describe_color(make_video())) == (1, 0)
    levels = [torch.randn(1, 3, 4, 6, 6, generator=torch.Generator().manual_seed(k)) for k in range(5)]
    assert count_reads(lambda: describe_noise(levels[0])) == (1, 0)
    assert count_reads(lambda: level_errors(levels, levels[1:] + levels[:1])) == (1, 0)


def test_numbers_come_back_as_they_were_given():
    numbers = [torch.tensor(0.1, dtype=torch.float64), torch.tensor([0.1, 2.0]), torch.tensor([[1.0], [3.0]])]
    assert read_numbers(numbers) == [[0.1], [float(torch.tensor(0.1)), 2.0], [1.0, 3.0]]
    assert read_numbers([]) == []
