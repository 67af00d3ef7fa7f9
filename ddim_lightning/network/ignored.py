"""Whatever hangs on a transformer and would be ignored by a forward pass over its weights is found by name."""

from __future__ import annotations

from collections.abc import Iterator

from diffusers import CogVideoXTransformer3DModel
from diffusers.models.attention_processor import CogVideoXAttnProcessor2_0
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ddim_lightning.network.diffusers_network import ReadingProcessor
from ddim_lightning.runtime.sharding import is_sharded

_CALLED = ("patch_embed", "norm_final", "proj_out")
"""Children of the transformer that our forward pass calls as modules, so that everything acts there."""
_PROCESSORS = (CogVideoXAttnProcessor2_0, ReadingProcessor)
"""The attention that our forward pass computes; ours stays where ``forward="diffusers"`` ran before."""


def check_nothing_ignored(transformer: CogVideoXTransformer3DModel) -> None:
    """Raise a ValueError where hooks, caches, processors or kinds of weights would have no effect.

    Args:
        transformer: What `Network` reads the weights of.
    """
    if is_sharded(transformer):
        raise ValueError(
            "forward: fused reads whole weights, which are spread over processes here (FSDP2); use one process or "
            "strategy='ddp', or forward='diffusers' in all processes alike"
        )
    for name, module in transformer.named_modules():
        if name.partition(".")[0] in _CALLED:
            continue
        for what in _list_ignored(module):
            where = f"transformer.{name}".rstrip(".")
            raise ValueError(
                f"forward: fused reads weights alone, and would ignore {what} of {where}; "
                "remove it, or use forward='diffusers', which honors it"
            )


def describe_switches(transformer: CogVideoXTransformer3DModel) -> str:
    """Say what hangs on a transformer and acts in diffusers' forward pass, with its numbers; empty where nothing does.

    Args:
        transformer: The model; processors of ours count as none.
    """
    found = []
    for name, module in transformer.named_modules():
        registry = getattr(module, "_diffusers_hook", None)
        for kind, hook in {} if registry is None else registry.hooks.items():
            numbers = {key: one for key, one in sorted(vars(hook).items()) if isinstance(one, int | float | str)}
            found.append(f"{name} {kind} {numbers}")
        found += [f"{name} {what}" for what in _list_ignored(module)]
    return "\n".join(found)


def _list_ignored(module: nn.Module) -> Iterator[str]:
    registry = getattr(module, "_diffusers_hook", None)
    if registry is not None and registry.hooks:
        yield f"the hook {', '.join(registry.hooks)}"
    if module._forward_hooks or module._forward_pre_hooks:
        yield "a forward hook"
    placed = vars(module).get("forward")  # hooks that were removed leave the class's own there
    if placed is not None and getattr(placed, "__func__", placed) is not type(module).forward:
        yield "the forward method that was put in place"
    if module._compiled_call_impl is not None:
        yield "torch.compile"
    if is_parametrized(module):
        yield "a parametrization"
    processor = getattr(module, "processor", None)
    if processor is not None and type(processor) not in _PROCESSORS:
        yield f"the attention processor {type(processor).__name__}"
    for weight in module.parameters(recurse=False):
        if type(weight) is not nn.Parameter or type(weight.data) is not Tensor:
            yield f"the {type(weight).__name__} weights"
