"""LPIPS takes its linear layers from torchmetrics and its network from a file of torchvision's weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torchmetrics.functional.image.lpips import _LPIPS

Backbone = Literal["alex", "vgg", "squeeze"]
_MARKS: Mapping[Backbone, str] = {
    "squeeze": "features.3.squeeze.weight",
    "vgg": "features.28.weight",
    "alex": "features.10.weight",
}
"""A weight of each network that those after it in this order, and only they, may also have."""


class Lpips:
    """An `Lpips` says how different two pictures look to a network that was trained to classify them.

    Args:
        weights: Of AlexNet, VGG-16 or SqueezeNet 1.1 as torchvision names them; which of them is found out.
        device: Where it works.

    Raises:
        ValueError: Weights of something else.

    Zhang et al. 2018, arXiv:1801.03924, equation 1, version 0.1 of its linear layers.
    """

    def __init__(self, weights: Mapping[str, Tensor], device: torch.device) -> None:
        self.backbone = _find_backbone(weights)
        # torchmetrics' public class makes its network with weights from the internet; the module below it need not.
        network = _LPIPS(pnet_rand=True, net=self.backbone)
        for name, tensor in _list_layers(network.net):
            if name not in weights or weights[name].shape != tensor.shape:
                raise ValueError(f"lpips_weights: must hold {name} of shape {tuple(tensor.shape)}")
            tensor.copy_(weights[name])
        self._network = network.to(device)

    @torch.no_grad()
    def __call__(self, video: Tensor, reference: Tensor) -> Tensor:
        """Return the distance of pictures (n, 3, h, w) in 0 .. 1, one number each; 0 for equal ones."""
        self._network.spatial = False
        distance: Tensor = self._network(video, reference, normalize=True)
        return distance.flatten()

    @torch.no_grad()
    def make_map(self, video: Tensor, reference: Tensor) -> Tensor:
        """Return the distance at every pixel, (n, h, w); each layer's is brought to the size of the pictures."""
        self._network.spatial = True
        distance: Tensor = self._network(video, reference, normalize=True)
        return distance[:, 0]


def _find_backbone(weights: Mapping[str, Tensor]) -> Backbone:
    for backbone, mark in _MARKS.items():
        if mark in weights:
            return backbone
    rule = "must be the weights of AlexNet, VGG-16 or SqueezeNet 1.1 of torchvision"
    raise ValueError(f"lpips_weights: {rule}, got {', '.join(list(weights)[:3]) or 'none'}")


def _list_layers(network: torch.nn.Module) -> list[tuple[str, Tensor]]:
    """List the weights of the slices that torchmetrics cuts a network into, by their names in torchvision."""
    # "slice2.3.weight" of AlexNet and VGG, "slices.1.3.squeeze.weight" of SqueezeNet, are both "features.3...".
    named = network.state_dict().items()
    return [(f"features.{name.removeprefix('slices.').split('.', 1)[1]}", tensor) for name, tensor in named]
