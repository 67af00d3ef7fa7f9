"""One optimizer runs Muon for the weight matrices inside the blocks and AdamW for everything else."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer


class MuonAdamW(Optimizer):
    """`MuonAdamW` runs Muon and AdamW side by side, with one state and one learning rate.

    Muon's update is scaled to the size of AdamW's (``match_rms_adamw``), so that one learning rate serves both.

    Args:
        matrices: What Muon trains, weights of two dimensions.
        others: What AdamW trains.
        learning_rate: Of both.
        betas: AdamW's moments.
        weight_decay: Of both.

    Raises:
        ValueError: A matrix that has not two dimensions, or a share without parameters.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; the scale is that of Liu et
    al. 2025, arXiv:2502.16982, section 2.2.
    """

    def __init__(
        self,
        matrices: Sequence[Tensor],
        others: Sequence[Tensor],
        *,
        learning_rate: float,
        betas: tuple[float, float],
        weight_decay: float,
    ) -> None:
        muon = Muon(matrices, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        adamw = AdamW(others, lr=learning_rate, betas=betas, weight_decay=weight_decay)
        self._optimizers: tuple[Optimizer, ...] = (muon, adamw)
        super().__init__([muon.param_groups[0], adamw.param_groups[0]], {})

    def __getstate__(self) -> dict[str, Any]:
        """What a copy needs; torch's own would leave the two optimisers behind."""
        return super().__getstate__() | {"_optimizers": self._optimizers}

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step both.

        Args:
            closure: Evaluates the loss and its gradients.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer, group in zip(self._optimizers, self.param_groups, strict=True):
            # Loading a state replaces both objects, so each step hands them on anew.
            optimizer.param_groups, optimizer.state = [group], self.state
            optimizer.step()
        return loss


def is_block_matrix(name: str, parameter: Tensor) -> bool:
    """Whether a parameter of a transformer is a weight matrix that tokens pass inside a block.

    Embeddings, the first and last layers and the modulations that norms take from the timestep are not.

    Args:
        name: Its dotted name.
        parameter: The parameter.
    """
    return parameter.ndim == 2 and "transformer_blocks" in name and ".norm" not in name


def find_optimizer(path: str) -> Callable[..., Optimizer]:
    """Import an optimizer class by its dotted path, such as ``bitsandbytes.optim.AdamW8bit``.

    Raises:
        ValueError: No such class, or one that is no optimizer.
    """
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        rule = "must be an optimizer that is installed, or adamw or muon"
        raise ValueError(f"training.optimizer: {rule}, got {path!r} ({error})") from error
    if not (isinstance(found, type) and issubclass(found, Optimizer)):
        raise ValueError(f"training.optimizer: must be a subclass of torch.optim.Optimizer, got {path}")
    return found


def make_found(
    path: str, parameters: Sequence[Tensor], *, learning_rate: float, betas: tuple[float, float], weight_decay: float
) -> Optimizer:
    """Make an optimizer of a class that is named by its dotted path.

    Args:
        path: See `find_optimizer`.
        parameters: What it trains.
        learning_rate: Its ``lr``.
        betas: Its moments.
        weight_decay: Its weight decay.

    Raises:
        ValueError: See `find_optimizer`; a class that does not take these arguments, or not these values.
    """
    kind = find_optimizer(path)
    try:
        return kind(list(parameters), lr=learning_rate, betas=betas, weight_decay=weight_decay)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        rule = "must be of a class that takes lr, betas and weight_decay"
        raise ValueError(f"training.optimizer: {rule}, got {path!r} ({reason})") from error
