"""Attention kernels are chosen by name or by measurement."""

from __future__ import annotations

import importlib
import json
import os
import statistics
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ddim_lightning.network.attention import Attention, AttentionFn, sdpa_attention
from ddim_lightning.network.flash import find_version

aten = torch.ops.aten


def _cpu_lse(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    output, lse = aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)
    return output, lse


def _flash_lse(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    output, lse, *_ = aten._scaled_dot_product_flash_attention(query, key, value)
    return output, lse


def _cudnn_lse(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    output, lse, *_ = aten._scaled_dot_product_cudnn_attention(query, key, value, None, True)
    return output, lse.view(output.shape[:3])


def _efficient_lse(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    output, lse, *_ = aten._scaled_dot_product_efficient_attention(query, key, value, None, True)
    return output, lse[..., : query.shape[2]]  # padded to a multiple of 32


def _xformers_lse(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:  # pragma: no cover - cuda
    from xformers.ops import memory_efficient_attention_forward_requires_grad as attend

    output, lse = attend(*(tensor.transpose(1, 2) for tensor in (query, key, value)))
    return output.transpose(1, 2), lse[..., : query.shape[2]]


def xformers_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Run xformers' memory-efficient attention; CUDA only."""
    from xformers.ops import memory_efficient_attention

    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    if bias is not None:
        rows, tokens, heads, _ = query.shape
        bias = bias.expand(rows, heads, tokens, key.shape[1])  # a view: at full size a copy would take 100 GB
    output: Tensor = memory_efficient_attention(query, key, value, attn_bias=bias)
    return output.transpose(1, 2)


def _pin(backend: SDPBackend) -> AttentionFn:
    """Return PyTorch's attention with one kernel; where it cannot run, PyTorch says why.

    FlashAttention takes no bias. Calls that have one, those of passes with gradients, get the memory-efficient kernel.
    """
    takes_bias = backend != SDPBackend.FLASH_ATTENTION

    def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        with sdpa_kernel(backend if bias is None or takes_bias else SDPBackend.EFFICIENT_ATTENTION):
            return sdpa_attention(query, key, value, bias)

    return attend


CPU_KERNELS = {"sdpa": Attention("sdpa", sdpa_attention, _cpu_lse)}
CUDA_KERNELS = {
    "sdpa": Attention("sdpa", sdpa_attention),
    "cudnn": Attention("cudnn", _pin(SDPBackend.CUDNN_ATTENTION), _cudnn_lse),
    "flash": Attention("flash", _pin(SDPBackend.FLASH_ATTENTION), _flash_lse, "FA2"),
    "flash3": Attention("flash3", _pin(SDPBackend.FLASH_ATTENTION), _flash_lse, "FA3"),
    "flash4": Attention("flash4", _pin(SDPBackend.FLASH_ATTENTION), _flash_lse, "FA4"),
    "efficient": Attention("efficient", _pin(SDPBackend.EFFICIENT_ATTENTION), _efficient_lse),
    "xformers": Attention("xformers", xformers_attention, _xformers_lse),
}
"""``sdpa`` is PyTorch's own choice, which does not say its log-sum-exp; the others are one kernel each."""

_NEEDS = {
    "flash3": "a CUDA device and FlashAttention 3 (flash_attn_interface)",
    "flash4": "a CUDA device and FlashAttention 4 (the package flash-attn-4)",
    "xformers": f"a CUDA device and an xformers that was built for torch {torch.__version__}",
}
"""What a kernel needs that is more than a CUDA device."""


@dataclass(frozen=True)
class MeasuredAttention:
    """A `MeasuredAttention` is the fastest of several kernels, measured once a shape and remembered between runs.

    Args:
        candidates: The kernels; one that cannot run a shape is passed over.
        memory: JSON file of what was measured, by device, PyTorch, FlashAttention, dtype and shape.
        rounds: Timed calls of each kernel; the median counts.
    """

    candidates: tuple[Attention, ...]
    memory: Path
    rounds: int = 5
    name: str = "auto"
    chosen: dict[str, str] = field(default_factory=dict)
    """Shape to kernel, as far as this run has asked."""

    def choose(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> Attention:
        """Return the fastest kernel for queries of a shape, (rows, heads, tokens, channels).

        Raises:
            RuntimeError: No candidate runs the shape.
        """
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        key = f"{where}, torch {torch.__version__}, {self._packages}{dtype}, {'x'.join(map(str, shape))}"
        by_name = {kernel.name: kernel for kernel in self.candidates}
        if key not in self.chosen:
            remembered = self._read().get(key, {})
            if not remembered or min(remembered, key=remembered.__getitem__) not in by_name:
                remembered = self._measure(shape, dtype, device)
                self._write(key, remembered)
            self.chosen[key] = min(remembered, key=remembered.__getitem__)
        return by_name[self.chosen[key]]

    @cached_property
    def _packages(self) -> str:
        versions = {kernel.name: find_version(kernel.flash) for kernel in self.candidates}
        return "".join(f"{name} {version}, " for name, version in versions.items() if version)

    def _measure(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> dict[str, float]:
        """Return the milliseconds of each kernel that runs, on random data: zeros would flatter."""
        generator = torch.Generator().manual_seed(0)
        rows, heads, tokens, channels = shape
        query, key, value = (
            torch.randn(rows, tokens, heads, channels, generator=generator, device="cpu")
            .to(device, dtype)
            .transpose(1, 2)
            for _ in range(3)
        )
        measured, failures = {}, []
        for kernel in self.candidates:
            try:
                with kernel.active():
                    measured[kernel.name] = self._time(kernel, query, key, value)
            except Exception as error:  # packages raise what they like: assertions, values to unpack, ...
                failures.append(f"{kernel.name}: {_say(error)}")
        if not measured:
            raise RuntimeError(f"attention: no kernel runs {shape} in {dtype} on {device}: {'; '.join(failures)}")
        return measured

    def _time(self, kernel: Attention, query: Tensor, key: Tensor, value: Tensor) -> float:
        samples = []
        for _ in range(1 + self.rounds):
            start = time.perf_counter()
            kernel.attend(query, key, value, None)
            if query.device.type == "cuda":  # pragma: no cover - cuda
                torch.cuda.synchronize(query.device)
            samples.append((time.perf_counter() - start) * 1e3)
        return statistics.median(samples[1:])

    def _read(self) -> dict[str, dict[str, float]]:
        try:
            remembered: dict[str, dict[str, float]] = json.loads(self.memory.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return remembered

    def _write(self, key: str, measured: dict[str, float]) -> None:
        """Remember a measurement; where nothing can be written, the next run measures again."""
        try:
            self.memory.parent.mkdir(parents=True, exist_ok=True)
            whole = self.memory.with_name(f"{self.memory.name}.{os.getpid()}")
            whole.write_text(json.dumps(self._read() | {key: measured}, indent=1) + "\n", encoding="utf-8")
            whole.replace(self.memory)
        except OSError:
            return


def get_memory_file() -> Path:
    """Return where measurements are remembered, under the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "ddim_lightning" / "attention.json"


def resolve_attention(name: str, device: torch.device) -> Attention | MeasuredAttention:
    """Return an attention kernel by name.

    Args:
        name: ``auto`` (the fastest of one kernel each, measured once a shape; on a CPU there is only ``sdpa``),
            ``sdpa`` (PyTorch's own choice), ``cudnn``, ``flash``, ``flash3``, ``flash4``, ``efficient``, ``xformers``,
            or the dotted path of a function of your own with the signature of `AttentionFn`.
        device: Where the model will run.

    Raises:
        ValueError: A backend that is unknown, not installed, or has no kernel for the device; says what is available.
    """
    kernels = CUDA_KERNELS if device.type == "cuda" else CPU_KERNELS
    if name == "auto":
        if device.type != "cuda":
            return kernels["sdpa"]
        return MeasuredAttention(list_measured(), get_memory_file())  # pragma: no cover - cuda
    if name in CUDA_KERNELS:
        got = None if name in kernels else device.type
        if got is None and name in _NEEDS:
            got = find_fault(kernels[name], device)
        if got is not None:
            others = ", ".join(repr(other) for other in ("auto", *kernels) if other not in _NEEDS)
            needs = _NEEDS.get(name, "a CUDA device")
            raise ValueError(f"attention: {name!r} needs {needs}, got {got}; on {device.type} here are {others}")
        return kernels[name]
    return Attention(name, _import_function(name))


def list_measured() -> tuple[Attention, ...]:
    """List the kernels of a GPU among which ``auto`` chooses.

    Not PyTorch's own choice, which is one of the others; and not xformers, which no compiled block can hold.
    """
    return tuple(kernel for name, kernel in CUDA_KERNELS.items() if name not in ("sdpa", "xformers"))


def find_fault(kernel: Attention, device: torch.device) -> str | None:
    """Return what a kernel says when it is tried on a device; ``None`` where it runs.

    Operators of a package may be registered even where their kernels are missing, so that only a call tells.
    """
    try:
        probe = torch.zeros(1, 1, 8, 64, dtype=torch.bfloat16, device=device)
        with kernel.active():
            kernel.attend(probe, probe, probe, None)
    except Exception as error:  # packages raise what they like
        return _say(error)
    return None


def _say(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _import_function(name: str) -> AttentionFn:
    module_name, _, function_name = name.rpartition(".")
    try:
        function: AttentionFn = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:  # of a name without a dot
        raise ValueError(f"attention: {name!r} could not be imported ({error})") from error
    if not callable(function):
        raise ValueError(f"attention: must be the dotted path of a function, got {name!r}")
    return function
