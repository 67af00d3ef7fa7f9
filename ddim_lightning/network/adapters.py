"""Linear layers are taken out of a model, with the sum of what peft's LoRA layers add to their weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor, nn

from ddim_lightning.network.products import multiply

EDIT_ADAPTER = "acts_in_edits"
"""What peft calls an adapter that acts in edits alone; see `EditAdapter`."""


class Linear(NamedTuple):
    """A `Linear` is a linear layer that computes in the dtype of its weight.

    Args:
        weight: (out, in).
        bias: (out,), or ``None``.
    """

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """Apply it to (..., in)."""
        return multiply(x, self.weight, self.bias)

    def take(self, start: int, stop: int | None = None) -> Linear:
        """Return the part that makes the outputs from ``start`` to ``stop``, without a copy."""
        return Linear(self.weight[start:stop], None if self.bias is None else self.bias[start:stop])


def has_adapter(module: Any) -> bool:
    """Whether a linear layer is wrapped by one of peft's."""
    return hasattr(module, "base_layer")


def describe_adapters(model: nn.Module) -> str:
    """Say which adapters act in the layers of a model, and how strongly; empty where no layer has any.

    Args:
        model: Whatever peft's layers may be in; an `EditAdapter` does not count.
    """
    layers = [
        (name, layer)
        for name, layer in sorted(model.named_modules())
        if has_adapter(layer) and list(layer.active_adapters) != [EDIT_ADAPTER]
    ]
    return "".join(
        f"{name} {layer.disable_adapters} {layer.merged} "
        f"{[(one, getattr(layer, 'scaling', {}).get(one)) for one in layer.active_adapters]}\n"
        for name, layer in layers
    )


def take_linear(module: Any, name: str, own: Linear | None = None) -> Linear:
    """Take a linear layer: its very tensors, or with LoRA new ones, ``W + scaling B A`` over the active adapters.

    Args:
        module: A linear layer, or peft's ``lora.Linear`` around one.
        name: Of the layer, for messages.
        own: Its weight and bias, where they are not those that it holds.

    Raises:
        ValueError: A layer of another class, or an adapter that is more than a product of two matrices.

    Source: Hu et al. 2021, "LoRA", arXiv:2106.09685, equation 3.
    """
    if type(module) is nn.Linear:
        return own or Linear(module.weight, module.bias)
    if not (has_adapter(module) and type(module.base_layer) is nn.Linear and hasattr(module, "lora_A")):
        got = type(getattr(module, "base_layer", module)).__name__
        raise ValueError(
            f"transformer: its projection {name} must be a linear layer, with plain LoRA or none, got {got} "
            f"({type(module).__module__})"
        )
    if module.disable_adapters and module.merged:
        module.unmerge()  # as peft's own forward pass does
    weight, bias = own or (module.base_layer.weight, module.base_layer.bias)
    if module.disable_adapters or module.merged:  # the weight holds them already
        return Linear(weight, bias)
    for adapter in module.active_adapters:
        if adapter not in module.lora_A:
            continue
        if adapter in module.lora_variant:
            kind = type(module.lora_variant[adapter]).__name__
            raise ValueError(f"transformer: the adapter {adapter!r} of {name} must be plain LoRA, got {kind}")
        down, up, scale = module.lora_A[adapter], module.lora_B[adapter], module.scaling[adapter]
        weight = weight + scale * (up.weight @ down.weight).to(weight.dtype)
        if up.bias is not None:
            bias = scale * up.bias if bias is None else bias + scale * up.bias
    return Linear(_like_weights(weight), None if bias is None else _like_weights(bias))


def _like_weights(summed: Tensor) -> Tensor:
    """Return a sum as the parameter that it stands for, or compiled blocks would be compiled anew for it.

    One that is part of a graph stays as it is.
    """
    return summed if summed.requires_grad else nn.Parameter(summed, requires_grad=False)


State = list[object]
"""What tells weights from other weights; states are compared by ``==``."""


def read_state(modules: Iterable[Any]) -> State:
    """Read what changes when the weights of layers do, without waiting for a device.

    It holds the modules and addresses of their tensors, and of tensors from which others are computed the count of
    their changes. Writes through ``.data`` are not counted, so on a CPU one value of each of these is looked at, too.

    Args:
        modules: Linear layers and norms; adapters among them are honored.
    """
    state: State = []
    for module in modules:
        state += [module, _address(read_own(module, "weight")), _address(read_own(module, "bias"))]
        if type(module) is not nn.Linear and has_adapter(module):
            state += [module.disable_adapters, module.merged, tuple(module.active_adapters), dict(module.scaling)]
            state += [entry for tensor in module.parameters() for entry in read_change(tensor)]
    return state


def read_own(module: nn.Module, name: str) -> Any:
    """Return a tensor of a module, in a tenth of the time of ``module.name``: every pass asks for hundreds."""
    found = module._parameters.get(name)
    return getattr(module, name) if found is None else found


def read_change(tensor: Tensor) -> tuple[int | None, int, float]:
    """Return the address of a tensor, the count of its changes, and on a CPU its first value."""
    # Tensors made under inference mode keep no count.
    version = 0 if tensor.is_inference() else tensor._version
    value = tensor.detach().as_strided((), ()).item() if tensor.is_cpu and tensor.numel() else 0.0
    return _address(tensor), version, value


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
