"""Make the community cases by running diffusers' community pipeline itself on a random tiny model.

    python -m tests.community.make_cases path/to/cogvideox_ddim_inversion.py tests/community

The file is ``examples/community/cogvideox_ddim_inversion.py`` of diffusers (Apache-2.0). It runs as it is, in float32
on a CPU, after ``torch.manual_seed``: its posterior and its start draw from the global generator. Only its video
reader, decord, is replaced, by one that reads folders of images. A case holds ``inverse_latents`` and
``recon_latents``, (steps, 1, f, c, h, w); its frames and its weights come from seeds.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.parity.make_cases import load_script
from tests.random_tiny import write_random_tiny

NUM_FRAMES, HEIGHT, WIDTH = 31, 32, 48
CASES: dict[str, dict[str, Any]] = {
    # 13 of 31 frames, more than the random model takes at once
    "guidance-6": {
        "prompt": "a red circle moving right on a blue background",
        "guidance_scale": 6.0,
        "num_inference_steps": 4,
        "skip_frames_start": 2,
        "skip_frames_end": 1,
        "frame_sample_step": None,
        "max_num_frames": 15,
        "width": WIDTH,
        "height": HEIGHT,
        "seed": 3,
    },
    # 9 frames, every third one
    "no-guidance": {
        "prompt": "a green square",
        "guidance_scale": 1.0,
        "num_inference_steps": 2,
        "skip_frames_start": 0,
        "skip_frames_end": 0,
        "frame_sample_step": 3,
        "max_num_frames": 9,
        "width": WIDTH,
        "height": HEIGHT,
        "seed": 4,
    },
}


class ImageReader:
    """Reads a folder of images as decord reads a video."""

    def __init__(self, uri: str, width: int, height: int) -> None:
        self.files = sorted(Path(uri).iterdir())
        assert (width, height) == (WIDTH, HEIGHT)

    def __len__(self) -> int:
        return len(self.files)

    def get_batch(self, indices: list[int]) -> torch.Tensor:
        return torch.stack([torch.from_numpy(np.array(Image.open(self.files[i]))) for i in indices])


def write_frames(folder: Path) -> Path:
    """Write a clip of noise as numbered images, which lose nothing."""
    size = (NUM_FRAMES, HEIGHT, WIDTH, 3)
    frames = torch.randint(0, 256, size, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    folder.mkdir()
    for i, frame in enumerate(frames):
        Image.fromarray(frame.numpy()).save(folder / f"{i:04d}.png")
    return folder


def write_model(folder: Path) -> Path:
    """Write the model of the cases, for prompts of as many tokens as the community pipeline pads to."""
    return write_random_tiny(folder, transformer={"max_text_seq_length": 226})


def main(script_path: str, output: str) -> None:
    script = load_script(Path(script_path))
    script.decord = SimpleNamespace(VideoReader=ImageReader, bridge=SimpleNamespace(use_torch=nullcontext))
    with tempfile.TemporaryDirectory() as folder:
        pipeline = script.CogVideoXPipelineForDDIMInversion.from_pretrained(write_model(Path(folder) / "model"))
        clip = write_frames(Path(folder) / "clip")
        for name, arguments in CASES.items():
            torch.manual_seed(arguments["seed"])
            made = pipeline(video_path=str(clip), **arguments)
            tensors = {"inverse_latents": made.inverse_latents, "recon_latents": made.recon_latents}
            save_file({key: value.contiguous() for key, value in tensors.items()}, Path(output) / f"{name}.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
