"""Commands stand between the trainings of the bundled model: they write the folders to train in, and what is shipped.

Run as ``python -m ddim_lightning.tiny.asset``; the header of ``configs/tiny_transformer.yaml`` has all commands.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ddim_lightning.data.streams import make_generator
from ddim_lightning.models.adapter_file import digest_base, write_adapter_of_checkpoint
from ddim_lightning.models.loading import load_components
from ddim_lightning.models.source import Source
from ddim_lightning.tiny.autoencoder import AutoencoderModule
from ddim_lightning.tiny.shapes import render, sample_scene
from ddim_lightning.tiny.training import write_trained_tiny, write_untrained_tiny

_MEASURED = 64
"""Clips whose latents the VAE's scaling factor is measured on."""


def write_start(folder: Path, vae: Path, *, seed: int = 0) -> Path:
    """Write the folder to train the transformer in: a trained VAE, and the rest untrained.

    Args:
        folder: Made with its parents where it is missing; files of the same names are replaced.
        vae: Lightning checkpoint of an `AutoencoderModule`.
        seed: Of the untrained weights, and of the clips that the VAE's scaling factor is measured on.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: No such checkpoint.
    """
    module = AutoencoderModule.load_from_checkpoint(vae, map_location="cpu", weights_only=True).eval()
    frames = torch.stack([render(sample_scene(make_generator(seed, "val", i))) for i in range(_MEASURED)])
    with TemporaryDirectory() as draft:
        module.save_pretrained(Path(draft), frames, torch.float32)
        return write_untrained_tiny(folder, Path(draft), seed=seed)


def write_adapter(path: Path, checkpoint: Path, *, edits: bool) -> Path:
    """Write the adapter that a training with ``parts: [lora]`` has left in a checkpoint, of whatever model.

    Args:
        path: The safetensors file; see `write_adapter_of_checkpoint`.
        checkpoint: Lightning checkpoint of a `DDIMInversionModule`.
        edits: Whether it was trained for the editor of its module.

    Returns:
        The file.

    Raises:
        FileNotFoundError: No such checkpoint.
        ValueError: A checkpoint without an adapter.
    """
    found = torch.load(checkpoint, map_location="cpu", weights_only=True)
    options = found.get("hyper_parameters", {})
    source = Source(**options.get("source", {}))
    on_cpu: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32, "require_rotary": False}
    transformer = load_components(options.get("model", "tiny"), source, **on_cpu).transformer
    return write_adapter_of_checkpoint(path, found, digest_base(transformer), edits=edits)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m ddim_lightning.tiny.asset", description=(__doc__ or "").splitlines()[0]
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    start = verbs.add_parser("start", help="a trained VAE and an untrained transformer, in diffusers' layout")
    start.add_argument("--vae", type=Path, required=True, metavar="CKPT", help="checkpoint of tiny_vae")
    start.add_argument("--seed", type=int, default=0, help="of the untrained weights (0)")
    export = verbs.add_parser("export", help="trained weights, in half precision, in diffusers' layout")
    export.add_argument("--start", type=Path, required=True, metavar="DIR", help="the folder that was trained in")
    export.add_argument(
        "--checkpoint", type=Path, action="append", required=True, metavar="CKPT", help="repeat it for each training"
    )
    adapter = verbs.add_parser("adapter", help="a LoRA that was trained, in diffusers' format, with its card")
    adapter.add_argument("--checkpoint", type=Path, required=True, metavar="CKPT", help="of a training of lora")
    adapter.add_argument("--edits", action="store_true", help="it was trained for the editor of its module")
    adapter.add_argument("--output", type=Path, required=True, metavar="FILE", help="safetensors file to write")
    for verb in (start, export):
        verb.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    args = make_parser().parse_args(argv)
    if args.verb == "adapter":
        files = [write_adapter(args.output, args.checkpoint, edits=args.edits)]
    else:
        if args.verb == "start":
            write_start(args.output, args.vae, seed=args.seed)
        else:
            write_trained_tiny(args.output, args.start, args.checkpoint)
        files = list(args.output.rglob("*.safetensors"))
    size = sum(path.stat().st_size for path in files)
    print(f"{args.output}: {size / 2**20:.1f} MiB of weights")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
