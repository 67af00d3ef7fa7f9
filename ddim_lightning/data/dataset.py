"""A data set decodes each clip when it is asked for, and a sampler shares the clips between the ranks of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from ddim_lightning.data.first_frame import read_first_frame
from ddim_lightning.data.frame_folder import FOLDER_FPS
from ddim_lightning.data.frames import (
    Fit,
    FrameChoice,
    Stride,
    check_num_frames,
    check_stride,
    choose_frames,
    make_size,
)
from ddim_lightning.data.manifest import ClipRequest
from ddim_lightning.data.mask import read_mask
from ddim_lightning.data.video import VideoInfo, read_clip, read_info
from ddim_lightning.limits import VideoLimits
from ddim_lightning.types import Clip, UnreadableClip


class VideoDataset(Dataset[Clip | UnreadableClip]):
    """A `VideoDataset` reads clips from files, at the size and length of a model.

    A file, a mask or a first frame that cannot be read becomes an `UnreadableClip`; what is wrong with the settings is
    raised here, before any file is opened.

    Args:
        requests: The clips wanted.
        limits: What the model takes.
        stride: Distance between frames, >= 1, or ``spread``.
        height: In pixels; ``None`` is the model's own.
        width: In pixels; ``None`` is the model's own.
        fit: What happens to frames of another shape: ``crop``, ``pad`` or ``stretch``.

    Raises:
        ValueError: If the size, the stride, the number of frames or a first frame breaks a rule of the model.
    """

    def __init__(
        self,
        requests: Sequence[ClipRequest],
        *,
        limits: VideoLimits,
        stride: Stride = 1,
        height: int | None = None,
        width: int | None = None,
        fit: Fit = "crop",
    ) -> None:
        check_stride(stride)
        for request in requests:
            try:
                if request.num_frames is not None:
                    check_num_frames(request.num_frames, limits)
                if request.first_frame is not None:
                    limits.check_first_frame(request.first_frame)
            except ValueError as error:
                raise ValueError(f"{request.origin}: {error}" if request.origin else str(error)) from None
        self.requests = list(requests)
        self.limits = limits
        self.stride = stride
        self.height, self.width = make_size(limits, height, width)
        self.fit = fit

    def __len__(self) -> int:
        return len(self.requests)

    def __getitem__(self, index: int) -> Clip | UnreadableClip:
        """Read one clip.

        Args:
            index: Position among the requests, 0 .. len - 1.

        Returns:
            The clip, or an `UnreadableClip` with the reason in one line.
        """
        request = self.requests[index]
        source = str(request.video)
        fps = FOLDER_FPS if request.fps is None else request.fps
        try:
            frames, rate, choice = read_clip(
                request.video,
                limits=self.limits,
                start=request.start,
                num_frames=request.num_frames,
                stride=self.stride,
                height=self.height,
                width=self.width,
                fit=self.fit,
                fps=fps,
            )
            mask, first_frame = None, None
            notes: tuple[str, ...] = ()
            if request.mask is not None:
                mask = self._read_mask(request, read_info(request.video), choice)
            if request.first_frame is not None:
                first_frame, notes = self._read_first_frame(request.first_frame, read_info(request.video))
        except Exception as error:  # a damaged file can make a decoder raise anything
            known = isinstance(error, OSError | ValueError)
            return self.make_unreadable(index, str(error) if known else f"{type(error).__name__}: {error}")
        return Clip(
            id=request.id,
            frames=frames,
            fps=rate,
            prompts=request.prompts,
            source_prompt=request.source_prompt,
            negative_prompt=request.negative_prompt,
            seed=request.seed,
            selection=choice.selection,
            source=source,
            warnings=(*choice.warnings, *notes),
            mask=mask,
            mask_source=None if request.mask is None else str(request.mask),
            first_frame=first_frame,
            first_frame_source=None if request.first_frame is None else str(request.first_frame),
            source_prompts=request.source_prompts,
            rows=request.rows,
        )

    def check(self, index: int) -> None:
        """Check a clip, its mask and its first frame, decoding one frame of the clip.

        Args:
            index: Position among the requests.

        Raises:
            OSError: A file that is missing or may not be read; always the exact subclass.
            ValueError: A file that is no video or has too few frames, a mask that does not fit, or a first frame that
                is no picture.
        """
        request = self.requests[index]
        info = read_info(request.video, fps=request.fps or FOLDER_FPS)
        choice = choose_frames(
            info.num_frames, self.limits, start=request.start, num_frames=request.num_frames, stride=self.stride
        )
        if request.mask is not None:
            self._read_mask(request, info, choice)
        if request.first_frame is not None:
            self._read_first_frame(request.first_frame, info)

    def make_unreadable(self, index: int, reason: str) -> UnreadableClip:
        """Make what stands for a clip that could not be read.

        Args:
            index: Position among the requests.
            reason: Why; made one line, since the name of a file may have several.
        """
        request = self.requests[index]
        return UnreadableClip(request.id, str(request.video), " ".join(reason.split()), request.prompts)

    def _read_mask(self, request: ClipRequest, clip: VideoInfo, choice: FrameChoice) -> Tensor:
        assert request.mask is not None
        size = {"height": self.height, "width": self.width}
        return read_mask(request.mask, clip, choice, **size, fit=self.fit, threshold=request.mask_threshold)

    def _read_first_frame(self, path: Path, clip: VideoInfo) -> tuple[Tensor, tuple[str, ...]]:
        return read_first_frame(path, clip, height=self.height, width=self.width, fit=self.fit)


class ShardSampler(DistributedSampler[Any]):
    """A `ShardSampler` gives every sample once over all ranks, without padding: rank r takes r, r + world, ...

    Lightning leaves a `DistributedSampler` alone. Its own would either repeat samples or fail with fewer samples than
    ranks. A rank may get none: the data module must then allow loaders of zero length.

    Args:
        dataset: What is sampled.
        rank: This process, 0 .. world_size - 1.
        world_size: How many processes share the samples.
    """

    def __init__(self, dataset: Dataset[Any], rank: int, world_size: int) -> None:
        super().__init__(dataset, num_replicas=world_size, rank=rank, shuffle=False)
        self.positions = range(rank, len(dataset), world_size)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        return iter(self.positions)

    def __len__(self) -> int:
        return len(self.positions)
