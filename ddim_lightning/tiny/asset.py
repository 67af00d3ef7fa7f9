"""Two commands stand between the trainings of the bundled model: they write the folders to train in and to ship.

Run as ``python -m ddim_lightning.tiny.asset``; the header of ``configs/tiny_transformer.yaml`` has all commands.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ddim_lightning.data.streams import make_generator
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
    for verb in (start, export):
        verb.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    args = make_parser().parse_args(argv)
    if args.verb == "start":
        write_start(args.output, args.vae, seed=args.seed)
    else:
        write_trained_tiny(args.output, args.start, args.checkpoint)
    size = sum(path.stat().st_size for path in args.output.rglob("*.safetensors"))
    print(f"{args.output}: {size / 2**20:.1f} MiB of weights")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
