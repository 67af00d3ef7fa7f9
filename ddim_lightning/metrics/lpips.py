"""LPIPS with AlexNet, for users who name the weights; nothing is ever fetched."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import alexnet

from ddim_lightning.metrics.functional import check_pair

_TAPS = (1, 4, 7, 9, 11)
"""Positions in AlexNet's features of the five rectified layers that are compared."""
_SMALLEST = 31
"""Pixels along a side below which AlexNet's second pooling has nothing to pool."""


class LPIPS(nn.Module):
    """The learned perceptual distance of images: how far AlexNet's features of two images are apart.

    Args:
        features: AlexNet's layers up to its last rectified convolution.
        heads: By layer, the weight (channels,) of each of its channels, >= 0.

    Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric", 2018, equation 1; version
    0.1 of the authors' weights.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, features: nn.Sequential, heads: list[Tensor]) -> None:
        super().__init__()
        self.features = features
        self.heads = nn.ParameterList([nn.Parameter(head, requires_grad=False) for head in heads])
        # ImageNet's means and deviations, for inputs in -1 .. 1.
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])

    def forward(self, images: Float[Tensor, "n c h w"], others: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
        """Measure the distance of each pair of RGB images in 0 .. 1."""
        distance = images.new_zeros(len(images))
        for head, one, other in zip(self.heads, self._embed(images), self._embed(others), strict=True):
            difference = (one - other).square()
            distance = distance + (difference * head[:, None, None]).sum(1).mean((1, 2))
        return distance

    def _embed(self, images: Tensor) -> list[Tensor]:
        """Return the layers' outputs, each pixel's vector of unit length."""
        layers, hidden = [], (images * 2 - 1 - self.shift) / self.scale
        for position, layer in enumerate(self.features):
            hidden = layer(hidden)
            if position in _TAPS:
                layers.append(hidden / (torch.linalg.vector_norm(hidden, dim=1, keepdim=True) + 1e-10))
        return layers


def load_lpips(alexnet_weights: Path, heads: Path | None = None, *, device: torch.device) -> LPIPS:
    """Load LPIPS from files that the user names.

    Args:
        alexnet_weights: torchvision's ``alexnet-owt-7be5be79.pth``, or its tensors as ``.safetensors``.
        heads: The authors' ``alex.pth`` of version 0.1, or its tensors as ``.safetensors``; ``None`` takes the copy
            that torchmetrics carries.
        device: Where the weights go.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The tensors are not those of AlexNet or of the heads.
    """
    if heads is None:
        heads = Path(str(files("torchmetrics.functional.image") / "lpips_models" / "alex.pth"))
    # Without storage: AlexNet's own initialisation draws from the global generator and fills 240 MB.
    with torch.device("meta"):
        features: nn.Sequential = alexnet(weights=None).features[: _TAPS[-1] + 1]
    state = _read_tensors(alexnet_weights)
    try:
        features.load_state_dict(
            {name.removeprefix("features."): value for name, value in state.items() if name.startswith("features.")},
            assign=True,
        )
    except RuntimeError as error:
        raise ValueError(f"alexnet_weights: must be AlexNet's, got something else in {alexnet_weights}") from error
    channels = [features[position - 1].out_channels for position in _TAPS]
    tensors = _read_tensors(heads)
    weights = [tensors.get(f"lin{k}.model.1.weight") for k in range(len(_TAPS))]
    if any(weight is None or weight.shape != (1, c, 1, 1) for weight, c in zip(weights, channels, strict=True)):
        raise ValueError(f"heads: must be those of LPIPS with AlexNet, got something else in {heads}")
    network = LPIPS(features, [weight.flatten() for weight in weights if weight is not None])
    return network.to(device).requires_grad_(False).eval()


@torch.no_grad()
def lpips(network: LPIPS, video: Float[Tensor, "f c h w"], reference: Float[Tensor, "f c h w"]) -> float:
    """Mean perceptual distance of the frames of two videos.

    Args:
        network: The loaded LPIPS.
        video: RGB frames in 0 .. 1, at least 31 pixels high and wide.
        reference: Frames in 0 .. 1, of the same shape.

    Returns:
        A value >= 0; 0 for equal videos.

    Raises:
        ValueError: When the shapes differ, or the frames are smaller than 31 pixels.
    """
    check_pair(video, reference)
    if min(video.shape[-2:]) < _SMALLEST:
        h, w = video.shape[-2:]
        raise ValueError(f"video: lpips needs at least {_SMALLEST} x {_SMALLEST} pixels, got {h} x {w}")
    # Frame by frame: the features of 49 frames of 480 x 720 are gigabytes.
    distances = [float(network(frame[None], other[None])) for frame, other in zip(video, reference, strict=True)]
    return sum(distances) / len(distances)


def _read_tensors(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        return load_file(file)
    # Only tensors are read: a pickle can otherwise run code.
    tensors: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    return tensors
