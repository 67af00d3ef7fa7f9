"""The network is exported to files that run without this package, by `export_network`; `ArtifactNetwork` runs them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddim_lightning.engine.artifacts import BLOCKS, read_manifest, write_manifest
from ddim_lightning.engine.editor_rules import ALL_TOKENS, NOTHING_HELD, check_for_artifacts
from ddim_lightning.engine.engine import InversionEngine
from ddim_lightning.engine.export_blocks import BlockManifest, export_blocks
from ddim_lightning.engine.recording import make_layout, record_layouts
from ddim_lightning.engine.trajectory import digest_model
from ddim_lightning.limits import count_latent_frames
from ddim_lightning.models.loading import Components
from ddim_lightning.network.held import Held, HeldRows
from ddim_lightning.network.layout import RowLayout, count_video_tokens
from ddim_lightning.network.network import Network
from ddim_lightning.network.standalone import StandaloneNetwork
from ddim_lightning.types import KVScale

SCHEMA = "ddim-lightning/artifacts/1"
FORMATS = {"aoti": "pt2", "torch-export": "pt2", "torchscript": "pt"}
"""``aoti``: compiled ahead of time, the fast one. ``torch-export``: the graph, for `torch.export.load`.
``torchscript``: a trace, the format for compatibility with programs that know nothing newer; deprecated in PyTorch."""

ONE_ROW, GUIDED_PAIR, EDIT = RowLayout(1, 1), RowLayout(2, 2), RowLayout(3, 2, (2, 2))
"""What every export holds: one row, a guided pair, and a guided pair that reads a source row."""

Run = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Manifest:
    """A `Manifest` says which model exported artifacts are of, and what they take.

    Args:
        schema: `SCHEMA`.
        format: One of `FORMATS`.
        model: Digest of the model they were made from.
        device: ``cpu`` or ``cuda``.
        dtype: Of latents, embeddings and velocities.
        latents: (f, c, h, w) of a row; c counts the channels of an image-to-video model's image latents, too.
        text: (tokens, width) of a row.
        num_layers: Length of the kv_scale.
        attention: The kernel inside.
        torch: The version of PyTorch that made them.
        layouts: ``file``, ``rows``, ``wanted`` and ``reads`` of each.
    """

    schema: str
    format: str
    model: str
    device: str
    dtype: str
    latents: tuple[int, int, int, int]
    text: tuple[int, int]
    num_layers: int
    attention: str
    torch: str
    layouts: list[dict[str, Any]]


def make_row_size(parts: Components, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Return the (f, in_channels, h, w) of a row for clips of so many frames of this size in pixels."""
    config, limits = parts.transformer.config, parts.limits
    spatial = limits.multiple // config.patch_size
    return count_latent_frames(num_frames, limits), config.in_channels, height // spatial, width // spatial


def list_layouts(engine: InversionEngine, size: tuple[int, int, int, int], guidance_scale: float) -> list[RowLayout]:
    """List the row layouts of an inversion and an edit as the engine does them, after those of every export.

    Args:
        engine: Its inverter, editor and schedule decide.
        size: (f, in_channels, h, w) of the rows.
        guidance_scale: Of the edit.
    """
    parts = engine.components
    seen = record_layouts(
        engine.inverter,
        engine.editor,
        engine.schedule,
        num_layers=len(parts.transformer.transformer_blocks),
        size=size,
        channels=parts.vae.config.latent_channels,
        guidance_scale=guidance_scale,
    )
    return list(dict.fromkeys([ONE_ROW, GUIDED_PAIR, EDIT, *seen]))


@torch.no_grad()
def export_network(
    engine: InversionEngine,
    folder: Path,
    kind: str,
    *,
    size: tuple[int, int, int, int],
    guidance_scale: float,
    on_layout: Callable[[str, int, int], None] = lambda name, k, total: None,
) -> Manifest | BlockManifest:
    """Write the network of a loaded model as files that PyTorch alone can run.

    Their signature is (latents, prompt embeddings, timestep, kv_scale per layer) -> velocities; see
    `StandaloneNetwork.forward`. Those of the form `BLOCKS` are parts of the network, see `export_blocks`.

    Args:
        engine: The loaded model; its inverter, editor and schedule say which row layouts are needed beside
            the usual three.
        folder: Made where it is missing.
        kind: One of `FORMATS`, or `BLOCKS`.
        size: (f, in_channels, h, w) of the rows, whole tokens of frames.
        guidance_scale: Of the edits.
        on_layout: Called before each layout with its name, its position and their number.

    Raises:
        ValueError: An unknown format, or an editor that artifacts cannot serve.
    """
    if kind not in (*FORMATS, BLOCKS):
        raise ValueError(f"format: must be one of {', '.join((*FORMATS, BLOCKS))}, got {kind!r}")
    if not isinstance(engine.network, Network):
        raise ValueError("forward: must be fused for an export, got 'diffusers'")
    if kind == BLOCKS:
        return export_blocks(engine, folder, size=size, guidance_scale=guidance_scale, on_layout=on_layout)
    check_for_artifacts(engine.editor)
    if engine.adapter is not None:
        rule = "artifacts are one network for inversions and edits; must hold no adapter that acts in edits alone"
        raise ValueError(f"lora: {rule}, got {engine.adapter.name}")
    transformer, device = engine.components.transformer, engine.device
    config, layouts = transformer.config, list_layouts(engine, size, guidance_scale)
    text = (config.max_text_seq_length, config.text_embed_dim)
    folder.mkdir(parents=True, exist_ok=True)
    entries, kernel = [], ""
    for k, layout in enumerate(layouts):
        on_layout(layout_name(layout), k, len(layouts))
        tokens = text[0] + count_video_tokens(config, size[0], *size[2:])
        shape = (layout.rows, config.num_attention_heads, tokens, config.attention_head_dim)
        attention = engine.network.attention.choose(shape, transformer.dtype, device)
        kernel = attention.name
        network = StandaloneNetwork(transformer, layout, (size[0], *size[2:]), attention).eval()
        example = (
            torch.randn(layout.rows, *size, generator=torch.Generator().manual_seed(0)).to(device, transformer.dtype),
            torch.randn(layout.rows, *text, generator=torch.Generator().manual_seed(1)).to(device, transformer.dtype),
            torch.tensor(500, device=device),
            torch.full((config.num_layers,), 0.5, device=device),
        )
        file = f"{layout_name(layout)}.{FORMATS[kind]}"
        _WRITERS[kind](network, example, folder / file)
        entries.append({"file": file, **layout._asdict()})
    manifest = Manifest(
        SCHEMA, kind, digest_model(engine.components, device), device.type, _dtype_name(transformer.dtype), size, text,
        config.num_layers,
        kernel, torch.__version__, entries,
    )  # fmt: skip
    write_manifest(folder, asdict(manifest))
    return manifest


def layout_name(layout: RowLayout) -> str:
    """Name a layout, ``rows-3-wanted-2-reads-2-2`` for example."""
    reads = "".join(f"-{row}" for row in layout.reads)
    return f"rows-{layout.rows}-wanted-{layout.wanted}" + (f"-reads{reads}" if reads else "")


class ArtifactNetwork:
    """An `ArtifactNetwork` evaluates rows by exported artifacts instead of the network.

    Args:
        folder: What `export_network` wrote.
        device: Where it will run.

    Raises:
        FileNotFoundError: No manifest there.
        ValueError: Artifacts for another device, or no artifacts of ours.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.manifest = Manifest(**read_manifest(folder, SCHEMA, device.type))
        self.folder, self.device = folder, device
        self.dtype: torch.dtype = getattr(torch, self.manifest.dtype)
        self.num_layers, self.in_channels = self.manifest.num_layers, self.manifest.latents[1]
        self._files = {
            RowLayout(entry["rows"], entry["wanted"], tuple(entry["reads"])): entry["file"]
            for entry in self.manifest.layouts
        }
        self._loaded: dict[RowLayout, Run] = {}

    def check(self, digest: str) -> None:
        """Raise a ValueError unless the artifacts were made from the model with this digest, in its dtype."""
        if digest != self.manifest.model:
            raise ValueError(f"exported: the artifacts in {self.folder} are of another model, or of another dtype")

    def __call__(
        self,
        latents: Tensor,
        prompt_embeds: Tensor,
        timestep: int,
        *,
        wanted: int | None = None,
        reads: tuple[int, ...] = (),
        kv_scale: KVScale | None = None,
        held: HeldRows | None = None,
        masks: Sequence[Tensor | None] = (),
    ) -> Tensor:
        """Evaluate the rows; see `Network`. Nothing can be held.

        Raises:
            ValueError: A size or a row layout that was not exported, or masks.
        """
        if masks:
            raise ValueError(ALL_TOKENS)
        layout = make_layout(latents, wanted, reads)
        if list(latents.shape[1:]) != list(self.manifest.latents):
            taken, got = tuple(self.manifest.latents), tuple(latents.shape[1:])
            raise ValueError(f"exported: the artifacts take latents of {taken}, got {got}")
        scales = torch.ones(self.num_layers) if kv_scale is None else kv_scale.float()
        return self._load(layout)(
            latents, prompt_embeds, torch.tensor(timestep, device=self.device), scales.to(self.device)
        )

    def hold(self, latents: Tensor, prompt_embeds: Tensor, timestep: int) -> Held:
        """Raise a ValueError: nothing can be held."""
        raise ValueError(NOTHING_HELD)

    def _load(self, layout: RowLayout) -> Run:
        if layout not in self._loaded:
            if layout not in self._files:
                known = ", ".join(map(layout_name, self._files))
                raise ValueError(
                    f"exported: the artifacts hold {known}, got {layout_name(layout)}; export again with this "
                    "editor and guidance_scale"
                )
            self._loaded[layout] = _READERS[self.manifest.format](self.folder / self._files[layout])
        return self._loaded[layout]


def _write_aoti(network: nn.Module, example: Sequence[Tensor], path: Path) -> None:
    program = torch.export.export(network, tuple(example))
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))


def _write_export(network: nn.Module, example: Sequence[Tensor], path: Path) -> None:
    torch.export.save(torch.export.export(network, tuple(example)), path)


def _write_torchscript(network: nn.Module, example: Sequence[Tensor], path: Path) -> None:
    with warnings.catch_warnings():
        # That shapes and layouts are fixed is what is wanted, and that TorchScript is deprecated is in the help.
        warnings.simplefilter("ignore")
        torch.jit.trace(network, tuple(example), check_trace=False).save(str(path))


def _read_aoti(path: Path) -> Run:
    run: Run = torch._inductor.aoti_load_package(str(path))
    return run


def _read_export(path: Path) -> Run:
    run: Run = torch.export.load(path).module()
    return run


def _read_torchscript(path: Path) -> Run:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        run: Run = torch.jit.load(str(path))
    return run


_WRITERS = {"aoti": _write_aoti, "torch-export": _write_export, "torchscript": _write_torchscript}
_READERS = {"aoti": _read_aoti, "torch-export": _read_export, "torchscript": _read_torchscript}


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
