"""The clips of a training are looked at, encoded once, and handed out in batches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor

from ddim_lightning.data.batches import Batches, ReadyExample, TrainingBatches
from ddim_lightning.data.bucket_sampler import BucketSampler, EpochLoader
from ddim_lightning.data.buckets import Size, check_sizes, choose_size
from ddim_lightning.data.clip_frames import ClipFrames
from ddim_lightning.data.examples import Example, Split
from ddim_lightning.data.frames import Fit, Stride
from ddim_lightning.data.latent_cache import ClipInfo, EncodedClip, LatentCache, open_cache
from ddim_lightning.data.streams import get_batches_done
from ddim_lightning.data.video import read_info
from ddim_lightning.engine.trajectory import digest_weights
from ddim_lightning.limits import VideoLimits
from ddim_lightning.runtime.processes import is_first, share_work
from ddim_lightning.types import Frames

Reason = str
"""Why a clip cannot be used, in one line."""
_Result = TypeVar("_Result")
_TELL_EVERY = 100


class TrainingClips:
    """A `TrainingClips` is what a data module trains and validates on, from rows to batches.

    Args:
        splits: Training and validation examples.
        batches: How they become batches.
        start: Index of the first frame.
        stride: Distance between frames.
        fit: What happens to frames of another shape.
        tell: Takes sentences about how far it is.

    Raises:
        OSError: If the cache cannot be made; always the exact subclass.
    """

    def __init__(
        self,
        splits: Mapping[Split, Sequence[Example]],
        batches: Batches,
        *,
        start: int = 0,
        stride: Stride = 1,
        fit: Fit = "crop",
        tell: Callable[[str], object] = print,
    ) -> None:
        self.tell = tell
        self.batches, self.start, self.stride, self.fit = batches, start, stride, fit
        self.cache: LatentCache | None = None if batches.cache is None else open_cache(batches.cache)
        self._splits = splits
        self._infos: dict[Path, ClipInfo] = {}
        self._ready: dict[Split, list[ReadyExample]] = {}
        self._encoded = False

    def read(self, sizes: Sequence[Sequence[int]], limits: VideoLimits | None) -> None:
        """Look at every clip, each in one of the processes, and choose its bucket.

        Args:
            sizes: Of the buckets; none is the model's own.
            limits: What the model takes; ``None`` where that is not known.

        Raises:
            ValueError: If a size is none for the model, or no clip can be used; under ``on_error="raise"`` already
                where one cannot.
        """
        checked = check_sizes(sizes, limits)
        videos = list(dict.fromkeys(video for part in self._splits.values() for one in part for video in one.videos))
        self._encoded = self.cache is None
        found = dict(zip(videos, share_work(len(videos), lambda k: self._look_at(videos[k])), strict=True))
        self._infos = {video: info for video, info in found.items() if isinstance(info, ClipInfo)}
        reasons = {video: info for video, info in found.items() if isinstance(info, str)}
        self._ready = {split: self._place(part, checked, reasons) for split, part in self._splits.items()}
        if self.cache is not None:
            self._check_contents()

    def list_prompts(self) -> list[str]:
        """List every text that something trains or validates under, each once."""
        clips = [clip for part in self._splits.values() for one in part for clip in (one.clip, one.source) if clip]
        return list(dict.fromkeys(clip.prompt for clip in clips))

    def make_loader(
        self,
        split: Split,
        make_batches: Callable[[Sequence[ReadyExample], Batches], TrainingBatches],
        trainer: Any,
        num_workers: int,
    ) -> EpochLoader | list[Any]:
        """Make the loader of a split for this process, after what is not in the cache was encoded.

        Args:
            split: Which one.
            make_batches: The class of the batches.
            trainer: A Lightning Trainer, or ``None`` outside of one.
            num_workers: Processes that load, >= 0.

        Returns:
            The loader; no batch where nothing validates.
        """
        if not self._encoded:
            self._encode(trainer)
        if not self._ready[split]:
            return []
        rank, world = (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
        data = make_batches(self._ready[split], self.batches)
        done = partial(get_batches_done, trainer) if split == "train" else None
        sampler = BucketSampler(data, self.batches.batch_size, rank=rank, world=world, get_done=done)
        return EpochLoader(data, batch_size=None, sampler=sampler, num_workers=num_workers)

    def _look_at(self, video: Path) -> ClipInfo | Reason:
        """Look at a clip; a cache that cannot be written ends the run, a clip that cannot be read does not."""
        if self.cache is None:
            return _try_to(lambda: ClipInfo(read_info(video)))
        cache = self.cache
        clip = _try_to(lambda: cache.read_info(video))
        if isinstance(clip, ClipInfo):
            cache.keep(clip)
        return clip

    def _place(
        self, examples: Sequence[Example], sizes: Sequence[Size], reasons: Mapping[Path, Reason]
    ) -> list[ReadyExample]:
        """Choose the bucket of each example that can be read."""
        ready, left_out = [], {}
        for example in examples:
            broken = [video for video in example.videos if video in reasons]
            if broken:
                left_out[example] = reasons[broken[0]]
                continue
            try:
                infos = [self._infos[video].info for video in example.videos]
                size = choose_size(infos, sizes, self.start, self.stride)
            except ValueError as error:
                left_out[example] = f"{example.clip.video}: {error}"
                continue
            clips = tuple(ClipFrames(video, size, self.start, self.stride, self.fit) for video in example.videos)
            ready.append(ReadyExample(example, size, clips))
        self._leave_out(left_out, len(ready))
        return ready

    def _leave_out(self, examples: Mapping[Example, Reason], left: int) -> None:
        """Tell of examples that cannot be used."""
        if not examples:
            return
        example, reason = next(iter(examples.items()))
        if self.batches.on_error == "raise":
            raise ValueError(f"{example.origin}: {reason}")
        if not left:
            raise ValueError(f"no clip can be used, {len(examples)} were tried; the first, {example.origin}: {reason}")
        for example, reason in examples.items() if is_first() else ():
            warnings.warn(f"{example.origin}: left out: {reason}", stacklevel=3)

    def _check_contents(self) -> None:
        """Leave out what validates and is a copy of what trains."""
        trained = {self._infos[video].digest for one in self._ready["train"] for video in one.example.videos}
        kept = []
        for one in self._ready["val"]:
            if not any(self._infos[video].digest in trained for video in one.example.videos):
                kept.append(one)
            elif is_first():
                reason = "a copy of it trains, so it cannot validate"
                warnings.warn(f"{one.example.origin}: left out: {reason}", stacklevel=3)
        self._ready["val"] = kept

    def _encode(self, trainer: Any) -> None:
        """Encode what is not in the cache, each process its share, and hand out what the cache holds from now on."""
        assert self.cache is not None
        vae = self._find_vae(trainer)
        digest = f"{digest_weights(vae, vae.device)} {vae.dtype} {vae.use_tiling}"
        wanted: dict[EncodedClip, ClipFrames] = {}
        files: dict[ClipFrames, EncodedClip] = {}
        for frames in (clip for part in self._ready.values() for one in part for clip in one.clips):
            assert isinstance(frames, ClipFrames)
            file = self.cache.find(self._infos[frames.video], frames, digest)
            files[frames] = file
            wanted.setdefault(file, frames)  # a copy need not be encoded again
        work = list(wanted.items())
        outcomes = share_work(len(work), lambda k: self._encode_missing(vae, *work[k], of=(k, len(work))))
        failed = {file: reason for (file, _), reason in zip(work, outcomes, strict=True) if reason is not None}
        for split, part in self._ready.items():
            ready, left_out = [], {}
            for one in part:
                encoded = tuple(files[clip] for clip in one.clips if isinstance(clip, ClipFrames))
                if broken := [file for file in encoded if file in failed]:
                    left_out[one.example] = failed[broken[0]]
                else:
                    ready.append(ReadyExample(one.example, one.size, encoded))
            self._leave_out(left_out, len(ready))
            self._ready[split] = ready
        self._encoded = True

    def _encode_missing(
        self, vae: AutoencoderKLCogVideoX, file: EncodedClip, frames: ClipFrames, of: tuple[int, int]
    ) -> Reason | None:
        """Encode a clip, unless it is in the cache and whole; a sentence says why it cannot be decoded."""
        num_frames, height, width = frames.size
        scale = 2 ** (len(vae.config.block_out_channels) - 1)
        latent_frames = (num_frames - 1) // int(vae.config.temporal_compression_ratio) + 1
        if of[0] % _TELL_EVERY == 0:
            self.tell(f"Encoding clip {of[0] + 1} of {of[1]}, unless it is in the cache")
        if file.is_whole((latent_frames, height // scale, width // scale)):
            return None
        if file.file.exists():
            warnings.warn(f"cache: {file.file} is damaged; the clip is encoded again", stacklevel=2)
        pixels = _try_to(frames.load)
        if isinstance(pixels, str):
            return pixels
        file.write(*encode_posterior(vae, pixels), vae.config.scaling_factor)
        return None

    def _find_vae(self, trainer: Any) -> AutoencoderKLCogVideoX:
        """Find the VAE: that of a folder, or of the module that trains."""
        if self.batches.vae is not None:
            device = torch.device("cpu") if trainer is None else trainer.strategy.root_device
            loaded: Any = AutoencoderKLCogVideoX.from_pretrained(self.batches.vae, use_safetensors=True)
            return loaded.to(device).eval()
        module = None if trainer is None else trainer.lightning_module
        vae = getattr(module, "vae", None)
        if not isinstance(vae, AutoencoderKLCogVideoX):
            rule = "must name a folder where the module that trains has no `vae`"
            raise ValueError(f"vae: {rule}, got None under {type(module).__name__}")
        return vae


def _try_to(do: Callable[[], _Result]) -> _Result | Reason:
    """Do something with one clip; a sentence says why it could not be done."""
    try:
        return do()
    except Exception as error:  # a damaged file can make a decoder raise anything
        known = isinstance(error, OSError | ValueError)
        return " ".join((str(error) if known else f"{type(error).__name__}: {error}").split())


@torch.no_grad()
def encode_posterior(vae: AutoencoderKLCogVideoX, frames: Frames) -> tuple[Tensor, Tensor]:
    """Encode a clip.

    Args:
        vae: The autoencoder; the clip is encoded on its device, in its dtype.
        frames: (f, c, h, w) uint8.

    Returns:
        Mean and standard deviation of the posterior, (f, c, h, w) each, not scaled.
    """
    pixels = (frames.to(vae.device).float() / 127.5 - 1).to(vae.dtype)
    posterior = vae.encode(pixels.transpose(0, 1)[None]).latent_dist
    return posterior.mean[0].transpose(0, 1), posterior.std[0].transpose(0, 1)
