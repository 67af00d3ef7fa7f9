"""One block of the network is exported, compiled for the weights of any, by `export_blocks`; `BlockArtifacts` run it.

Weights are among what a graph takes. So files stay small, and weights may be streamed, changed by LoRA, or others.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from ddim_lightning.engine.artifacts import BLOCKS, read_manifest, write_manifest
from ddim_lightning.engine.editor_rules import check_for_block_artifacts
from ddim_lightning.engine.engine import InversionEngine
from ddim_lightning.engine.recording import rehearse
from ddim_lightning.network.attention import Attention
from ddim_lightning.network.block import lend_block, run_block
from ddim_lightning.network.denoiser import CogVideoXDenoiser
from ddim_lightning.network.layout import Layout
from ddim_lightning.network.network import Network
from ddim_lightning.runtime.compile import RunsBlocks

SCHEMA = "ddim-lightning/block-artifacts/1"
_FUNCTIONS: dict[str, Callable[..., Any]] = {"run": run_block, "lend": lend_block}
_VIDEO, _TEXT, _KV_SCALE, _LAYOUT, _ATTENTION, _HELD, _LENT = 0, 1, 5, 6, 7, 8, 9
"""Positions among the arguments of `run_block` and `lend_block`."""

Arguments = tuple[Any, ...]


@dataclass(frozen=True)
class BlockManifest:
    """A `BlockManifest` says for what exported blocks were made; of the model it names no weights.

    Args:
        schema: `SCHEMA`.
        format: `BLOCKS`.
        device: ``cpu`` or ``cuda``.
        machine: What the code is compiled for; see `describe_machine`.
        dtype: Of weights and tokens.
        torch: The version of PyTorch that made them, the only one that they are loaded by.
        layouts: Of each graph its ``file``, its ``name``, and what it ``takes``: shapes, dtypes and constants.
    """

    schema: str
    format: str
    device: str
    machine: str
    dtype: str
    torch: str
    layouts: list[dict[str, str]]


def describe_machine(device: torch.device) -> str:
    """Describe what compiled code depends on: the processor with its vector instructions, and the kind of GPU."""
    host = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    if device.type != "cuda":
        return host
    major, minor = torch.cuda.get_device_capability(device)  # pragma: no cover - cuda
    return f"{host}, compute capability {major}.{minor}"  # pragma: no cover - cuda


@torch.no_grad()
def export_blocks(
    engine: InversionEngine,
    folder: Path,
    *,
    size: tuple[int, int, int, int],
    guidance_scale: float,
    on_layout: Callable[[str, int, int], None] = lambda name, k, total: None,
) -> BlockManifest:
    """Write a graph for each way in which an inversion and an edit run a block, compiled ahead of time.

    Args:
        engine: The loaded model; its methods, and how it divides rows and holds keys and values, say which are needed.
        folder: Made where it is missing.
        size: (f, in_channels, h, w) of the rows, whole tokens of frames.
        guidance_scale: Of the edits.
        on_layout: Called before each graph with its name, its position and their number.

    Raises:
        ValueError: An editor that splits the tokens of a row, or a kernel that is switched on around a pass.
    """
    check_for_block_artifacts(engine.editor)
    calls = _record_calls(engine, size, guidance_scale)
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for k, (takes, (kind, arguments)) in enumerate(calls.items()):
        name = _name_call(kind, arguments)
        on_layout(name, k, len(calls))
        file = f"{name}-{hashlib.sha256(takes.encode()).hexdigest()[:8]}.pt2"
        # Copies: of tensors that are one and the same here an exporter would take the first for all.
        example = tuple(tensor.clone() for tensor in _list_tensors(arguments))
        _write(_Block(_FUNCTIONS[kind], arguments), example, folder / file)
        entries.append({"file": file, "name": name, "takes": takes})
    manifest = BlockManifest(
        SCHEMA, BLOCKS, engine.device.type, describe_machine(engine.device),
        str(engine.components.transformer.dtype).removeprefix("torch."), torch.__version__, entries,
    )  # fmt: skip
    write_manifest(folder, asdict(manifest))
    return manifest


class BlockArtifacts:
    """`BlockArtifacts` run blocks by exported graphs, in place of `run_block` and `lend_block`.

    Args:
        folder: What `export_blocks` wrote.
        device: Where they will run.
        dtype: Of the model.

    Raises:
        FileNotFoundError: No manifest there.
        ValueError: Artifacts for another device, machine, dtype or version of PyTorch, or no artifacts of ours.
    """

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        self.folder, self.manifest = folder, BlockManifest(**read_manifest(folder, SCHEMA, device.type))
        here = {
            "machine": describe_machine(device),
            "dtype": str(dtype).removeprefix("torch."),
            "torch": torch.__version__,
        }
        for name, found in here.items():
            if (made := getattr(self.manifest, name)) != found:
                raise ValueError(f"exported: the artifacts in {folder} are for {name} {made}, got {found}; export here")
        self._files = {entry["takes"]: entry["file"] for entry in self.manifest.layouts}
        self._loaded: dict[Any, Callable[..., Any]] = {}

    def apply(self, network: RunsBlocks) -> None:
        """Let a network run its blocks by these graphs."""
        network.run_block, network.lend_block = self.run_block, self.lend_block

    def run_block(self, *arguments: Any) -> Any:
        """Run a block; see `ddim_lightning.network.block.run_block`.

        Raises:
            ValueError: Rows, sizes or options for which there is no graph.
        """
        return self._run("run", arguments)

    def lend_block(self, *arguments: Any) -> Any:
        """Run a block whose keys and values others attend to, likewise."""
        return self._run("lend", arguments)

    def _run(self, kind: str, arguments: Arguments) -> Any:
        arguments = _fix(arguments)
        key = _make_key(kind, arguments)
        if key not in self._loaded:
            self._loaded[key] = self._load(kind, arguments)
        return self._loaded[key](*_list_tensors(arguments))

    def _load(self, kind: str, arguments: Arguments) -> Callable[..., Any]:
        takes = _tell_call(kind, arguments)
        if takes not in self._files:
            known = ", ".join(sorted({entry["name"] for entry in self.manifest.layouts}))
            raise ValueError(
                f"exported: the artifacts hold {known}, got {_name_call(kind, arguments)} that takes {takes}; export "
                "again with this model, size, editor, guidance_scale, rows_per_pass and context"
            )
        return _read(self.folder / self._files[takes])


class _Block(nn.Module):
    """A `_Block` is a call of a block's function; it takes the tensors, in the order of the arguments, alone."""

    def __init__(self, function: Callable[..., Any], arguments: Arguments) -> None:
        super().__init__()
        self.function = function
        leaves, self.structure = tree_flatten(arguments)
        self.constants = [None if isinstance(leaf, Tensor) else (leaf,) for leaf in leaves]

    def forward(self, *tensors: Tensor) -> Any:
        rest = iter(tensors)
        leaves = [next(rest) if constant is None else constant[0] for constant in self.constants]
        return self.function(*tree_unflatten(leaves, self.structure))


class _Recording:
    """A `_Recording` stands where a block's functions do, computes nothing, and notes every kind of call."""

    def __init__(self) -> None:
        self.calls: dict[str, tuple[str, Arguments]] = {}
        self._seen: set[Any] = set()

    def run_block(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        self._note("run", arguments)
        kept = arguments[_LAYOUT].kept
        return arguments[_VIDEO][:kept], arguments[_TEXT][:kept]

    def lend_block(self, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        self._note("lend", arguments)
        video, text, layout = arguments[_VIDEO], arguments[_TEXT], arguments[_LAYOUT]
        key = video.new_zeros(layout.rows, text.shape[1] + video.shape[1], layout.heads, video.shape[2] // layout.heads)
        return video[: layout.kept], text[: layout.kept], key, key

    def _note(self, kind: str, arguments: Arguments) -> None:
        _check_kernel(arguments[_ATTENTION])
        if (key := _make_key(kind, arguments)) not in self._seen:
            self._seen.add(key)
            self.calls[_tell_call(kind, _fix(arguments))] = (kind, arguments)


def _record_calls(
    engine: InversionEngine, size: tuple[int, int, int, int], guidance_scale: float
) -> dict[str, tuple[str, Arguments]]:
    """Return every kind of call of a block's functions in an inversion and an edit, by what it takes."""
    config, channels = engine.components.transformer.config, engine.components.vae.config.latent_channels
    embeds = torch.zeros(1, config.max_text_seq_length, config.text_embed_dim, device=engine.device)
    recording, network = _Recording(), engine.network
    assert isinstance(network, Network)
    with _replaced(network, recording):
        rehearse(
            CogVideoXDenoiser(network, lambda prompt: embeds, merges=False),
            engine.inverter,
            engine.editor,
            engine.schedule,
            latents=torch.zeros(1, size[0], channels, *size[2:], device=engine.device),
            shows_image=size[1] != channels,
            guidance_scale=guidance_scale,
        )
    return recording.calls


@contextmanager
def _replaced(network: Network, recording: _Recording) -> Iterator[None]:
    own = network.run_block, network.lend_block
    network.run_block, network.lend_block = recording.run_block, recording.lend_block
    try:
        yield
    finally:
        network.run_block, network.lend_block = own


def _fix(arguments: Arguments) -> Arguments:
    """Fill up arguments that were left out, and leave out the kernel: a graph holds its own."""
    return (*arguments[:_ATTENTION], None, *arguments[_HELD:], *[None] * (_LENT + 1 - len(arguments)))


def _make_key(kind: str, arguments: Arguments) -> Any:
    """Return what tells calls over the weights of one model apart, at little cost."""
    of_pass = (arguments[_VIDEO], arguments[_TEXT], arguments[_KV_SCALE], *arguments[_HELD:])
    return kind, arguments[_LAYOUT], *(getattr(leaf, "shape", None) for leaf in tree_leaves(of_pass))


def _list_tensors(arguments: Arguments) -> tuple[Tensor, ...]:
    """Return the tensors in order, all without gaps: graphs look at no strides."""
    return tuple(leaf.contiguous() for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor))


def _tell_call(kind: str, arguments: Arguments) -> str:
    """Tell all that a graph depends on: the shapes and dtypes of tensors, and the values of the rest."""

    def tell(leaf: Any) -> Any:
        return f"{str(leaf.dtype).removeprefix('torch.')}{list(leaf.shape)}" if isinstance(leaf, Tensor) else leaf

    return f"{kind}{tree_map(tell, arguments)}"


def _name_call(kind: str, arguments: Arguments) -> str:
    """Name a call, ``run-rows-3-kept-2-reads-2-2-tokens-64`` for example."""
    layout: Layout = arguments[_LAYOUT]
    tokens = arguments[_TEXT].shape[1] + arguments[_VIDEO].shape[1]
    parts = [kind, "rows", layout.rows, "kept", layout.kept]
    for name, rows in (("reads", layout.reads), ("holds", layout.held_rows)):
        parts += [name, *rows] if rows else []
    return "-".join(map(str, [*parts, "tokens", tokens]))


def _check_kernel(attention: Attention) -> None:
    if attention.flash not in (None, "FA2"):
        rule = "FlashAttention 3 and 4 are switched on around a pass, which no artifact does; must be another"
        raise ValueError(f"attention: {rule}, got {attention.name!r}")


def _write(block: nn.Module, example: tuple[Tensor, ...], path: Path) -> None:
    program = torch.export.export(block, example)
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))


def _read(path: Path) -> Callable[..., Any]:
    run: Callable[..., Any] = torch._inductor.aoti_load_package(str(path))
    return run
