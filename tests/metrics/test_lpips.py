"""LPIPS with random weights from files, against the formula written out and against the original in torchmetrics."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional
from torchmetrics.functional.image.lpips import _LPIPS
from torchvision.models import alexnet

from ddim_lightning.metrics.lpips import load_lpips, lpips

CPU = torch.device("cpu")
CHANNELS = (64, 192, 384, 256, 256)


@pytest.fixture(scope="module")
def backbone() -> dict[str, torch.Tensor]:
    """The convolutions of an AlexNet, drawn so that the layers neither die nor explode."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        state = alexnet(weights=None).features.state_dict()
    return {
        f"features.{name}": torch.randn(value.shape, generator=generator) * (2 / max(1, value[0].numel())) ** 0.5
        if value.ndim > 1
        else 0.1 * torch.randn(value.shape, generator=generator)
        for name, value in state.items()
    }


@pytest.fixture(scope="module")
def heads() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {f"lin{k}.model.1.weight": torch.rand((1, c, 1, 1), generator=generator) for k, c in enumerate(CHANNELS)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, backbone, heads) -> Path:
    folder = tmp_path_factory.mktemp("lpips")
    torch.save({**backbone, "classifier.1.weight": torch.zeros(2)}, folder / "alexnet.pth")
    save_file(backbone, folder / "alexnet.safetensors")
    torch.save(heads, folder / "heads.pth")
    save_file(heads, folder / "heads.safetensors")
    return folder


def videos() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.rand((2, 3, 67, 81), generator=generator), torch.rand((2, 3, 67, 81), generator=generator)


def written_out(backbone: dict[str, torch.Tensor], weights: list[torch.Tensor], *pair: torch.Tensor) -> torch.Tensor:
    """Equation 1 of the paper, one frame."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    layers: list[list[torch.Tensor]] = []
    for image in pair:
        x = ((2 * image.movedim(0, -1) - 1 - shift) / scale).movedim(-1, 0)[None]
        outputs = []
        for conv, stride, padding, pool in (
            (0, 4, 2, True),
            (3, 1, 2, True),
            (6, 1, 1, False),
            (8, 1, 1, False),
            (10, 1, 1, False),
        ):
            weight, bias = backbone[f"features.{conv}.weight"], backbone[f"features.{conv}.bias"]
            outputs.append(functional.conv2d(x, weight, bias, stride, padding).relu())
            x = functional.max_pool2d(outputs[-1], 3, 2) if pool else outputs[-1]
        layers.append([functional.normalize(output[0], dim=0) for output in outputs])
    total = torch.zeros(())
    for weight, one, other in zip(weights, *layers, strict=True):
        total = total + torch.einsum("c,chw->hw", weight.flatten(), (one - other) ** 2).mean()
    return total


def test_lpips_is_the_published_formula(folder, backbone, heads):
    video, reference = videos()
    network = load_lpips(folder / "alexnet.pth", folder / "heads.pth", device=CPU)
    expected = [
        float(written_out(backbone, list(heads.values()), *pair)) for pair in zip(video, reference, strict=True)
    ]
    assert abs(expected[0] - expected[1]) > 1e-4
    assert lpips(network, video, reference) == pytest.approx(sum(expected) / 2, rel=1e-5)
    assert lpips(network, video, video) == 0.0


def test_lpips_is_the_authors_own(folder, backbone):
    video, reference = videos()
    original = _LPIPS(pretrained=True, net="alex", pnet_rand=True)  # carries the authors' trained heads
    slices = dict(original.net.named_parameters())
    for name, value in backbone.items():
        (parameter,) = [p for key, p in slices.items() if key.split(".", 1)[1] == name.removeprefix("features.")]
        parameter.data.copy_(value)
    network = load_lpips(folder / "alexnet.safetensors", device=CPU)
    expected = float(original(video, reference, normalize=True).mean())
    assert lpips(network, video, reference) == pytest.approx(expected, rel=1e-5)


def test_both_kinds_of_files_hold_the_same(folder):
    pickled = load_lpips(folder / "alexnet.pth", folder / "heads.pth", device=CPU).state_dict()
    tensors = load_lpips(folder / "alexnet.safetensors", folder / "heads.safetensors", device=CPU).state_dict()
    assert pickled.keys() == tensors.keys()
    assert all(torch.equal(pickled[name], tensors[name]) for name in pickled)


def test_loading_draws_no_random_numbers_and_freezes(folder):
    before = torch.get_rng_state()
    network = load_lpips(folder / "alexnet.safetensors", folder / "heads.safetensors", device=CPU)
    assert torch.equal(torch.get_rng_state(), before)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_files_of_something_else_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"^alexnet_weights: must be AlexNet's, got something else in .*heads\.pth$"):
        load_lpips(folder / "heads.pth", device=CPU)
    with pytest.raises(ValueError, match=r"^heads: must be those of LPIPS with AlexNet, got .*alexnet\.safetensors$"):
        load_lpips(folder / "alexnet.safetensors", folder / "alexnet.safetensors", device=CPU)
    with pytest.raises(FileNotFoundError, match=r"missing\.pth"):
        load_lpips(tmp_path / "missing.pth", device=CPU)


def test_videos_that_do_not_fit_are_refused(folder):
    network = load_lpips(folder / "alexnet.safetensors", device=CPU)
    with pytest.raises(ValueError, match=r"^video: lpips needs at least 31 x 31 pixels, got 31 x 30$"):
        lpips(network, torch.zeros(1, 3, 31, 30), torch.zeros(1, 3, 31, 30))
    assert lpips(network, torch.zeros(1, 3, 31, 31), torch.zeros(1, 3, 31, 31)) == 0.0
    with pytest.raises(ValueError, match=r"^reference: must have the shape of the video"):
        lpips(network, torch.zeros(2, 3, 40, 50), torch.zeros(1, 3, 40, 50))
