"""What a VAE made of clips is kept in files that are named after all that it depends on."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ddim_lightning.data.clip_frames import ClipFrames
from ddim_lightning.data.files import expand
from ddim_lightning.data.video import VideoInfo, read_info


@dataclass(frozen=True)
class ClipInfo:
    """A `ClipInfo` is what a video holds, and which content it is.

    Args:
        info: What the video holds.
        digest: Of its content; empty where nobody asked for it.
    """

    info: VideoInfo
    digest: str = ""


@dataclass(frozen=True)
class EncodedClip:
    """An `EncodedClip` is a file with the posterior of a clip's latents.

    Args:
        file: Tensors ``mean`` and ``std``, (f, c, h, w) float16, not scaled; ``scaling_factor``, a number.
    """

    file: Path

    def load(self, generator: torch.Generator | None = None) -> Tensor:
        """Load latents, scaled.

        Args:
            generator: Draws from the posterior with it; without one its mean is taken.

        Returns:
            (f, c, h, w) float32.

        Raises:
            ValueError: If the file is damaged or gone.
        """
        try:
            with safe_open(self.file, framework="pt") as tensors:
                latents: Tensor = tensors.get_tensor("mean").float()
                if generator is not None:
                    latents += tensors.get_tensor("std").float() * torch.randn(latents.shape, generator=generator)
                scaled: Tensor = latents * tensors.get_tensor("scaling_factor")
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"cache: {self.file} cannot be read ({error}); start again, and it is made anew"
            ) from error
        return scaled

    def is_whole(self, shape: tuple[int, int, int]) -> bool:
        """Say whether the file is there and has all tensors, of this many latent frames, rows and columns."""
        try:
            with safe_open(self.file, framework="pt") as tensors:
                shapes = [tensors.get_slice(name).get_shape() for name in ("mean", "std")]
                return all((f, h, w) == shape for f, _, h, w in shapes) and "scaling_factor" in tensors.keys()  # noqa: SIM118, no mapping
        except (OSError, SafetensorError, ValueError):
            return False

    def write(self, mean: Tensor, std: Tensor, scaling_factor: float) -> None:
        """Write the file; it appears whole or not at all, so that a process may be killed at any time.

        Args:
            mean: (f, c, h, w), of the posterior.
            std: Likewise.
            scaling_factor: Of the VAE.
        """
        self.file.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"mean": mean.half().cpu().contiguous(), "std": std.half().cpu().contiguous()}
        draft = self.file.with_name(f".{self.file.name}.{uuid4().hex}.partial")
        save_file(tensors | {"scaling_factor": torch.tensor(scaling_factor)}, draft)
        os.replace(draft, self.file)


@dataclass(frozen=True)
class LatentCache:
    """A `LatentCache` is a folder of encoded clips; several trainings and processes may use it at once.

    Args:
        folder: Made where it is missing. ``latents/`` holds the encoded clips, ``clips/`` what is known of the videos,
            so that a file that has not changed since is not read again.
    """

    folder: Path

    def read_info(self, video: Path) -> ClipInfo:
        """Read what a video holds, and digest its content; what `keep` has kept of the same file is not read again.

        Raises:
            OSError: If it may not be read; always the exact subclass.
            ValueError: If it is no readable video.
        """
        try:
            record = json.loads(self._find_record(video).read_text(encoding="utf-8"))
            rates = {name: Fraction(record["info"][name]) for name in ("fps", "pixel_aspect")}
            return ClipInfo(VideoInfo(**record["info"] | rates | {"path": video, "notes": ()}), record["digest"])
        except (OSError, ValueError, TypeError, KeyError):  # not there, or from another version
            content = hashlib.sha256()
            for file in _list_files(video):
                with file.open("rb") as opened:
                    content.update(hashlib.file_digest(opened, "sha256").digest())
            return ClipInfo(replace(read_info(video), notes=()), content.hexdigest())

    def keep(self, clip: ClipInfo) -> None:
        """Keep what is known of a video, until its file changes.

        Raises:
            OSError: If the cache cannot be written; always the exact subclass.
        """
        record = self._find_record(clip.info.path)
        if record.exists():
            return
        record.parent.mkdir(parents=True, exist_ok=True)
        draft = record.with_name(f".{record.name}.{uuid4().hex}.partial")
        draft.write_text(json.dumps(asdict(clip), default=str), encoding="utf-8")
        os.replace(draft, record)

    def find(self, clip: ClipInfo, frames: ClipFrames, vae: str) -> EncodedClip:
        """Find where a clip is kept, or will be.

        Args:
            clip: What the video is; its path does not matter.
            frames: Which frames of it.
            vae: Digest of the VAE.
        """
        name = _digest([clip.digest, frames.size, frames.start, frames.stride, frames.fit, vae])
        return EncodedClip(self.folder / "latents" / name[:2] / f"{name}.safetensors")  # not a million in one folder

    def _find_record(self, video: Path) -> Path:
        """Find the record of a video, named by the path, the size and the time of its files."""
        stats = []
        for file in _list_files(video):
            stat = file.stat()
            stats.append((str(file.absolute()), stat.st_size, stat.st_mtime_ns))
        return self.folder / "clips" / f"{_digest(stats)}.json"


def open_cache(folder: str | os.PathLike[str]) -> LatentCache:
    """Open a cache, made with its parents where it is missing.

    Raises:
        OSError: If it is no folder or cannot be written; always the exact subclass.
    """
    path = expand(folder)
    path.mkdir(parents=True, exist_ok=True)
    return LatentCache(path)


def _list_files(video: Path) -> list[Path]:
    return sorted(video.iterdir()) if video.is_dir() else [video]


def _digest(values: object) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:32]
