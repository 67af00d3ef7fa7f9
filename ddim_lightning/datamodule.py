"""A data module yields clips from video files, under any Trainer, one at a time or in batches to train on."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info

from ddim_lightning.data.batches import Batches, CaptionedBatches
from ddim_lightning.data.dataset import ShardSampler, VideoDataset
from ddim_lightning.data.examples import Example, find_captioned
from ddim_lightning.data.frames import Fit, NumFrames, Stride, check_num_frames, check_stride
from ddim_lightning.data.loader import ClipLoader
from ddim_lightning.data.manifest import ClipRequest, Videos, assign_ids, check_file, check_fps, find_clips
from ddim_lightning.data.splits import divide
from ddim_lightning.limits import VideoLimits
from ddim_lightning.types import Clip, UnreadableClip

if TYPE_CHECKING:
    from ddim_lightning.engine.training_clips import TrainingClips


class VideoDataModule(LightningDataModule):
    """A `VideoDataModule` yields one `Clip` (or `UnreadableClip`) a batch, each exactly once over all devices.

    What is named is checked here, before any weight is loaded. The size and the number of frames come from the module's
    ``video_limits``; under a module without it, ``height`` and ``width`` must be given and the clips alone limit the
    number of frames. Clips are decoded by worker processes ahead of the device; their frames pass through shared memory
    (``/dev/shm``): where a container has little of it, use ``num_workers=0``.

    With ``batches`` it trains, too: a batch is ``{"latents": (b, f, c, h, w), "prompts": [b]}``, latents drawn from
    what the VAE made of the clips. Without ``batches.cache`` it has ``frames`` instead, uint8.

    Args:
        videos: A video, a folder of numbered frames, a folder of either, a glob, a list, or a manifest: CSV, JSONL or
            a JSON list with the columns ``video``, ``prompts`` (in CSV separated by ``|``), ``source_prompt``,
            ``negative_prompt``, ``start``, ``num_frames``, ``seed``, ``id``, ``mask``, ``fps``, ``first_frame``. What a
            row leaves out comes from the arguments below.
        prompts: The edits wanted of every clip.
        source_prompt: A description of the clips; an empty one is none.
        negative_prompt: What guidance moves away from.
        num_frames: Frames of a clip, 4k + 1, or ``all`` of it; what is longer than the model takes at once is covered
            by overlapping windows. ``None`` is as many as the clip has and the model takes at once.
        start: Index of the first frame, >= 0.
        stride: Distance between frames, >= 1, or ``spread``: evenly over the rest of the clip.
        height: In pixels, a multiple of what the model needs; ``None`` is the model's own.
        width: In pixels, likewise.
        fit: What happens to frames of another shape: ``crop`` keeps the aspect, ``pad`` adds black bars, ``stretch``
            distorts.
        mask: A video, an image or a folder of frames, white where the edits may change the clips; ``None`` changes
            everything.
        first_frame: A picture, the clip's first frame as it was edited elsewhere: an image-to-video model makes edits
            that begin with it. ``None`` shows it the clip's own.
        fps: Frames per second of folders of frames, 0.01 .. 1000; ``None`` is 8. Video files have a rate of their own.
        num_workers: Processes that decode, >= 0.
        columns: What the table calls the columns of a manifest, or ``video``, ``prompt`` and ``split`` of a table to
            train from: by our names a column, or a text with columns in braces, ``{video: "images/{name}"}``. The other
            columns of a manifest go into the record of the clip.
        root: Where the paths in the table begin; ``None`` is its folder.
        val_videos: Clips that validate, as ``videos``; ``None`` takes those that ``split`` names, or the share
            ``batches.val_share``.
        batches: How clips become batches under `Trainer.fit`; see `Batches`. With it ``videos`` is a table, CSV, JSONL
            or a JSON list, with a caption in ``prompt``; or a folder of clips with a text beside each, or with
            ``metadata.csv``. ``source_prompt`` is the caption of clips without one.

    Raises:
        OSError: If something named does not exist or is a folder where a video is expected; always the exact subclass.
        ValueError: If an argument or a row of the manifest breaks its rule, or no video is found.
    """

    def __init__(
        self,
        videos: Videos,
        prompts: str | Sequence[str] = (),
        *,
        source_prompt: str | None = None,
        negative_prompt: str = "",
        num_frames: NumFrames | None = None,
        start: int = 0,
        stride: Stride = 1,
        height: int | None = None,
        width: int | None = None,
        fit: Fit = "crop",
        mask: str | os.PathLike[str] | None = None,
        first_frame: str | os.PathLike[str] | None = None,
        fps: float | None = None,
        num_workers: int = 2,
        columns: Mapping[str, str] | None = None,
        root: str | os.PathLike[str] | None = None,
        val_videos: str | os.PathLike[str] | None = None,
        batches: Batches | None = None,
    ) -> None:
        super().__init__()
        check_stride(stride)
        if start < 0:
            raise ValueError(f"start must be an integer >= 0, got {start}")
        if fit not in get_args(Fit):
            raise ValueError(f"fit must be one of {', '.join(get_args(Fit))}, got {fit!r}")
        if num_workers < 0:
            raise ValueError(f"num_workers must be >= 0, got {num_workers}")
        prompts = (prompts,) if isinstance(prompts, str) else tuple(prompts)
        if not all(prompt.strip() for prompt in prompts):
            raise ValueError(f"prompts must not be empty texts, got {prompts}")
        default = ClipRequest(
            prompts=prompts,
            source_prompt=source_prompt or None,
            negative_prompt=negative_prompt,
            start=start,
            num_frames=num_frames,
            mask=None if mask is None else check_file(mask, "mask"),
            fps=None if fps is None else check_fps(fps),
            first_frame=None if first_frame is None else check_file(first_frame, "first_frame"),
        )
        self.clips: TrainingClips | None = None
        if batches is None:
            if val_videos is not None:
                raise ValueError(
                    f"val_videos: must be unset without batches, under which clips train, got {val_videos!r}"
                )
            self.requests = find_clips(videos, default, columns, root)
        else:
            from ddim_lightning.engine.training_clips import TrainingClips  # imports diffusers

            if not isinstance(videos, str | os.PathLike):
                raise ValueError(f"videos: must be a table or a folder to train from, got a list of {len(videos)}")
            examples = find_captioned(videos, columns, root, source_prompt)
            val = None if val_videos is None else find_captioned(val_videos, columns, root, source_prompt)
            splits = divide(examples, val, batches.val_share, batches.seed)
            self.clips = TrainingClips(splits, batches, start=start, stride=stride, fit=fit, tell=rank_zero_info)
            self.requests = assign_ids([_make_request(example, default) for example in examples])
        if fps is not None and not any(request.video.is_dir() for request in self.requests):
            warnings.warn("fps: has no effect on video files, which have a rate of their own", stacklevel=2)
        self.num_frames = num_frames
        self.stride = stride
        self.height = height
        self.width = width
        self.fit: Fit = fit
        self.num_workers = num_workers
        # With fewer clips than devices some devices have nothing to do.
        self.allow_zero_length_dataloader_with_multiple_devices = True

    def all_ids(self) -> list[str]:
        """Every clip's id, in order, so that the folders of their results are checked before weights are loaded."""
        return [request.id for request in self.requests]

    def all_prompts(self) -> list[str]:
        """Every text a clip may be conditioned on: prompts, source prompts, negative prompts; each once, in order."""
        texts: dict[str, None] = {}
        for request in self.requests:
            texts.update(dict.fromkeys(request.prompts))
            texts.update(dict.fromkeys(filter(None, [request.source_prompt, *request.source_prompts])))
            texts[request.negative_prompt] = None
        texts.update(dict.fromkeys([] if self.clips is None else self.clips.list_prompts()))
        return list(texts)

    def check_clips(self, limits: VideoLimits) -> None:
        """Raise an OSError or a ValueError for the first clip that cannot be read as a model takes it.

        Args:
            limits: What the model takes.
        """
        dataset = self._make_dataset(limits)
        for index in range(len(dataset)):
            dataset.check(index)

    def setup(self, stage: str) -> None:
        """Take the model's limits and check the settings against them; Lightning calls it.

        Args:
            stage: What the Trainer is about to do.

        Raises:
            ValueError: If the size or a number of frames breaks a rule of the model.
        """
        if stage in ("fit", "validate"):
            self._get_clips().read(self._list_sizes(), self._find_limits())
            return
        limits = self._limits()
        if self.num_frames is not None:
            check_num_frames(self.num_frames, limits)
        self.dataset = self._make_dataset(limits)

    def predict_dataloader(self) -> ClipLoader:
        """Make the loader of this rank's clips, which are those of all ranks that work on a clip together."""
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        size = getattr(self.trainer.lightning_module, "ranks_per_clip", 1) if self.trainer else 1
        return ClipLoader(
            self.dataset,
            batch_size=1,
            sampler=ShardSampler(self.dataset, rank // size, world_size // size),
            collate_fn=_take_only,
            num_workers=self.num_workers,
            prefetch_factor=1 if self.num_workers else None,  # a clip of 49 x 480 x 720 is 50 MB
        )

    def train_dataloader(self) -> Any:
        """Make the loader of this rank's share of an epoch; it goes on where a resumed training was."""
        return self._get_clips().make_loader("train", CaptionedBatches, self.trainer, self.num_workers)

    def val_dataloader(self) -> Any:
        """Make the loader of this rank's share of what validates: the same every time."""
        return self._get_clips().make_loader("val", CaptionedBatches, self.trainer, self.num_workers)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leave clips on the host, from where their frames come to the device a few at a time; Lightning calls it."""
        if isinstance(batch, Clip | UnreadableClip):
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def _make_dataset(self, limits: VideoLimits) -> VideoDataset:
        return VideoDataset(
            self.requests, limits=limits, stride=self.stride, height=self.height, width=self.width, fit=self.fit
        )

    def _get_clips(self) -> TrainingClips:
        if self.clips is None:
            raise ValueError("batches: must say how clips become batches for fit, got None")
        return self.clips

    def _list_sizes(self) -> Sequence[tuple[int, int, int]]:
        """List the sizes of the buckets; one size may also be named by the arguments that are there for predictions."""
        buckets, given = self._get_clips().batches.buckets, (self.num_frames, self.height, self.width)
        if given == (None, None, None):
            return buckets
        if buckets or self.num_frames == "all":
            rule = "must be unset with batches.buckets, num_frames a number"
            raise ValueError(f"num_frames, height, width: {rule}, got {given}")
        limits = self._limits()
        num_frames = limits.num_frames if self.num_frames is None else int(self.num_frames)
        return [(num_frames, self.height or limits.height, self.width or limits.width)]

    def _find_limits(self) -> VideoLimits | None:
        return getattr(self.trainer.lightning_module, "video_limits", None) if self.trainer else None

    def _limits(self) -> VideoLimits:
        limits = self._find_limits()
        if limits is not None:
            return limits
        if self.height is None or self.width is None:
            got = f"{self.height} x {self.width}"
            raise ValueError(f"height and width must be given where the module has no `video_limits`, got {got}")
        # What such a module makes of a first frame is not known here.
        return VideoLimits(sys.maxsize, self.height, self.width, multiple=1, temporal=1, needs_image=True)


def _make_request(example: Example, default: ClipRequest) -> ClipRequest:
    """Make the request of a clip that trains, for predictions."""
    return replace(default, video=example.clip.video, source_prompt=example.clip.prompt or None, origin=example.origin)


def _take_only(batch: list[Clip | UnreadableClip]) -> Clip | UnreadableClip:
    """Unpack the batch: one clip, as it is."""
    return batch[0]
